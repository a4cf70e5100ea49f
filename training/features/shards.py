"""A folder of shards that is written row by row, can be stopped at any time, and goes on where it was.

OUTPUT/
  NAME-00000.parquet …   complete shards; nothing else is what `datasets` reads
  .progress.json         settings, the position of the stream after the last shard, counts; hidden from `datasets`
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lighthubert_hf.costs.figures import human_seconds
from lighthubert_hf.files import data_checksum, is_leftover, read_object, replacing_file, sweep, write_json
from lighthubert_hf.locks import locked
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.runs.stopping import StopRequest

from .encoding import AudioWindows, Window

logger = logging.getLogger(__name__)

PROGRESS = ".progress.json"
Row = dict[str, Any]


@dataclass
class Written:
    """What lies in a folder of shards.

    Args:
        output: the folder.
        shards, rows, seconds: files, rows, and seconds of audio in them.
        counts: rows of the data set that were seen, and that were left out and why.
        state: position of the stream after the last shard.
        finished: whether that is the end.
    """

    output: str
    shards: int = 0
    rows: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "state"}

    def __str__(self) -> str:
        left = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in self.counts.items() if number)
        return f"{self.output}: {self.rows} rows in {self.shards} shards, {human_seconds(self.seconds)} ({left})"


class ShardedOutput:
    """The folder and how its shards are written.

    Args:
        folder: where.
        name: what shards are called, before their number.
        suffix: of shards, with its dot.
        write: writes rows to a path.
        settings: what the rows depend on, as JSON; another run's folder is told by it.
        shard_seconds: audio in a shard.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        suffix: str,
        write: Callable[[list[Row], Path], None],
        settings: dict[str, Any],
        shard_seconds: float,
    ):
        self.folder, self.name, self.suffix, self.write = Path(folder), name, suffix, write
        self.settings = json.loads(json.dumps(settings))
        self.shard_seconds = shard_seconds

    def fill(
        self,
        windows: AudioWindows,
        rows_of: Callable[[Window], list[Row]],
        *,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Written:
        """Write what is not written yet.

        Raises:
            ValueError: the folder is another run's, or holds something else.
        """
        with locked(self.folder):
            done = self._claim(overwrite)
            if done.finished:
                logger.warning("%s is finished; nothing is done again", self.folder)
                return done
            return self._fill(windows, rows_of, done, progress)

    def _fill(
        self, windows: AudioWindows, rows_of: Callable[[Window], list[Row]], done: Written, progress: bool
    ) -> Written:
        rows, seconds = [], 0.0
        bar = progress_bar(None, self.name, done=done.rows, unit="recordings", shown=progress)
        with StopRequest() as stop, bar:
            for window in windows.iterate(done.state):
                rows += rows_of(window)
                seconds += window.seconds
                done.state, done.counts = window.state, dict(windows.counts)
                bar.set_postfix_str(human_seconds(done.seconds + seconds), refresh=False)
                bar.update(len(window.recordings))
                if seconds >= self.shard_seconds or stop:
                    self._add(done, rows, seconds)
                    rows, seconds = [], 0.0
                if stop:
                    break
        if stop:
            stop.follow(f"stopped after {done.rows} recordings; the same command goes on there")
        done.counts, done.finished = dict(windows.counts), True
        self._add(done, rows, seconds)
        return done

    def _add(self, done: Written, rows: list[Row], seconds: float) -> None:
        """One more shard, then the record that counts it: a kill between the two writes the shard again."""
        if rows:
            with replacing_file(self._shard(done.shards)) as new:
                self.write(rows, new)
            done.shards, done.rows, done.seconds = done.shards + 1, done.rows + len(rows), done.seconds + seconds
        said = asdict(done) | {"settings": self.settings}
        del said["output"]
        write_json(self.folder / PROGRESS, said | {"checksum": data_checksum(said)})

    def _shard(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05d}{self.suffix}"

    def _claim(self, overwrite: bool) -> Written:
        """What is there already, after the folder was found to be this run's, or empty."""
        folder, record = self.folder, self.folder / PROGRESS
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; name a folder to write to")
        sweep(folder)
        if not record.is_file():
            others = [entry.name for entry in self._entries()]
            if others and not (overwrite and all(self._is_own(name) for name in others)):
                raise ValueError(f"{folder} holds something else ({min(others)}); name a new folder")
            return Written(str(folder))
        found = {} if overwrite else self._read_progress(record)
        settings = found.pop("settings", None)
        if overwrite:
            for entry in self._entries():
                if self._is_own(entry.name):
                    entry.unlink()
            record.unlink()
            return Written(str(folder))
        if settings != self.settings:
            raise ValueError(
                f"{folder} was written {self._difference(settings)}; name another folder, or start over "
                "with --overwrite (overwrite=True)"
            )
        done = Written(str(folder), **found)
        missing = [self._shard(number) for number in range(done.shards) if not self._shard(number).is_file()]
        if missing:
            raise ValueError(f"{missing[0]} is gone; put it back, or start over with --overwrite (overwrite=True)")
        return done

    def _read_progress(self, record: Path) -> dict[str, Any]:
        remedy = f"start over with --overwrite (overwrite=True), or delete {self.folder}"
        found = read_object(record, remedy)
        if found.pop("checksum", None) != data_checksum(found):
            raise ValueError(f"{record} is damaged: it is not what was written; {remedy}")
        return found

    def _difference(self, settings: Any) -> str:
        settings = settings if isinstance(settings, dict) else {}
        name = next(key for key in {**self.settings, **settings} if settings.get(key) != self.settings.get(key))
        if name in ("encoder", "codebook"):
            return f"with another {name}"
        return f"with {name} {settings.get(name)!r}, not {self.settings.get(name)!r}"

    def _entries(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (entry for entry in self.folder.iterdir() if not is_leftover(entry) and entry.name != PROGRESS)

    def _is_own(self, name: str) -> bool:
        return name.startswith(f"{self.name}-") and Path(name).suffix in (".parquet", ".jsonl", ".safetensors")


def write_jsonl(rows: list[Row], path: Path) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

"""Where training examples come from, and the order in which they are read: shuffled, yet resumable to the example.

Everything is read by `datasets` streaming. Its own shuffle buffer cannot be resumed (what is in the buffer is lost),
so the order here is made of two things that can be computed again at any time from (seed, epoch):

* the order of the shards, of which a few are open at once and give a row in turn, and
* windows: `shuffle_window` rows are read and then handed out in a permuted order.

The state to resume from is therefore small and JSON-able: where each open shard stood when the current window began,
and how many of the window's rows have been handed out. Resuming reads at most one window again (encoded audio, not
decoded).
"""

import contextlib
import hashlib
import json
import logging
import re
import tarfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A dataset of more shards is read as this many groups of neighbours: opening one costs time in their number.
MAX_SHARDS = 1024
_FORMATS = {".parquet": "parquet", ".tar": "webdataset"}


def random_generator(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` only: the same in every process, and after every resume."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class AudioSource:
    """One dataset to stream from.

    Args:
        path: A Hub dataset id; a folder of parquet files, of audio files (with or without `metadata.csv`/`.jsonl`) or
            of WebDataset tars; a glob of such files; an `https://…` URL; or a tuple of files or URLs.
        split: Name of the split. A glob, URL or tuple is one split, whatever its name.
        config_name: Configuration of a Hub dataset.
        audio_column: Column with the audio; `None` takes the only one of type `Audio`.
        text_column: Column with transcripts; `None` reads none.
        all_columns: Read every other column, too, for labels.
        weight: How many examples are drawn from here, relative to the other sources. A source of weight 0 is not read.
    """

    path: str | tuple[str, ...]
    split: str = "train"
    config_name: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    all_columns: bool = False
    weight: float = 1.0

    def __post_init__(self):
        if not self.path or not self.split:
            raise ValueError(f"a source needs a path and a split, got path={self.path!r} and split={self.split!r}")
        if not (isinstance(self.weight, (int, float)) and 0 <= self.weight < float("inf")):
            raise ValueError(f"the weight of source {self.path!r} must be a number >= 0, got {self.weight!r}")
        if isinstance(self.path, list):  # from YAML
            object.__setattr__(self, "path", tuple(self.path))

    @property
    def files(self) -> list[str] | None:
        """Files, globs or URLs, if that is what the source is."""
        if not isinstance(self.path, str):
            return list(self.path)
        return [self.path] if "://" in self.path or any(character in self.path for character in "*?[") else None

    @property
    def is_remote(self) -> bool:
        if self.files is not None:
            return "://" in self.files[0]
        return not Path(self.path).exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.path) is not None


@dataclass(frozen=True)
class RawExample:
    """A row before decoding. `id` is its place, `source:shard:row`, and unique in the whole stream. `columns` are all
    but the audio, if the source has `all_columns`."""

    id: str
    audio: dict[str, Any]
    text: str | None
    source: int
    epoch: int
    columns: dict[str, Any] | None = None


@dataclass(frozen=True)
class Retry:
    """Try again after network faults, waiting 1, 2, 4, … times `seconds` (60 s at most) between tries."""

    max_retries: int = 5
    seconds: float = 1.0

    def wait_or_raise(self, failures: int, error: Exception, what: str) -> None:
        """Wait after the `failures`-th failure in a row, or raise when there were too many."""
        reason = f"{type(error).__name__}: {error}"
        if failures > self.max_retries:
            raise ConnectionError(f"{what} failed {failures} times in a row, last with {reason}") from error
        wait = min(self.seconds * 2 ** (failures - 1), 60.0)
        logger.warning("%s failed (%s); retry %d of %d in %.3g s", what, reason, failures, self.max_retries, wait)
        time.sleep(wait)

    def call(self, function: Callable[[], T], is_fault: Callable[[Exception], bool], what: str) -> T:
        failures = 0
        while True:
            try:
                return function()
            except Exception as error:
                if not is_fault(error):
                    raise
                failures += 1
                self.wait_or_raise(failures, error, what)


def is_network_fault(error: Exception) -> bool:
    """Whether trying again may help, for an error while reading a remote file.

    fsspec reports all kinds of faults as a `FileNotFoundError`, so its causes decide. Truncated parquet counts as a
    fault: the download may have been cut.
    """
    import aiohttp
    import pyarrow

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    statuses = {link.status for link in chain if isinstance(link, aiohttp.ClientResponseError)}
    statuses |= {link.response.status_code for link in chain if getattr(link, "response", None) is not None}
    if any(400 <= status < 500 and status not in (408, 429) for status in statuses):
        return False
    faults, facts = (OSError, aiohttp.ClientError, pyarrow.ArrowInvalid), (FileNotFoundError, PermissionError)
    return any(isinstance(link, faults) and not isinstance(link, facts) for link in chain)


class OpenSource:
    """An `AudioSource` opened by `datasets`, in shards that can be read from any position."""

    def __init__(self, source: AudioSource, index: int, retry: Retry):
        self.source, self.index, self.retry = source, index, retry
        self.is_remote = source.is_remote
        if self.is_remote and source.files:
            dataset = retry.call(self._load, _is_fault_of_opening, f"opening {source.path!r}")
        else:  # a folder, or a Hub id, where huggingface_hub does the retrying
            dataset = self._load()
        self.audio_column = self._find_audio_column(dataset.features)
        if source.text_column is not None and source.text_column not in dataset.features:
            raise ValueError(
                f"{source.path!r} has no column {source.text_column!r} for the text; it has {sorted(dataset.features)}"
            )
        columns = [self.audio_column] + ([source.text_column] if source.text_column else [])
        if not source.all_columns:
            dataset = dataset.select_columns(columns)
        self._class_names = _class_names(dataset.features)
        self._dataset = _without_decoding(dataset, self.audio_column)
        self.num_shards = min(dataset.num_shards, MAX_SHARDS)

    def _load(self):
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        path, files, split = self.source.path, self.source.files, self.source.split
        try:
            if files is not None:
                return load_dataset(_format_of(files), data_files={split: files}, split=split, streaming=True)
            if not self.is_remote and not Path(path).is_dir():
                raise FileNotFoundError(f"{path}: no such folder; give a folder, a glob of files or a Hub dataset id")
            return load_dataset(path, name=self.source.config_name, split=split, streaming=True)
        except DatasetNotFoundError as error:
            raise FileNotFoundError(f"{path}: neither a folder here nor a dataset of the Hub ({error})") from error
        except ConnectionError as error:
            if files is not None:
                raise
            raise FileNotFoundError(f"{path}: no such folder here, and the Hub cannot be reached ({error})") from error
        except ValueError as error:  # a missing split or configuration: the message says which there are
            raise ValueError(f"{path!r} cannot be opened: {' '.join(str(error).split())}") from error

    def _find_audio_column(self, features: dict[str, Any] | None) -> str:
        from datasets import Audio

        if features is None:
            raise ValueError(
                f"{self.source.path!r} does not say what columns it has, so it cannot be streamed as audio"
            )
        if self.source.audio_column is not None:
            if self.source.audio_column not in features:
                raise ValueError(
                    f"{self.source.path!r} has no column {self.source.audio_column!r}; it has {sorted(features)}"
                )
            return self.source.audio_column
        found = [
            name
            for name, feature in features.items()
            if isinstance(feature, Audio) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
        ]
        if len(found) != 1:
            raise ValueError(
                f"{self.source.path!r} has {len(found)} columns of audio, not one; "
                f"set audio_column to one of {sorted(features)}"
            )
        return found[0]

    def open_shard(self, shard: int, position: dict[str, Any] | None):
        """The rows of one shard from `position` (a `state_dict()` of the result; `None`: the beginning)."""
        # Resharding makes every row group of a parquet file a shard of its own, so that a position is reached without
        # reading what lies before it.
        dataset = self._dataset.shard(self.num_shards, shard).reshard()
        if position is not None:
            dataset.load_state_dict(position)
        return dataset

    def make_example(self, values: dict[str, Any], shard: int, row: int, epoch: int) -> RawExample:
        audio = values[self.audio_column]
        audio = {"bytes": None, "path": audio} if isinstance(audio, str) else (audio or {})
        for name, names in self._class_names.items():
            if isinstance(place := values.get(name), int):  # -1 says that there is no label
                values = values | {name: names[place] if 0 <= place < len(names) else None}
        text = values[self.source.text_column] if self.source.text_column else None
        columns = None
        if self.source.all_columns:
            columns = {name: value for name, value in values.items() if name != self.audio_column}
        return RawExample(f"{self.index}:{shard}:{row}", audio, text, self.index, epoch, columns)


def _class_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """Of the columns of places in a list of names: that list."""
    from datasets import ClassLabel

    return {name: list(kind.names) for name, kind in features.items() if isinstance(kind, ClassLabel)}


def _is_fault_of_opening(error: Exception) -> bool:
    # While it resolves URLs, `datasets` reports a server's error as a missing file, without a cause.
    return isinstance(error, FileNotFoundError) or is_network_fault(error)


def _format_of(files: list[str]) -> str:
    import soundfile

    suffixes = {Path(file.split("?")[0]).suffix.lower() for file in files}
    if len(suffixes) == 1:
        suffix = suffixes.pop()
        if suffix in _FORMATS:
            return _FORMATS[suffix]
        if suffix.removeprefix(".").upper() in soundfile.available_formats():
            return "audiofolder"
    raise ValueError(f"{files[0]!r} … must be parquet, tar or audio files, all of one kind")


def _without_decoding(dataset, audio_column: str):
    """Have `datasets` hand out encoded audio, without torchcodec.

    `Audio(decode=False)` is not enough: for audio folders and tars `datasets` would *encode* rows, which needs
    torchcodec even when there is nothing to encode. As plain columns (a path; bytes and a path) they pass through.
    """
    from datasets import Value

    plain = (
        Value("string")
        if dataset.info.builder_name == "audiofolder"
        else {"bytes": Value("binary"), "path": Value("string")}
    )
    return dataset.cast_column(audio_column, plain)


class _ShardReader:
    """Reads one shard row by row, knows where it stands, and reopens the shard there after a network fault."""

    def __init__(self, source: OpenSource, shard: int, row: int = 0, position: dict[str, Any] | None = None):
        self.source, self.shard, self.row, self.position = source, shard, row, position
        self._dataset = self._rows = self._closing = None

    @property
    def state(self) -> list:
        return [self.shard, self.row, self.position]

    def read(self) -> dict[str, Any] | None:
        """The next row, `None` at the end."""
        what = f"reading row {self.row} of shard {self.shard} of {self.source.source.path!r}"
        failures = 0
        while True:
            try:
                if self._rows is None:
                    self._dataset = self.source.open_shard(self.shard, self.position)
                    self._rows = iter(self._dataset)
                    # Also when the interpreter exits: a half-read parquet file complains when it is torn down.
                    self._closing = weakref.finalize(self, _close, self._rows)
                values = next(self._rows, None)
                break
            except Exception as error:
                self.close()
                if self.source.is_remote and is_network_fault(error):
                    failures += 1
                    self.source.retry.wait_or_raise(failures, error, what)
                elif isinstance(error, (OSError, ValueError, tarfile.TarError)):  # ArrowInvalid is a ValueError
                    raise ValueError(
                        f"{what} failed ({type(error).__name__}: {error}); repair or remove its file"
                    ) from error
                else:
                    raise
        if values is not None:
            self.position = self._dataset.state_dict()
            self.row += 1
        return values

    def close(self) -> None:
        """Let go of files and of the rows read ahead."""
        if self._closing is not None:
            self._closing()
        self._dataset = self._rows = self._closing = None


def _close(rows: Iterator) -> None:
    with contextlib.suppress(ValueError):  # at exit, a background thread may be in the middle of it
        rows.close()


class ShuffledReader:
    """The rows of one source that this process reads, epoch after epoch, in an order that can be resumed.

    With at least as many shards as processes, each epoch deals the shards out (an epoch's order is the same for all
    processes, so together they read every row once). With fewer, every process reads everything and keeps each
    `world_size`-th row.

    Args:
        source: The opened source.
        seed, shuffle, shuffle_window, num_open_shards, rank, world_size: See `AudioStream`.
    """

    def __init__(
        self,
        source: OpenSource,
        *,
        seed: int,
        shuffle: bool,
        shuffle_window: int,
        num_open_shards: int,
        rank: int,
        world_size: int,
    ):
        self.source, self.seed, self.shuffle = source, seed, shuffle
        self.shuffle_window = shuffle_window if shuffle else 1
        self.num_open_shards = num_open_shards if shuffle else 1
        self.rank, self.world_size = rank, world_size
        self.splits_rows = source.num_shards < world_size
        self._dealt = slice(None) if self.splits_rows else slice(rank, None, world_size)
        self.num_shards = len(range(source.num_shards)[self._dealt])
        if self.splits_rows and rank == 0:
            logger.warning(
                "%r has %d shards for %d processes: every process reads all of it and keeps one row in %d; "
                "store it in more files to read each only once",
                source.source.path,
                source.num_shards,
                world_size,
                world_size,
            )

    def initial_state(self, epoch: int = 0) -> dict[str, Any]:
        return {"epoch": epoch, "window": 0, "open": [], "next_shard": 0, "taken": 0}

    def iterate(self, state: dict[str, Any], *, repeat: bool) -> Iterator[tuple[RawExample, dict[str, Any]]]:
        """Yield rows and, beside each, the state that resumes after it."""
        while True:
            yield from self._read_epoch(state)
            if not repeat:
                return
            state = self.initial_state(state["epoch"] + 1)

    def _read_epoch(self, state: dict[str, Any]) -> Iterator[tuple[RawExample, dict[str, Any]]]:
        epoch, taken = state["epoch"], state["taken"]
        opened = deque(_ShardReader(self.source, *saved) for saved in state["open"])
        waiting = deque(self._shard_order(epoch)[state["next_shard"] :])
        try:
            for number in count(state["window"]):
                start = {
                    "epoch": epoch,
                    "window": number,
                    "open": [shard.state for shard in opened],
                    "next_shard": self.num_shards - len(waiting),
                }
                window = self._read_window(opened, waiting, epoch)
                if not window and number == 0:
                    raise ValueError(
                        f"{self.source.source.path!r}, split {self.source.source.split!r}, has no rows for process "
                        f"{self.rank} of {self.world_size}; use another split or fewer processes"
                    )
                if not window:
                    return
                order = self._window_order(len(window), epoch, number)
                for place in range(taken, len(window)):
                    # Freed while the window is handed out.
                    example, window[order[place]] = window[order[place]], None
                    yield example, {**start, "taken": place + 1}
                taken = 0
        finally:
            for shard in opened:
                shard.close()

    def _window_order(self, size: int, epoch: int, number: int) -> list[int]:
        if not self.shuffle:
            return list(range(size))
        key = (self.seed, "window", self.source.index, epoch, self.rank, number)
        return random_generator(*key).permutation(size).tolist()

    def _shard_order(self, epoch: int) -> list[int]:
        order = list(range(self.source.num_shards))
        if self.shuffle:
            random_generator(self.seed, "shards", self.source.index, epoch).shuffle(order)
        return order[self._dealt]

    def _read_window(self, opened: deque[_ShardReader], waiting: deque[int], epoch: int) -> list[RawExample | None]:
        """Read rows from the open shards in turn, opening the next shard whenever one ends."""
        window: list[RawExample | None] = []
        while len(window) < self.shuffle_window:
            while waiting and len(opened) < self.num_open_shards:
                opened.append(_ShardReader(self.source, waiting.popleft()))
            if not opened:
                break
            shard = opened.popleft()
            row = shard.row
            values = shard.read()
            if values is None:
                continue
            opened.append(shard)
            if not self.splits_rows or (shard.shard + row) % self.world_size == self.rank:
                window.append(self.source.make_example(values, shard.shard, row, epoch))
        return window

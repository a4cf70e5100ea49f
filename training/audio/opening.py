"""A data set opened for reading, by `datasets` or as a manifest, in shards that can be read from any position."""

import glob
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lighthubert_hf.absent import absent
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .decoding import AudioDecodeError, Channel, Recording, open_audio
from .manifests import BadRow, Manifest, find_audio_column, find_manifest, manifest_suffix, read_manifests
from .metadata import read_metadata
from .network import Retry, is_network_fault
from .row_paths import RowPaths, is_url
from .sources import GLOB_CHARACTERS, AudioSource, RawExample

# A dataset of more shards is read as this many groups of neighbours: opening one costs time in their number.
MAX_SHARDS = 1024
_SHARDS_OF_MEMORY = 64
_FORMATS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
# A row that says its audio is longer than the file by more than this was not made for this file.
_SECONDS_MISSING = 0.5


class OpenSource:
    """An `AudioSource`, open.

    Args:
        source: What to open.
        index: Its number in the stream.
        retry: What to do about network faults.
        crop_seconds: Recordings of twice this length and more are read as segments, each an example.
    """

    def __init__(self, source: AudioSource, index: int, retry: Retry, crop_seconds: float | None = None):
        self.source, self.index, self.retry = source, index, retry
        self.crop_samples = None if crop_seconds is None else round(crop_seconds * SAMPLING_RATE)
        self.is_remote = source.is_remote
        if self.is_remote and source.files:
            self._rows = retry.call(self._open, _is_fault_of_opening, f"opening {source.name!r}")
        else:  # a folder, or a Hub id, where huggingface_hub does the retrying
            self._rows = self._open()
        self.columns = columns = self._rows.columns
        self.audio_column = source.audio_column or self._find_audio_column()
        for name, what in ((self.audio_column, ""), (source.text_column, " for the text")):
            if name is not None and top_column(name, columns) is None:
                raise ValueError(f"{source.name!r} has no column {name!r}{what}; it has {sorted(columns)}")
        if isinstance(self._rows, _DatasetRows):
            wanted = [name for name in (self.audio_column, source.text_column) if name is not None]
            self._rows.prepare(None if source.all_columns else [top_column(name, columns) for name in wanted])
        self.num_shards = self._rows.num_shards
        self._paths = self._row_paths()

    def _open(self) -> "Manifest | _DatasetRows":
        rows = self._rows_here()
        return rows if rows is not None else self._load()

    def _rows_here(self) -> "Manifest | _DatasetRows | None":
        """Rows that need not be loaded by `datasets`."""
        source = self.source
        if source.dataset is not None:
            return _DatasetRows(_streamed(_of_split(source.dataset, source)))
        if source.files is not None:
            if all(map(manifest_suffix, source.files)):
                return read_manifests([file for pattern in source.files for file in _matching(pattern)])
            return None
        if not self.is_remote and os.path.isdir(source.path):
            stored = [Path(source.path) / name for name in ("state.json", "dataset_dict.json")]
            if any(file.is_file() for file in stored):
                from datasets import load_from_disk

                return _DatasetRows(_streamed(_of_split(load_from_disk(source.path), source)))
            if source.config_name is None:
                return find_manifest(source.path, source.split, source.audio_column)
        return None

    def _load(self) -> "Manifest | _DatasetRows":
        from datasets import load_dataset, load_dataset_builder

        path, files, split = self.source.path, self.source.files, self.source.split
        if files is None and not self.is_remote and not Path(path).is_dir():
            raise absent("data set", path)
        try:
            if files is not None:
                kind = _format_of(files)
                for pattern in files:
                    _matching(pattern)
                files = [glob.escape(file) if os.path.exists(file) else file for file in files]
                return _DatasetRows(load_dataset(kind, data_files={split: files}, split=split, streaming=True))
            if not self.is_remote and any(map(os.path.abspath(path).__contains__, GLOB_CHARACTERS)):
                kind, folder = _format_of(_files_in(path)), glob.escape(os.path.abspath(path))
                # Without escaping it takes them for a glob.
                return _DatasetRows(load_dataset(kind, data_dir=folder, split=split, streaming=True))
            builder = load_dataset_builder(path, name=self.source.config_name)
            metadata = read_metadata(builder, split)
            return metadata if metadata is not None else _DatasetRows(builder.as_streaming_dataset(split=split))
        except OSError as error:
            if files is not None and self.is_remote:
                raise  # it may be a fault of the network
            raise absent("data set", self.source.name, error) from error
        except ValueError as error:  # a missing split or configuration: the message says which there are
            raise ValueError(f"{path!r} cannot be opened: {' '.join(str(error).split())}") from error

    def _find_audio_column(self) -> str:
        columns = self._rows.columns
        found = self._rows.audio_columns
        if not found and (known := find_audio_column(columns)) is not None:
            return known
        if len(found) != 1:
            raise ValueError(
                f"{self.source.name!r} has {len(found)} columns of audio, not one; "
                f"set audio_column to one of {sorted(columns)}"
            )
        return found[0]

    def _row_paths(self) -> RowPaths:
        """What the rows may name: files of the data set itself, and what the user allows."""
        source, allowed = self.source, self.source.allow_paths
        if isinstance(self._rows, Manifest):
            roots = self._rows.bases if source.files is not None or self.is_remote else [source.path]
            return RowPaths(self._rows.bases, roots, allowed)
        if source.dataset is not None:
            return RowPaths([], None, allowed)  # whoever calls has made these rows
        if source.files is not None:
            folders = [
                file.rpartition("/")[0] if is_url(file) else os.path.dirname(file) or "." for file in source.files
            ]
            folders = [folder for folder in folders if is_url(folder) or os.path.isdir(folder)]  # no globs
            return RowPaths(folders, folders, allowed)
        root = f"hf://datasets/{source.path}" if self.is_remote else source.path
        return RowPaths([root], [root], allowed)

    def open_shard(self, shard: int, position: dict[str, Any] | None):
        """The rows of one shard from `position` (a `state_dict()` of the result; `None`: the beginning)."""
        return self._rows.open_shard(shard, position)

    def examples(self, values: dict[str, Any] | BadRow, shard: int, row: int, epoch: int) -> list[RawExample]:
        """What a row holds: one example, or one for each segment and each channel."""
        place = f"{self.index}:{shard}:{row}"
        shared: dict[str, Any] = {"source": self.index, "epoch": epoch, "name": self._rows.place(shard, row)}
        if isinstance(values, BadRow):
            return [RawExample(place, audio={}, text=None, problem=values.reason, **shared)]
        for name, names in self._rows.class_names.items():
            number = values.get(name)
            if isinstance(number, str) and number not in names and number.isdecimal():  # of a CSV file
                number = int(number)
            if isinstance(number, int):  # -1 says that there is no label
                values = values | {name: names[number] if 0 <= number < len(names) else None}
        shared["text"] = look_up(values, self.source.text_column) if self.source.text_column else None
        if self.source.all_columns:
            audio_column = top_column(self.audio_column, self._rows.columns)
            shared["columns"] = {name: value for name, value in values.items() if name != audio_column}
        try:
            audio = self._audio(values)
            shared["audio"] = audio
            parts = self._parts(audio, *self._excerpt(values))
        except ConnectionError:
            raise
        except (AudioDecodeError, OSError) as error:
            return [RawExample(place, **{"audio": {}, **shared}, problem=str(error))]
        return [
            RawExample(f"{place}{suffix}", channel=channel, start=start, stop=stop, **shared)
            for suffix, channel, start, stop in parts
        ]

    def _audio(self, values: dict[str, Any]) -> dict[str, Any]:
        """Encoded audio, a file that rows may name, or samples, in one form."""
        audio = look_up(values, self.audio_column)
        if isinstance(audio, (bytes, bytearray, memoryview)):
            return {"bytes": audio, "path": None}
        if isinstance(audio, (str, os.PathLike)):
            audio = {"bytes": None, "path": os.fspath(audio)}
        if audio is None:
            audio = {}
        if not isinstance(audio, Mapping):
            raise AudioDecodeError(
                f"its column {self.audio_column!r} holds {type(audio).__name__}, neither encoded audio, nor a path, "
                "nor {array, sampling_rate}"
            )
        path = audio.get("path")
        if path is not None and not isinstance(path, str):
            raise AudioDecodeError(f"its path is no text but {type(path).__name__}")
        if audio.get("bytes") is None and audio.get("array") is None and path:
            is_listed = isinstance(self._rows, _DatasetRows) and self._rows.lists_files
            return {"bytes": None, "path": path if is_listed else self._paths.resolve(path)}
        return dict(audio)

    def _excerpt(self, values: dict[str, Any]) -> tuple[int, int | None]:
        """The samples (at 16 kHz) of its file that a row of a manifest is."""
        if not isinstance(self._rows, Manifest):
            return 0, None
        seconds = [_seconds(values, name) for name in ("offset", "duration")]
        if seconds[0] is None and not self._rows.offset_is_optional:
            return 0, None
        start, length = round((seconds[0] or 0) * SAMPLING_RATE), round((seconds[1] or 0) * SAMPLING_RATE)
        return start, start + length if length else None

    def _parts(
        self, audio: dict[str, Any], start: int, stop: int | None
    ) -> list[tuple[str, Channel, int, int | None]]:
        """What an example's id adds, its channel, its beginning and its end, for each part of a recording."""
        channel = self.source.channel
        if channel != "split" and self.crop_samples is None:
            return [("", channel, start, stop)]
        with self.retry.call(
            lambda: open_audio(audio), is_fault_of(audio), f"reading {audio.get('path')}"
        ) as recording:
            channels = recording.channels(channel)
            segments = self._segments(recording, start, stop)
        return [
            ((f":c{one}" if len(channels) > 1 else "") + (f":{number}" if len(segments) > 1 else ""), one, *segment)
            for one in channels
            for number, segment in enumerate(segments)
        ]

    def _segments(self, recording: Recording, start: int, stop: int | None) -> list[tuple[int, int | None]]:
        """The whole, or segments of equal length that hold one crop each, so that every epoch hears all of it."""
        if self.crop_samples is None:
            return [(start, stop)]
        start, end = part_of(recording, start, stop)
        number = (end - start) // self.crop_samples
        if number < 2:
            return [(start, stop)]
        bounds = [start + (end - start) * place // number for place in range(number + 1)]
        return list(itertools.pairwise(bounds))


def is_fault_of(audio: Mapping[str, Any]) -> Callable[[Exception], bool]:
    """Whether an error while audio is read is one of the network, which may be gone at the next attempt."""
    return lambda error: is_url(audio.get("path") or "") and is_network_fault(error)


def part_of(recording: Recording, start: int, stop: int | None) -> tuple[int, int]:
    """Where a part begins and ends in a recording that is there.

    Raises:
        AudioDecodeError: The recording ends before it.
    """
    total = recording.num_samples
    ends = 0 if stop is None else stop - _SECONDS_MISSING * SAMPLING_RATE
    if ends > total or 0 < total <= start:
        asked = f"{start / SAMPLING_RATE:g} s to " + ("its end" if stop is None else f"{stop / SAMPLING_RATE:g} s")
        raise AudioDecodeError(f"{recording.name} is {total / SAMPLING_RATE:g} s long, the row wants {asked} of it")
    return start, total if stop is None else min(stop, total)


def look_up(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or with `a.b` of the field `b` of what the column `a` holds; `None` if there is none."""
    if name in values:
        return values[name]
    first, dot, rest = name.partition(".")
    inner = values.get(first) if dot else None
    if isinstance(inner, (str, bytes)):
        try:
            inner = json.loads(inner)
        except ValueError:
            return None
    return look_up(inner, rest) if isinstance(inner, Mapping) else None


def top_column(name: str, columns) -> str | None:
    """The column that `name` (perhaps with fields, `a.b`) is in, or `None`."""
    return next((column for column in (name, name.partition(".")[0]) if column in columns), None)


def _seconds(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < 1e9:  # also what is no number
        raise AudioDecodeError(f"its {name} is {value!r}, which is no length in seconds")
    return seconds


def _is_fault_of_opening(error: Exception) -> bool:
    # While it resolves URLs, `datasets` reports a server's error as a missing file, without a cause.
    return isinstance(error, FileNotFoundError) or is_network_fault(error)


def _matching(pattern: str) -> list[str]:
    if is_url(pattern) or os.path.isfile(pattern):
        return [pattern]
    found = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not found:
        raise absent("data set", pattern)
    return found


def _files_in(folder: str) -> list[str]:
    """Files of the kind that is there, of those that `datasets` reads: shards before loose recordings."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    for suffix in _FORMATS:
        if found := [str(path) for path in paths if path.suffix.lower() == suffix]:
            return found
    found = [str(path) for path in paths if _is_audio(path.suffix.lower())]
    if not found:
        raise FileNotFoundError(f"{folder}: no parquet, tar or audio files in it")
    return found


def _is_audio(suffix: str) -> bool:
    import soundfile

    return suffix.removeprefix(".").upper() in soundfile.available_formats()


def _format_of(files: list[str]) -> str:
    suffixes = {Path(file.split("?")[0] if is_url(file) else file).suffix.lower() for file in files}
    if all(map(_is_audio, suffixes)):
        return "audiofolder"
    if len(suffixes) == 1 and (suffix := suffixes.pop()) in _FORMATS:
        return _FORMATS[suffix]
    raise ValueError(f"{files[0]!r} … must be parquet, tar or audio files, all of one kind, or a manifest")


def _of_split(dataset, source: AudioSource):
    """The split of what may be several, or one that has a name."""
    if isinstance(dataset, dict):
        if source.split not in dataset:
            raise ValueError(
                f"{source.name!r} cannot be opened: Bad split: {source.split}. Available splits: {sorted(dataset)}"
            )
        return dataset[source.split]
    has = str(getattr(dataset, "split", None) or "train")
    if source.dataset is None and has != source.split:
        raise ValueError(f"{source.name!r} cannot be opened: Bad split: {source.split}. Available splits: {[has]}")
    return dataset


def _streamed(dataset):
    """A `Dataset` as a stream, without what formats and transforms would make of its rows."""
    if not hasattr(dataset, "to_iterable_dataset"):
        return dataset
    if not len(dataset):
        raise ValueError("the data set in memory has no rows; give one that has")
    return dataset.with_format(None).to_iterable_dataset(num_shards=max(1, min(_SHARDS_OF_MEMORY, len(dataset))))


class _DatasetRows:
    """The rows of a stream of `datasets`."""

    def __init__(self, dataset):
        from datasets import ClassLabel

        self._dataset = dataset
        if dataset.features is None:
            raise ValueError("the data set does not say what columns it has, so it cannot be streamed as audio")
        self.columns = list(dataset.features)
        # Of the columns of places in a list of names: that list.
        self.class_names = {
            name: kind.names for name, kind in dataset.features.items() if isinstance(kind, ClassLabel)
        }
        # Its paths are those of files that were found in the folder or the repository, whatever its rows say.
        self.lists_files = dataset.info.builder_name == "audiofolder"
        self.num_shards = min(dataset.num_shards, MAX_SHARDS)

    @property
    def audio_columns(self) -> list[str]:
        """Those that are audio by their type."""
        return [name for name, feature in self._dataset.features.items() if _is_audio_feature(feature)]

    def prepare(self, columns: list[str] | None) -> None:
        """Read these columns only (`None`: all), and have `datasets` hand out encoded audio, without torchcodec.

        `Audio(decode=False)` is not enough: for audio folders and tars `datasets` would *encode* rows, which needs
        torchcodec even when there is nothing to encode. As plain columns (a path; bytes and a path) they pass through.
        """
        from datasets import Audio, Value

        if columns is not None:
            self._dataset = self._dataset.select_columns(list(dict.fromkeys(columns)))
        encoded = {"bytes": Value("binary"), "path": Value("string")}
        for name, feature in self._dataset.features.items():
            if isinstance(feature, Audio):
                plain = Value("string") if self.lists_files else encoded
                self._dataset = self._dataset.cast_column(name, plain)

    def open_shard(self, shard: int, position: dict[str, Any] | None):
        # Resharding makes every row group of a parquet file a shard of its own, so that a position is reached without
        # reading what lies before it.
        dataset = self._dataset.shard(self.num_shards, shard).reshard()
        if position is not None:
            dataset.load_state_dict(position)
        return dataset

    def place(self, shard: int, row: int) -> str:
        return f"row {row} of shard {shard}"


def _is_audio_feature(feature: Any) -> bool:
    from datasets import Audio

    fields = set(feature) if isinstance(feature, dict) else set()
    return isinstance(feature, Audio) or fields in ({"bytes", "path"}, {"array", "sampling_rate"})

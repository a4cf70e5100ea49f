"""What a data set is to the stream: how it is named, and what one of its rows holds."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lighthubert_hf.absent import is_hub_name

from .decoding import Channel
from .row_paths import is_url

GLOB_CHARACTERS = "*?["


def random_generator(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` only: the same in every process, and after every resume."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class AudioSource:
    """One dataset to stream from.

    Args:
        path: A Hub dataset id; a folder of parquet files, of audio files (with or without `metadata.csv`/`.tsv`/
            `.jsonl`), of WebDataset tars, of manifests (see `manifests.py`), or one that `save_to_disk` wrote; a file
            of these kinds, a glob or tuple of such files; an `https://…` URL; or a `datasets.Dataset` in memory.
        split: Name of the split. A file, glob, URL, tuple or `Dataset` is one split, whatever its name.
        config_name: Configuration of a Hub dataset.
        audio_column: Column with the audio: encoded audio, bytes, a path, or `{array, sampling_rate}`. `None` takes
            the only one of type `Audio`, or the one that manifests call so. `a.b` is the field `b` of the column `a`.
        text_column: Column with transcripts; `None` reads none.
        all_columns: Read every other column, too, for labels.
        channel: Of recordings with several: the `mean` of all, the number of one, or `split`, which makes each channel
            an example of its own.
        allow_paths: Folders and URLs outside the data set that its rows may name files of. Without, a row that names
            a file elsewhere counts as broken.
        weight: How many examples are drawn from here, relative to the other sources. A source of weight 0 is not read.
    """

    path: Any
    split: str = "train"
    config_name: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    all_columns: bool = False
    channel: Channel = "mean"
    allow_paths: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self):
        path = self.path
        if isinstance(path, (str, os.PathLike)):
            path = _expanded(path)
        elif isinstance(path, (list, tuple)):
            path = tuple(map(_expanded, path))
        elif not hasattr(path, "features"):
            raise ValueError(
                f"the path of a source must be a folder, a file, a Hub id, several files or a datasets.Dataset, "
                f"got {path!r}"
            )
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "allow_paths", tuple(map(os.fspath, self.allow_paths)))
        if not isinstance(self.split, str) or not self.split or (isinstance(path, (str, tuple)) and not path):
            raise ValueError(f"a source needs a path and a split, got path={self.path!r} and split={self.split!r}")
        if not (isinstance(self.weight, (int, float)) and 0 <= self.weight < float("inf")):
            raise ValueError(f"the weight of source {self.name!r} must be a number >= 0, got {self.weight!r}")
        number = isinstance(self.channel, int) and not isinstance(self.channel, bool) and self.channel >= 0
        if self.channel not in ("mean", "split") and not number:
            raise ValueError(
                f"the channel of source {self.name!r} must be 'mean', 'split' or a number from 0, got {self.channel!r}"
            )

    @property
    def dataset(self) -> Any:
        """The `datasets.Dataset` in memory, if the source is one."""
        return None if isinstance(self.path, (str, tuple)) else self.path

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.dataset is not None:
            return f"<{type(self.dataset).__name__} in memory>"
        return self.path if isinstance(self.path, str) else ", ".join(self.path[:2]) + (", …" if self.path[2:] else "")

    @property
    def files(self) -> list[str] | None:
        """Files, globs or URLs, if that is what the source is."""
        if self.dataset is not None:
            return None
        if isinstance(self.path, tuple):
            return list(self.path)
        if is_url(self.path):
            return [self.path]
        if os.path.isdir(self.path):
            return None  # whatever characters are in its name
        return [self.path] if os.path.isfile(self.path) or any(map(self.path.__contains__, GLOB_CHARACTERS)) else None

    @property
    def is_remote(self) -> bool:
        if self.dataset is not None:
            return False
        if self.files is not None:
            return is_url(self.files[0])
        return not Path(self.path).exists() and is_hub_name(self.path)


def _expanded(path: str | os.PathLike) -> str:
    """`~` is the home folder, also where no shell replaced it."""
    path = os.fspath(path)
    return path if is_url(path) else os.path.expanduser(path)


@dataclass(frozen=True)
class RawExample:
    """A row before decoding, or a part of one.

    `id` is its place, `source:shard:row`, and unique in the whole stream; parts add `:cN` for a channel and `:N` for a
    segment. `name` says to people which row it is. The audio is heard from `start` to `stop` (samples at 16 kHz;
    `None`: to the end). `columns` are all but the audio, if the source has `all_columns`. `problem` says why a row
    cannot be used, if that showed before decoding.
    """

    id: str
    name: str
    audio: dict[str, Any]
    text: Any
    source: int
    epoch: int
    columns: dict[str, Any] | None = None
    channel: Channel = "mean"
    start: int = 0
    stop: int | None = None
    problem: str | None = None

"""Features on disk, computed once for each model and split, for all heads and tasks that share the audio.

FOLDER/KEY/
  features.bin    all hidden states of one utterance after the other: (frames, states, width), float16 or float32
  rows.jsonl      per utterance its id, its frames, and what the dataset says about it
  set.json        shape, dtype, what was left out, and what the key was made of

The key is made of the model's fingerprint (weights, architecture) and the data's (names, sizes and times of local
files, the commit of a Hub dataset), so features of a model or of data that changed are computed again.
"""

import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lighthubert_hf.absent import absent
from lighthubert_hf.files import file_checksum, is_leftover, replacing_folder, sweep, with_checksum
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.audio.row_paths import is_url
from lighthubert_hf.training.audio.sources import AudioSource

from .splits import (
    CHUNK,
    FACTS,
    FEATURES,
    ROWS,
    CachedSplit,
    LiveSplit,
    Selection,
    Split,
    in_chunks,
    plain_row,
)
from .upstream import Upstream

logger = logging.getLogger(__name__)


class CacheOverflow(ValueError):
    """More features than the cache may hold."""


class FeatureStore:
    """A folder of feature sets, of bounded size.

    Args:
        folder: Where; several runs may share it.
        gigabytes: Its size at most. Sets that were not used for longest are deleted to make room for new ones.
        dtype: float16 keeps 11 bits of each number, at half the size of float32.
    """

    def __init__(self, folder: str | Path, gigabytes: float = 20.0, dtype: str = "float16"):
        if dtype not in ("float16", "float32"):
            raise ValueError(f"features are kept in float16 or float32, not {dtype!r}")
        self.folder, self.limit, self.dtype = Path(folder), int(gigabytes * 1e9), dtype
        self._in_use: set[str] = set()

    def split(self, upstream: Upstream, selection: Selection, *, progress: bool = True) -> Split:
        """The utterances of `selection` with features of `upstream`: from the cache, computed into it, or, if they
        do not fit (which is said in the log), computed whenever they are needed."""
        facts = {
            "upstream": upstream.fingerprint,
            "data": data_fingerprint(selection.source),
            "split": selection.source.split,
            "config_name": selection.source.config_name,
            "audio_column": selection.source.audio_column,
            "channel": selection.source.channel,
            "max_seconds": selection.max_seconds,
            "max_examples": selection.max_examples,
            "dtype": self.dtype,
        }
        key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()
        target = self.folder / key
        self._in_use.add(key)
        if (target / FACTS).is_file():
            os.utime(target)  # used now: the last to be deleted
            try:
                return CachedSplit(target)
            except ValueError as problem:
                logger.warning("%s; its features are computed again", problem)
        try:
            self._extract(upstream, selection, target, facts, progress)
        except CacheOverflow as problem:
            self._in_use.discard(key)
            logger.warning(
                "%s; computing the features of %s, split %s, anew whenever they are needed, which is slow. "
                "Allow a larger cache, or select fewer examples",
                problem,
                selection.source.path,
                selection.source.split,
            )
            return LiveSplit(upstream, selection)
        return CachedSplit(target)

    def _extract(self, upstream: Upstream, selection: Selection, target: Path, facts: dict, progress: bool) -> None:
        sweep(self.folder)
        counts: dict[str, int] = {}
        with replacing_folder(target) as new:  # if another process was faster, the same takes the place of the same
            samples = self._write(upstream, selection, new, counts, progress)
            shape = [upstream.num_states, upstream.width]
            facts = facts | {"shape": shape, "counts": counts, "seconds": round(samples / SAMPLING_RATE, 3)}
            facts["checksums"] = {name: file_checksum(new / name) for name in (ROWS, FEATURES)}
            (new / FACTS).write_text(json.dumps(with_checksum(facts), indent=2) + "\n", encoding="utf-8")

    def _write(self, upstream: Upstream, selection: Selection, folder: Path, counts: dict, progress: bool) -> int:
        """Features and rows; returns the samples read."""
        written, samples, room = 0, 0, self.limit - sum(map(_size, self._sets()))
        bar = progress_bar(None, f"features of {selection.source.split}", unit="utterances", shown=progress)
        with bar, (folder / FEATURES).open("wb") as features, (folder / ROWS).open("w", encoding="utf-8") as rows:
            for examples in in_chunks(selection.read(counts), CHUNK):
                states = upstream.features([example["input_values"] for example in examples])
                for example, array in zip(examples, self._packed(states), strict=True):
                    if written + array.nbytes > room:
                        room += self._freed(written + array.nbytes - room)
                    written += features.write(array.tobytes())
                    samples += example["num_samples"]
                    row = {"id": example["id"], "frames": len(array), "row": plain_row(example)}
                    rows.write(json.dumps(row) + "\n")
                bar.update(len(examples))
        if not samples:
            source = selection.source
            raise ValueError(f"{source.path}, split {source.split!r}, has no utterance to use ({counts})")
        return samples

    def _packed(self, states: list[torch.Tensor]) -> Iterator[np.ndarray]:
        for tensor in states:
            array = tensor.to(getattr(torch, self.dtype)).cpu().numpy()
            if not np.isfinite(array).all():
                raise ValueError(
                    f"the model's hidden states (up to {tensor.abs().max():.3g}) cannot be kept in {self.dtype}; "
                    "use dtype float32, and check the model if that fails, too"
                )
            yield array

    def _sets(self) -> list[Path]:
        """The finished sets, those not used for longest first."""
        sets = [path.parent for path in self.folder.glob(f"*/{FACTS}") if not is_leftover(path.parent)]
        return sorted(sets, key=lambda path: path.stat().st_mtime)

    def _freed(self, needed: int) -> int:
        """Delete sets that this process does not use; returns the bytes won, at least `needed`."""
        won = 0
        for path in self._sets():
            if won < needed and path.name not in self._in_use:
                logger.info("deleting the features %s to make room", path.name)
                won += _size(path)
                shutil.rmtree(path)
        if won < needed:
            raise CacheOverflow(f"the features take more than the {self.limit / 1e9:g} GB that the cache may hold")
        return won


def data_fingerprint(source: AudioSource) -> Any:
    """What changes when the data do: of local files names, sizes and times; of the Hub the commit; else the URL.

    Raises:
        FileNotFoundError: There are none.
    """
    if source.dataset is not None:
        return source.dataset._fingerprint
    if source.is_remote:
        return _commit(source.path) if isinstance(source.path, str) and "://" not in source.path else source.path
    folders = [path for path in source.allow_paths if not is_url(path)]
    folders = [os.path.expanduser(path) for path in folders] + ([source.path] if source.files is None else [])
    patterns = [glob.escape(file) if os.path.exists(file) else file for file in source.files or ()]
    patterns += [os.path.join(glob.escape(folder), "**") for folder in folders]
    paths = sorted(path for pattern in patterns for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise absent("data set", source.name)
    start = source.path if source.files is None else os.curdir
    return [[os.path.relpath(path, start), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _commit(dataset: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return f"{dataset}@{HfApi().dataset_info(dataset).sha}"
    except (HfHubHTTPError, OSError) as error:
        raise absent("data set", dataset, error) from error

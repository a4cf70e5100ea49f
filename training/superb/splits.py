"""The utterances of one split with the frozen model's features: read from the cache, or computed whenever needed."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from lighthubert_hf.files import file_checksum, read_checked
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.audio.sources import AudioSource, random_generator
from lighthubert_hf.training.audio.streaming import AudioStream

from .upstream import Upstream

FEATURES, ROWS, FACTS = "features.bin", "rows.jsonl", "set.json"
# Examples whose features are computed together: enough to find some of similar length.
CHUNK = 64
# Batches of similar length are put together out of this many.
_POOL = 20
Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Utterance:
    """`features` are `(frames, states, width)`, `row` is what the dataset says about it, `length` its frames."""

    id: str
    row: dict[str, Any]
    features: np.ndarray
    length: int


@dataclass(frozen=True)
class Selection:
    """Which utterances of a source are used: not longer than `max_seconds`, at most `max_examples`, drawn at random
    (always the same ones)."""

    source: AudioSource
    max_seconds: float | None = None
    max_examples: int | None = None

    def read(self, counts: dict[str, int] | None = None) -> Iterator[dict[str, Any]]:
        """The examples of an `AudioStream`, waveforms as recorded; `counts` gets how many were read and dropped."""
        counts = {} if counts is None else counts
        stream = self._stream(seed=0, shuffle=self.max_examples is not None, repeat=False)
        counts |= {"used": 0, "broken": 0, "too_long": 0}
        read: dict[str, int] = {}
        for example, _ in stream.iterate(counts=read):
            counts["broken"] = read["broken"] + read["too_short"]
            if self._is_too_long(example):
                counts["too_long"] += 1
                continue
            counts["used"] += 1
            yield example
            if counts["used"] == self.max_examples:
                return
        counts["broken"] = read["broken"] + read["too_short"]  # also what came after the last example

    def repeat(self, seed: int) -> Iterator[dict[str, Any]]:
        """The same for ever, in a random order (the same order, where `max_examples` selects)."""
        if self.max_examples is not None:
            return (example for _ in count() for example in self.read())
        stream = self._stream(seed=seed, shuffle=True, repeat=True)
        return (example for example in stream if not self._is_too_long(example))

    def _is_too_long(self, example: dict[str, Any]) -> bool:
        return self.max_seconds is not None and example["num_samples"] > self.max_seconds * SAMPLING_RATE

    def _stream(self, **order: Any) -> AudioStream:
        return AudioStream([self.source], normalised=False, min_seconds=0.0, **order)


def in_chunks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def plain_row(example: dict[str, Any]) -> dict[str, Any]:
    """What a row says besides its audio, as JSON can say it."""
    columns = {key: value for key, value in example["columns"].items() if not isinstance(value, bytes)}
    return json.loads(json.dumps(columns, default=str))


def _undamaged(folder: Path) -> dict[str, Any]:
    """What `set.json` says, once the files beside it are those that were written with it.

    Raises:
        ValueError: One of them is not; the message names it.
    """
    try:
        facts = read_checked(folder / FACTS, "delete its folder")
        for name, expected in facts["checksums"].items():
            if file_checksum(folder / name) != expected:
                raise ValueError(f"{folder / name} is damaged: it is not what was written")
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{folder / FACTS} is damaged ({type(error).__name__}: {error})") from error
    return facts


class CachedSplit:
    """Utterances whose features lie on disk, in a folder that `FeatureStore` wrote.

    Args:
        folder: Where.
        reduce: Applied to the features of every utterance, once; the results are kept in memory.
    """

    def __init__(self, folder: Path, reduce: Reduce | None = None):
        self.facts = _undamaged(folder)
        lines = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
        self.ids, self.rows = [line["id"] for line in lines], [line["row"] for line in lines]
        self.lengths = [line["frames"] for line in lines]
        self.counts, self.seconds, self.is_cached = self.facts["counts"], self.facts["seconds"], True
        self._folder, self._ends = folder, np.cumsum(self.lengths)
        shape = (sum(self.lengths), *self.facts["shape"])
        self._array = np.memmap(folder / FEATURES, dtype=self.facts["dtype"], mode="r", shape=shape)
        self._reduced = None if reduce is None else [reduce(self._stored(index)) for index in range(len(lines))]

    def __len__(self) -> int:
        return len(self.ids)

    def _stored(self, index: int) -> np.ndarray:
        end = self._ends[index]
        return self._array[end - self.lengths[index] : end]

    def load(self, index: int) -> Utterance:
        features = self._stored(index) if self._reduced is None else self._reduced[index]
        return Utterance(self.ids[index], self.rows[index], features, self.lengths[index])

    def reduced(self, reduce: Reduce) -> "CachedSplit":
        """The same utterances with reduced features."""
        return CachedSplit(self._folder, reduce)

    def once(self) -> Iterator[Utterance]:
        return (self.load(index) for index in range(len(self)))

    def batches(self, size: int, seed: int) -> Iterator[list[Utterance]]:
        """Endless, an epoch after the other, shuffled; utterances of similar length come together."""
        lengths = np.array(self.lengths)
        for epoch in count():
            rng = random_generator("superb", seed, epoch)
            order = rng.permutation(len(self))
            pools = [order[start : start + size * _POOL] for start in range(0, len(order), size * _POOL)]
            chunks = [chunk for pool in pools for chunk in in_chunks(pool[np.argsort(lengths[pool])], size)]
            for place in rng.permutation(len(chunks)):
                yield [self.load(index) for index in chunks[place]]


class LiveSplit:
    """Utterances whose features are computed anew each time, for data that are too large to keep."""

    def __init__(self, upstream: Upstream, selection: Selection, reduce: Reduce | None = None):
        self.upstream, self.selection, self._reduce = upstream, selection, reduce
        self.counts: dict[str, int] = {}
        self.seconds, self.is_cached = None, False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of all utterances; reads through the data."""
        return [plain_row(example) for example in self.selection.read(self.counts)]

    def reduced(self, reduce: Reduce) -> "LiveSplit":
        return LiveSplit(self.upstream, self.selection, reduce)

    def once(self) -> Iterator[Utterance]:
        return self._utterances(self.selection.read(self.counts), CHUNK)

    def batches(self, size: int, seed: int) -> Iterator[list[Utterance]]:
        return in_chunks(self._utterances(self.selection.repeat(seed), size), size)

    def _utterances(self, examples: Iterable[dict[str, Any]], chunk: int) -> Iterator[Utterance]:
        for some in in_chunks(examples, chunk):
            states = self.upstream.features([example["input_values"] for example in some])
            for example, features in zip(some, states, strict=True):
                array = features.cpu().numpy()
                reduced = array if self._reduce is None else self._reduce(array)
                yield Utterance(example["id"], plain_row(example), reduced, len(array))


Split = CachedSplit | LiveSplit

"""A stream of audio examples for training and evaluation: decoded, filtered, cropped, and resumable to the example.

`AudioStream` mixes one or more sources (see `sources.py` for how their order is made), decodes with soundfile, drops
and counts what cannot be used, and hands out beside every example the JSON-able state that resumes after it.

    stream = AudioStream([AudioSource("folder-or-hub-id")], seed=0, crop_seconds=15)
    for example, state in stream.iterate():
        example["input_values"]          # float32, 16 kHz, zero mean and unit variance
    ...
    stream.iterate(state)                # continues with the example after that one
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE

from .decoding import AudioDecodeError, Recording, normalise, open_audio
from .network import Retry
from .opening import OpenSource, is_fault_of, look_up, part_of, top_column
from .reading import ShuffledReader
from .sources import AudioSource, RawExample, random_generator

__all__ = ["AudioSource", "AudioStream"]

logger = logging.getLogger(__name__)

# The share of broken files means little before this many examples.
_SHARE_AFTER = 100
_LOOKAHEAD_PER_WORKER = 8

# Why a row is not handed out.
DROPPED = ("broken", "unlabelled", "too_short", "too_long")

State = dict[str, Any]


class AudioStream:
    """Audio examples from weighted sources.

    Every example is a dict:

    * `id` (`str`): its place, `source:shard:row`, unique in the stream (of a segment or a channel with more behind);
    * `input_values` (`np.ndarray` of shape `(num_samples,)`): float32, 16 kHz, mono, cropped, then normalised to zero
      mean and unit variance (as `Wav2Vec2FeatureExtractor` does, on what the model sees);
    * `text` (`str` or `None`): the transcript (of the whole, if cropped);
    * `num_samples` (`int`): length of `input_values`;
    * `path` (`str` or `None`): the file it is of, or what its row calls it;
    * `columns` (`dict`): all other columns, of sources with `all_columns`.

    The order is a function of the arguments alone. Within an epoch of a source every row comes exactly once, over all
    processes, however often the stream is interrupted and resumed; decoding threads change nothing.

    Args:
        sources: What to read. With `repeat`, the source of every example is drawn by weight; without, one source is
            read after the other. Epochs are counted per source.
        seed: Seed of order and crops.
        shuffle: `False` reads rows in the stored order.
        repeat: Go on for ever, or read everything once.
        shuffle_window: Number of rows (encoded) that are held and permuted together. Rows of audio folders are
            paths, so there it can be as large as the folder.
        num_open_shards: Number of shards that are read in turn.
        rank, world_size: Which of how many processes this is.
        min_seconds: Shorter examples are dropped and counted (under 400 samples a model sees no frame).
        max_seconds: Longer ones, too.
        crop_seconds: Longer examples are cropped to this, at a place that depends on (seed, epoch, id). A recording
            of at least twice this length is several examples: segments of equal length, of which the crop is decoded.
        normalised: `False` hands out waveforms as they are, in [-1, 1].
        max_broken_share: A larger share of undecodable files stops the stream.
        max_retries, retry_seconds: A network fault is retried so often, after so long (doubled each time).
        num_workers: Decoding threads; 0 decodes in the caller's. (Decoders release the GIL.)
        labelled: Drop rows whose `text_column` is empty or null, and count them as unlabelled.
        label_columns: Drop rows where one of these columns is, too.

    Raises:
        ValueError: Arguments or sources that make no sense; while iterating: too many broken files, no usable ones.
        FileNotFoundError: A folder that does not exist.
        ConnectionError: A source that stays out of reach.
    """

    def __init__(
        self,
        sources: Sequence[AudioSource],
        *,
        seed: int = 0,
        shuffle: bool = True,
        repeat: bool = True,
        shuffle_window: int = 1000,
        num_open_shards: int = 4,
        rank: int = 0,
        world_size: int = 1,
        min_seconds: float = 0.1,
        max_seconds: float | None = None,
        crop_seconds: float | None = None,
        normalised: bool = True,
        max_broken_share: float = 0.05,
        max_retries: int = 5,
        retry_seconds: float = 1.0,
        num_workers: int = 0,
        labelled: bool = False,
        label_columns: Sequence[str] = (),
    ):
        sources = [source for source in sources if source.weight > 0]
        if not sources:
            raise ValueError("a stream needs at least one source with a weight above 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size-1, got rank {rank} of {world_size}")
        if shuffle_window < 1 or num_open_shards < 1:
            raise ValueError(
                f"shuffle_window and num_open_shards must be at least 1, got {shuffle_window} and {num_open_shards}"
            )
        if not 0 <= max_broken_share <= 1:
            raise ValueError(f"max_broken_share must be from 0 to 1, got {max_broken_share}")
        for name, seconds in (("max_seconds", max_seconds), ("crop_seconds", crop_seconds)):
            if seconds is not None and seconds < min_seconds:
                raise ValueError(f"{name} {seconds} is below min_seconds {min_seconds}: nothing would be left")
        self.seed, self.shuffle, self.repeat, self.rank, self.num_workers = seed, shuffle, repeat, rank, num_workers
        self.min_seconds, self.max_seconds, self.crop_seconds = min_seconds, max_seconds, crop_seconds
        self.normalised, self.max_broken_share = normalised, max_broken_share
        self.labelled, self.label_columns = labelled or bool(label_columns), tuple(label_columns)
        self._first_reason: str | None = None
        self._cancelling: set[int] = set()
        self._retry = Retry(max_retries, retry_seconds)
        self._sources = sources
        self._cumulative_weights = np.cumsum([source.weight for source in sources])
        order = {
            "seed": seed,
            "shuffle": shuffle,
            "shuffle_window": shuffle_window,
            "num_open_shards": num_open_shards,
        }
        self.world_size = world_size
        order |= {"rank": rank, "world_size": world_size}
        opened = [OpenSource(source, index, self._retry, crop_seconds) for index, source in enumerate(sources)]
        for source in opened:
            for name in self.label_columns:
                if top_column(name, source.columns) is None:
                    others = sorted(set(source.columns) - {source.audio_column})
                    raise ValueError(f"{source.source.name!r} has no {name!r}; it has {others}")
        self._readers = [ShuffledReader(source, **order) for source in opened]
        self._settings = order | {
            "repeat": repeat,
            "weights": [source.weight for source in sources],
            "num_shards": [source.num_shards for source in opened],
            "channels": [source.channel for source in sources],
            "crop_seconds": crop_seconds,
        }

    def initial_state(self) -> State:
        """The state at the beginning."""
        return {
            "settings": self._settings,
            "drawn": 0,
            "sources": [reader.initial_state() for reader in self._readers],
            "finished": 0,
            "counts": {"seen": 0, **dict.fromkeys(DROPPED, 0)},
        }

    def dealt_anew(self, states: Sequence[State]) -> tuple[State, int]:
        """The state to go on from where `states` are those of another number of processes.

        Every process has its own part of the rows, so the parts are dealt anew, and each source begins again the
        earliest epoch that one of the processes was in.

        Returns:
            The state, and the rows that come twice, at most: those read so far in the epochs that begin again.
        """
        epochs = [min(epoch) for epoch in zip(*([place["epoch"] for place in state["sources"]] for state in states))]
        counts = {name: sum(state["counts"][name] for state in states) for name in states[0]["counts"]}
        # Of n epochs and a part of one more, that part is at most one in n + 1.
        repeated = counts["seen"] // (min(epochs) + 1)
        return self.initial_state() | {
            "drawn": max(state["drawn"] for state in states),
            "sources": [reader.initial_state(epoch) for reader, epoch in zip(self._readers, epochs, strict=True)],
            "counts": counts if self.rank == 0 else dict.fromkeys(counts, 0),
        }, repeated

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (example for example, _ in self.iterate())

    def iterate(
        self, state: State | None = None, *, counts: dict[str, int] | None = None
    ) -> Iterator[tuple[dict[str, Any], State]]:
        """Yield `(example, state)`; `state` resumes with the example after it.

        A state is a JSON-able dict that must not be changed. `state["counts"]` says how many rows were seen, and how
        many dropped as broken, too short, or too long; `state["sources"][i]["epoch"]` is a source's epoch.

        Args:
            state: Where to begin, from a stream with the same settings; `None`: at the beginning.
            counts: Is kept at what was seen and dropped so far, also after the last example.
        """
        state = state or self.initial_state()
        self._check_settings(state["settings"])
        counts = {} if counts is None else counts
        counts |= self.initial_state()["counts"] | state["counts"]
        last_useful = [source["epoch"] for source in state["sources"]]
        for raw, heard, place in self._decoded(self._mixed(state)):
            counts["seen"] += 1
            self._report(raw, heard)
            if heard.outcome is not None:
                counts[heard.outcome] += 1
                self._check_counts(counts, barren=raw.epoch > last_useful[raw.source] + 1, source=raw.source)
                continue
            last_useful[raw.source] = raw.epoch
            input_values = normalise(heard.waveform) if self.normalised else heard.waveform
            example = {"id": raw.id, "input_values": input_values, "text": raw.text, "num_samples": len(input_values)}
            example["path"] = raw.audio.get("path")
            if raw.columns is not None:
                example["columns"] = raw.columns
            yield example, {"settings": self._settings, **place, "counts": dict(counts)}
        self._check_counts(counts, barren=False, source=0, final=True)

    def _check_settings(self, saved: dict[str, Any]) -> None:
        for name, value in self._settings.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"the saved position is of a stream with {name}={saved.get(name)!r}, this one has {value!r}; "
                    "resume with the same settings and data, or start without the saved position"
                )

    def _mixed(self, state: State) -> Iterator[tuple[RawExample, State]]:
        """Rows of all sources in order, each with the part of the state that says where the sources stand."""
        places = list(state["sources"])
        rows = [reader.iterate(place, repeat=self.repeat) for reader, place in zip(self._readers, places, strict=True)]
        drawn, finished = state["drawn"], state["finished"]
        while finished < len(rows):
            index = self._draw(drawn) if self.repeat else finished
            item = next(rows[index], None)
            if item is None:
                finished += 1
                continue
            raw, places[index] = item
            drawn += 1
            yield raw, {"drawn": drawn, "sources": list(places), "finished": finished}

    def _draw(self, number: int) -> int:
        if len(self._readers) == 1:
            return 0
        point = random_generator(self.seed, "source", self.rank, number).random() * self._cumulative_weights[-1]
        return int(np.searchsorted(self._cumulative_weights, point, side="right"))

    def _decoded(self, rows: Iterable[tuple[RawExample, State]]) -> Iterator[tuple[RawExample, "_Heard", State]]:
        """Decode, in order; with workers some rows ahead of the consumer."""
        if self.num_workers == 0:
            for raw, place in rows:
                yield raw, self._decode(raw), place
            return
        pending: deque = deque()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="decode")
        try:
            for raw, place in rows:
                pending.append((raw, pool.submit(self._decode, raw), place))
                if len(pending) > self.num_workers * _LOOKAHEAD_PER_WORKER:
                    raw, future, place = pending.popleft()
                    yield raw, future.result(), place
            while pending:
                raw, future, place = pending.popleft()
                yield raw, future.result(), place
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, raw: RawExample) -> "_Heard":
        """The waveform, or why there is none. (Returned, not raised: it is the consumer who counts, in order.)"""
        if raw.problem is not None:
            return _Heard("broken", raw.problem)
        if self.labelled and (lacking := self._lacking(raw)) is not None:
            return _Heard("unlabelled", f"it has no {lacking}")
        path = raw.audio.get("path")

        def hear() -> _Heard:
            with open_audio(raw.audio) as recording:
                return self._hear(recording, raw)

        try:
            return self._retry.call(hear, is_fault_of(raw.audio), f"reading {path}")
        except AudioDecodeError as error:
            return _Heard("broken", str(error))
        except ConnectionError:
            raise
        except OSError as error:
            return _Heard("broken", f"{path} cannot be read: {error}")

    def _hear(self, recording: Recording, raw: RawExample) -> "_Heard":
        """The part of a recording that is an example, if its length is right: nothing else of it is decoded."""
        start, stop = part_of(recording, raw.start, raw.stop)
        length = stop - start
        if length < max(self.min_seconds * SAMPLING_RATE, 1):
            return _Heard("too_short")
        if self.max_seconds is not None and length > self.max_seconds * SAMPLING_RATE:
            return _Heard("too_long")
        if self.crop_seconds is not None and length > (wanted := round(self.crop_seconds * SAMPLING_RATE)):
            start += int(random_generator(self.seed, "crop", raw.epoch, raw.id).integers(length - wanted + 1))
            stop = start + wanted
        # To the end is to wherever decoding ends, which may differ by a sample from what the length says.
        waveform, cancels = recording.read(start, None if stop == recording.num_samples else stop, raw.channel)
        return _Heard(None if len(waveform) else "too_short", waveform=waveform, cancels=cancels)

    def _lacking(self, raw: RawExample) -> str | None:
        """Which label an example does not have."""
        wanted = {name: look_up(raw.columns or {}, name) for name in self.label_columns}
        if self._sources[raw.source].text_column is not None:
            wanted[self._sources[raw.source].text_column] = raw.text
        return next((f"{name!r}" for name, value in wanted.items() if is_empty(value)), None)

    def _report(self, raw: RawExample, heard: "_Heard") -> None:
        """Say which row is dropped as broken, and, once for a source, that mixing its channels loses them."""
        source = self._sources[raw.source].name
        if heard.outcome in ("broken", "unlabelled"):
            reason = f"{raw.name}: {heard.reason}"
            self._first_reason = self._first_reason or reason
            logger.warning("skipping %s of %r, %s", raw.id, source, reason)
        if heard.cancels and raw.source not in self._cancelling:
            self._cancelling.add(raw.source)
            logger.warning(
                "the channels of %s (%s of %r) cancel each other when they are mixed, so little is heard of it; take "
                "one of them with channel=0, or each with channel=split (said once for a source)",
                raw.audio.get("path") or raw.name,
                raw.id,
                source,
            )

    def _remedy(self) -> str:
        return f"the first: {self._first_reason}" if self._first_reason else "check min_seconds and max_seconds"

    def _check_counts(self, counts: dict[str, int], *, barren: bool, source: int, final: bool = False) -> None:
        said = said_counts(counts)
        if counts["broken"] > self.max_broken_share * max(counts["seen"], 0 if final else _SHARE_AFTER):
            raise ValueError(
                f"more than {self.max_broken_share:.1%} of the audio files cannot be decoded ({said}); "
                "repair or remove the files named in the log, or raise data.max_broken_share. The first: "
                f"{self._first_reason}"
            )
        dropped = sum(counts[name] for name in DROPPED)
        # One of several ranks may be left without an example of a small set; that is no mistake in the data.
        if barren or (final and counts["seen"] == dropped and (dropped or self.world_size == 1)):
            raise ValueError(f"{self._sources[source].name!r} gives no usable example ({said}); {self._remedy()}")


@dataclass(frozen=True)
class _Heard:
    """What decoding a row gave: a waveform, or the count that it goes to and why."""

    outcome: str | None
    reason: str = ""
    waveform: np.ndarray | None = None
    cancels: bool = False


def said_counts(counts: dict[str, int]) -> str:
    """Counts in words: "42 seen, 2 broken, 1 too short"."""
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in counts if counts[name] or name == "seen")


def is_empty(label: Any) -> bool:
    """Whether a row does not say its transcript or label: null, blank, or a number that is none."""
    return label is None or (isinstance(label, str) and not label.strip()) or (label != label) is True

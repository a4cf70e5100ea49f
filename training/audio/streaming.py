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
from typing import Any

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE

from .decoding import AudioDecodeError, decode_audio, normalise, read_audio_bytes
from .sources import AudioSource, OpenSource, RawExample, Retry, ShuffledReader, is_network_fault, random_generator

__all__ = ["AudioSource", "AudioStream"]

logger = logging.getLogger(__name__)

# The share of broken files means little before this many examples.
_SHARE_AFTER = 100
_LOOKAHEAD_PER_WORKER = 8

State = dict[str, Any]


class AudioStream:
    """Audio examples from weighted sources.

    Every example is a dict:

    * `id` (`str`): its place, `source:shard:row`, unique in the stream;
    * `input_values` (`np.ndarray` of shape `(num_samples,)`): float32, 16 kHz, mono, cropped, then normalised to zero
      mean and unit variance (as `Wav2Vec2FeatureExtractor` does, on what the model sees);
    * `text` (`str` or `None`): the transcript (of the whole, if cropped);
    * `num_samples` (`int`): length of `input_values`;
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
        crop_seconds: Longer examples are cropped to this, at a place that depends on (seed, epoch, id).
        normalised: `False` hands out waveforms as they are, in [-1, 1].
        max_broken_share: A larger share of undecodable files stops the stream.
        max_retries, retry_seconds: A network fault is retried so often, after so long (doubled each time).
        num_workers: Decoding threads; 0 decodes in the caller's. (Decoders release the GIL.)

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
        for name, seconds in (("max_seconds", max_seconds), ("crop_seconds", crop_seconds)):
            if seconds is not None and seconds < min_seconds:
                raise ValueError(f"{name} {seconds} is below min_seconds {min_seconds}: nothing would be left")
        self.seed, self.shuffle, self.repeat, self.rank, self.num_workers = seed, shuffle, repeat, rank, num_workers
        self.min_seconds, self.max_seconds, self.crop_seconds = min_seconds, max_seconds, crop_seconds
        self.normalised, self.max_broken_share = normalised, max_broken_share
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
        opened = [OpenSource(source, index, self._retry) for index, source in enumerate(sources)]
        self._readers = [ShuffledReader(source, **order) for source in opened]
        self._settings = order | {
            "repeat": repeat,
            "weights": [source.weight for source in sources],
            "num_shards": [source.num_shards for source in opened],
        }

    def initial_state(self) -> State:
        """The state at the beginning."""
        return {
            "settings": self._settings,
            "drawn": 0,
            "sources": [reader.initial_state() for reader in self._readers],
            "finished": 0,
            "counts": {"seen": 0, "broken": 0, "too_short": 0, "too_long": 0},
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

    def iterate(self, state: State | None = None) -> Iterator[tuple[dict[str, Any], State]]:
        """Yield `(example, state)`; `state` resumes with the example after it.

        A state is a JSON-able dict that must not be changed. `state["counts"]` says how many rows were seen, and how
        many dropped as broken, too short, or too long; `state["sources"][i]["epoch"]` is a source's epoch.

        Args:
            state: Where to begin, from a stream with the same settings; `None`: at the beginning.
        """
        state = state or self.initial_state()
        self._check_settings(state["settings"])
        counts = dict(state["counts"])
        last_useful = [source["epoch"] for source in state["sources"]]
        for raw, waveform, place in self._decoded(self._mixed(state)):
            counts["seen"] += 1
            outcome = self._judge(raw, waveform)
            if outcome is not None:
                counts[outcome] += 1
                self._check_counts(counts, barren=raw.epoch > last_useful[raw.source] + 1, source=raw.source)
                continue
            last_useful[raw.source] = raw.epoch
            input_values = self._crop(waveform, raw)
            if self.normalised:
                input_values = normalise(input_values)
            example = {"id": raw.id, "input_values": input_values, "text": raw.text, "num_samples": len(input_values)}
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

    def _decoded(
        self, rows: Iterable[tuple[RawExample, State]]
    ) -> Iterator[tuple[RawExample, np.ndarray | AudioDecodeError, State]]:
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

    def _decode(self, raw: RawExample) -> np.ndarray | AudioDecodeError:
        """The waveform, or why there is none. (Returned, not raised: it is the consumer who counts, in order.)"""
        try:
            data, name = self._retry.call(
                lambda: read_audio_bytes(raw.audio),
                lambda error: "://" in (raw.audio.get("path") or "") and is_network_fault(error),
                f"reading {raw.audio.get('path')}",
            )
            return decode_audio(data, name)
        except AudioDecodeError as error:
            return error
        except ConnectionError:
            raise
        except OSError as error:
            return AudioDecodeError(f"{raw.audio.get('path')} cannot be read: {error}")

    def _judge(self, raw: RawExample, waveform: np.ndarray | AudioDecodeError) -> str | None:
        """Why an example is dropped; `None` if it is not."""
        if isinstance(waveform, AudioDecodeError):
            logger.warning("skipping %s of %r: %s", raw.id, self._sources[raw.source].path, waveform)
            return "broken"
        if len(waveform) < max(self.min_seconds * SAMPLING_RATE, 1):
            return "too_short"
        if self.max_seconds is not None and len(waveform) > self.max_seconds * SAMPLING_RATE:
            return "too_long"
        return None

    def _check_counts(self, counts: dict[str, int], *, barren: bool, source: int, final: bool = False) -> None:
        said = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())
        if counts["broken"] > self.max_broken_share * max(counts["seen"], 0 if final else _SHARE_AFTER):
            raise ValueError(
                f"more than {self.max_broken_share:.1%} of the audio files cannot be decoded ({said}); "
                "repair or remove the files named in the log, or raise data.max_broken_share"
            )
        dropped = counts["broken"] + counts["too_short"] + counts["too_long"]
        # One of several ranks may be left without an example of a small set; that is no mistake in the data.
        if barren or (final and counts["seen"] == dropped and (dropped or self.world_size == 1)):
            raise ValueError(
                f"{self._sources[source].path!r} gives no usable example ({said}); check min_seconds and max_seconds"
            )

    def _crop(self, waveform: np.ndarray, raw: RawExample) -> np.ndarray:
        if self.crop_seconds is None:
            return waveform
        length = round(self.crop_seconds * SAMPLING_RATE)
        if len(waveform) <= length:
            return waveform
        start = random_generator(self.seed, "crop", raw.epoch, raw.id).integers(len(waveform) - length + 1)
        return waveform[start : start + length]

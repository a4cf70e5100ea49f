"""Batches by seconds of audio, with the state to resume from beside each.

loader = training_loader([AudioSource("folder-or-hub-id")], batch_seconds=60, crop_seconds=15)
loader.load_state(state)              # optional, from an earlier run
for batch, state in loader:           # endless; `state` resumes after this batch
    model(batch["input_values"], attention_mask=batch["attention_mask"])
"""

import atexit
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from lighthubert_hf.preprocessing import SAMPLING_RATE

from .sources import AudioSource, random_generator
from .streaming import AudioStream, State

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
_PREFETCHED_BATCHES = 2
_SECONDS_TO_END = 5  # what a thread that makes batches is given to finish what it is at


class AudioLoader:
    """Batches of an `AudioStream`, of rows of similar length.

    Examples are taken from the stream in windows; a window is sorted by length, cut into batches, and the batches
    are handed out in a shuffled order (longest first if the stream does not shuffle). The state is the stream's state
    at the beginning of the window and the number of batches handed out; resuming decodes at most one window again.

    Iterating yields `(batch, state)`:

    * `batch["input_values"]`: `torch.FloatTensor` of shape `(batch_size, num_samples)`, padded with zeros at the end;
    * `batch["attention_mask"]`: `torch.LongTensor` of the same shape, 1 where there is audio;
    * `batch["ids"]`, `batch["texts"]`: lists of `batch_size` strings (texts may be `None`);
    * `state`: a JSON-able dict that resumes with the batch after this one. It holds the stream's state as
      `state["stream"]`, with the counts of dropped examples.

    `iter(loader)` begins at what `load_state` was given, else at the beginning, every time. If the stream has
    decoding threads, batches are made in another thread, a few ahead; neither order nor states depend on that.

    Args:
        stream: Where examples come from; endless or one pass. It must bound the length of examples (`crop_seconds` or
            `max_seconds`).
        batch_seconds: Length of a batch at most, padding included.
        window_size: Number of (decoded) examples among which lengths are matched.
        equal_lengths: Crop the rows of a batch to the shortest one, at random places, so that nothing is padded. For
            models whose features depend on padding (group-norm feature extractors).
        max_examples: Stop after so many examples of the stream.

    Raises:
        ValueError: An example could be longer than a batch.
    """

    def __init__(
        self,
        stream: AudioStream,
        *,
        batch_seconds: float,
        window_size: int = 256,
        equal_lengths: bool = False,
        max_examples: int | None = None,
    ):
        bounds = [seconds for seconds in (stream.crop_seconds, stream.max_seconds) if seconds is not None]
        if not bounds or min(bounds) > batch_seconds:
            raise ValueError(
                f"a batch of {batch_seconds} s cannot hold every example (crop_seconds={stream.crop_seconds}, "
                f"max_seconds={stream.max_seconds}); set one of the two to at most batch_seconds"
            )
        if window_size < 1 or (max_examples is not None and max_examples < 1):
            raise ValueError(f"window_size and max_examples must be at least 1, got {window_size} and {max_examples}")
        self.stream = stream
        self.batch_samples = round(batch_seconds * SAMPLING_RATE)
        self.window_size, self.equal_lengths, self.max_examples = window_size, equal_lengths, max_examples
        self.start: State | None = None
        self.counts: dict[str, int] = {}  # rows seen and dropped so far, see `AudioStream.iterate`

    def load_state(self, state: State | None) -> None:
        """Let the next iterations begin after the batch that came with `state` (`None`: at the beginning)."""
        if state is not None and state["window_size"] != self.window_size:
            raise ValueError(
                f"the saved position is of a loader with window_size={state['window_size']}, this one has "
                f"{self.window_size}; resume with the same value, or start without the saved position"
            )
        self.start = state

    def load_states(self, states: Sequence[State]) -> None:
        """Go on where all processes of a run stood: exactly with as many of them, else as `AudioStream.dealt_anew`."""
        if len(states) == self.stream.world_size:
            return self.load_state(states[self.stream.rank])
        state, repeated = self.stream.dealt_anew([state["stream"] for state in states])
        if self.stream.rank == 0:
            logger.warning(
                "the checkpoint is of %d processes, this run has %d: each reads its own part of the data, so the "
                "parts are dealt anew and the epoch begins again; at most %d rows that were read come a second time",
                len(states),
                self.stream.world_size,
                repeated,
            )
        self.load_state({"stream": state, "window": 0, "taken": 0, "window_size": self.window_size})

    def __iter__(self) -> Iterator[tuple[Batch, State]]:
        batches = self._iterate(self.start)
        return _prefetched(batches, _PREFETCHED_BATCHES) if self.stream.num_workers else batches

    def _iterate(self, state: State | None) -> Iterator[tuple[Batch, State]]:
        state = state or {"stream": self.stream.initial_state(), "window": 0, "taken": 0}
        start, number, taken = state["stream"], state["window"], state["taken"]
        examples = self.stream.iterate(start, counts=self.counts)
        if self.max_examples is not None:
            examples = islice(examples, max(self.max_examples - number * self.window_size, 0))
        while window := list(islice(examples, self.window_size)):
            batches = self._cut([example for example, _ in window], number)
            for place in range(taken, len(batches)):
                batch = collate(batches[place])
                yield batch, {"stream": start, "window": number, "taken": place + 1, "window_size": self.window_size}
            start, number, taken = window[-1][1], number + 1, 0

    def _cut(self, window: list[dict[str, Any]], number: int) -> list[list[dict[str, Any]]]:
        """Cut a window into batches of at most `batch_samples`, padding included."""
        batches: list[list[dict[str, Any]]] = []
        for example in sorted(window, key=lambda example: -example["num_samples"]):
            # The first row of a batch is its longest.
            if batches and (len(batches[-1]) + 1) * batches[-1][0]["num_samples"] <= self.batch_samples:
                batches[-1].append(example)
            else:
                batches.append([example])
        if self.equal_lengths:
            batches = [self._crop_to_shortest(batch, number) for batch in batches]
        if self.stream.shuffle:
            random_generator(self.stream.seed, "batches", self.stream.rank, number).shuffle(batches)
        return batches

    def _crop_to_shortest(self, batch: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        length = batch[-1]["num_samples"]
        cropped = []
        for example in batch:
            generator = random_generator(self.stream.seed, "equal lengths", number, example["id"])
            start = generator.integers(example["num_samples"] - length + 1)
            input_values = example["input_values"][start : start + length]
            cropped.append({**example, "input_values": input_values, "num_samples": length})
        return cropped


def training_loader(
    sources: Sequence[AudioSource],
    *,
    batch_seconds: float,
    crop_seconds: float | None,
    window_size: int = 256,
    equal_lengths: bool = False,
    **stream_options: Any,
) -> AudioLoader:
    """An endless, shuffled loader. `stream_options` (`seed`, `rank`, `world_size`, …) go to `AudioStream`."""
    stream = AudioStream(sources, crop_seconds=crop_seconds, **stream_options)
    return AudioLoader(stream, batch_seconds=batch_seconds, window_size=window_size, equal_lengths=equal_lengths)


def validation_loader(
    sources: Sequence[AudioSource],
    *,
    batch_seconds: float,
    crop_seconds: float | None,
    window_size: int = 256,
    equal_lengths: bool = False,
    max_examples: int | None = None,
    **stream_options: Any,
) -> AudioLoader:
    """A loader of one pass, the same batches every time. Processes may end after different numbers of batches.

    `max_examples` is per process. `stream_options` go to `AudioStream`.
    """
    stream = AudioStream(sources, crop_seconds=crop_seconds, shuffle=False, repeat=False, **stream_options)
    return AudioLoader(
        stream,
        batch_seconds=batch_seconds,
        window_size=window_size,
        equal_lengths=equal_lengths,
        max_examples=max_examples,
    )


def collate(examples: Sequence[dict[str, Any]]) -> Batch:
    """Pad examples of an `AudioStream` with zeros and stack them; see `AudioLoader` for what a batch holds."""
    lengths = torch.tensor([example["num_samples"] for example in examples])
    input_values = np.zeros((len(examples), int(lengths.max())), dtype=np.float32)
    for row, example in zip(input_values, examples, strict=True):
        row[: example["num_samples"]] = example["input_values"]
    return {
        "input_values": torch.from_numpy(input_values),
        "attention_mask": (torch.arange(input_values.shape[1])[None] < lengths[:, None]).long(),
        "ids": [example["id"] for example in examples],
        "texts": [example["text"] for example in examples],
    }


def _prefetched(batches: Iterator, size: int) -> Iterator:
    """Run `batches` in a thread that is up to `size` items ahead; its exceptions come out here."""
    items: queue.Queue = queue.Queue(size)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in batches:
                if not put("item", item):
                    break
            else:
                put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            batches.close()

    # A daemon, so that an interpreter that exits in the middle of a stalled download does not wait for it long.
    thread = threading.Thread(target=produce, name="batches", daemon=True)

    def end() -> None:
        stop.set()
        thread.join(_SECONDS_TO_END)

    thread.start()
    # A thread that comes back from C++ code (Arrow's, a decoder's) to an interpreter that is gone aborts the program.
    atexit.register(end)
    unregister = atexit.unregister  # an iterator may live longer than this module's globals
    try:
        while True:
            kind, value = items.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        unregister(end)
        end()

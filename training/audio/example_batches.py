"""Endless training batches of labelled speech, from memory or from a stream.

Both kinds are a pure function of a small JSON state, and split over ranks by themselves, so that a resumed run sees
exactly what an uninterrupted one would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE

from .batching import Batch, training_loader
from .examples import SpeechExample, check_transcribed, transcript
from .sources import AudioSource


class MemoryBatches:
    """Endless training batches of examples in memory, an epoch after the other.

    In every epoch the utterances are sorted by their length times a random factor of up to 10 %, so that batches
    are padded little and yet differ from epoch to epoch, and the batches are shuffled.

    Args:
        examples: What to draw from.
        collate: Makes a batch of some of them.
        accept: Whether an example can be trained on; the others are left out and counted in `num_refused`.
        batch_seconds: Audio per batch and rank, padding included.
        seed: Seed of the order.
        rank, world_size: Every rank gets its own batches, equally many.

    `state` resumes after the batch that was yielded last: assign it and iterate anew. It counts the batches of all
    ranks, so that another number of them goes on where these were.
    """

    def __init__(
        self,
        examples: list[SpeechExample],
        collate: Callable[[list[SpeechExample]], Batch],
        accept: Callable[[SpeechExample], bool],
        *,
        batch_seconds: float,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.examples = [example for example in examples if accept(example)]
        self.num_refused = len(examples) - len(self.examples)
        if not self.examples:
            raise ValueError(f"none of the {len(examples)} training utterances can be trained on")
        self.collate = collate
        self.batch_seconds, self.seed = batch_seconds, seed
        self.rank, self.world_size = rank, world_size
        self.state: dict[str, Any] = {"epoch": 0, "done": 0}

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on where all processes of a run stood, exactly, with any number of processes."""
        self.state = states[0]

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The batches of all ranks."""
        rng = np.random.default_rng([self.seed, epoch])
        lengths = np.array([len(example.waveform) for example in self.examples])
        order = np.argsort(-lengths * rng.uniform(0.9, 1.1, len(lengths)))
        groups, group, longest = [], [], 0
        for index in order:
            longest = max(longest, lengths[index])
            if group and (len(group) + 1) * longest > self.batch_seconds * SAMPLING_RATE:
                groups.append(group)
                group, longest = [], lengths[index]
            group.append(int(index))
        groups.append(group)
        groups = [groups[i] for i in rng.permutation(len(groups))]
        return groups * -(-self.world_size // len(groups))

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.state["epoch"], self.state["done"]
        while True:
            batches = self._epoch(epoch)
            while done + self.world_size <= len(batches):  # those that do not go round are left out
                own = batches[done + self.rank]
                done += self.world_size
                self.state = {"epoch": epoch, "done": done}
                yield self.collate([self.examples[index] for index in own])
            epoch, done = epoch + 1, 0


class StreamedBatches:
    """Endless training batches of a stream, for more data than fit in memory.

    `accept` says whether an example can be trained on; the others are left out and counted in `num_refused`. With
    `label_column` the sources name that column as their `text_column`, as the one that a stream carries along.
    `counts` says how many rows of this process's part were seen and dropped, in every epoch anew.
    """

    def __init__(
        self,
        sources: list[AudioSource],
        collate: Callable[[list[SpeechExample]], Batch],
        accept: Callable[[SpeechExample], bool],
        *,
        batch_seconds: float,
        max_seconds: float,
        max_broken_share: float = 0.05,
        seed: int,
        label_column: str | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        check_transcribed(sources)
        self.collate, self.accept, self.label_column = collate, accept, label_column
        self.num_refused = 0
        self.state: dict[str, Any] | None = None
        self.loader = training_loader(
            sources,
            batch_seconds=batch_seconds,
            crop_seconds=None,  # a part of the audio would not be what was transcribed
            max_seconds=max_seconds,
            max_broken_share=max_broken_share,
            labelled=True,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    @property
    def counts(self) -> dict[str, int]:
        return self.loader.counts

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on where all processes of a run stood: exactly with as many of them, see `AudioLoader.load_states`."""
        self.loader.load_states(states)
        self.state = self.loader.start

    def __iter__(self) -> Iterator[Batch]:
        if self.state is not None:
            self.loader.load_state(self.state)
        for batch, state in self.loader:
            lengths = batch["attention_mask"].sum(-1).tolist()
            rows = zip(batch["ids"], batch["input_values"].numpy(), lengths, batch["texts"], strict=True)
            examples = [self._example(name, wave[:length], text) for name, wave, length, text in rows]
            accepted = [example for example in examples if self.accept(example)]
            self.num_refused += len(examples) - len(accepted)
            self.state = state
            if accepted:
                yield self.collate(accepted)

    def _example(self, name: str, waveform: np.ndarray, text: Any) -> SpeechExample:
        if self.label_column is None:
            return SpeechExample(name, waveform, transcript(text, name))
        return SpeechExample(name, waveform, None, {self.label_column: text})

"""Labelled speech: read once and kept in memory at half precision, or streamed; in batches by seconds of audio.

Both kinds of batches are endless for training, a pure function of a small JSON state, and split over ranks by
themselves, so that a resumed run sees exactly what an uninterrupted one would have seen.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from lighthubert_hf.model.feature_encoder import receptive_field

from .batching import training_loader
from .streaming import AudioSource, AudioStream

SAMPLING_RATE = 16_000
BYTES_PER_SECOND = 2 * SAMPLING_RATE
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SpeechExample:
    """One utterance: `waveform` is `(num_samples,)` float16, 16 kHz mono, zero mean and unit variance. `text` is its
    transcript, or `columns` hold its labels.

    float16 keeps 11 bits of every sample, 66 dB below the signal, at half the memory.
    """

    id: str
    waveform: np.ndarray
    text: str | None
    columns: dict[str, Any] | None = None

    @classmethod
    def of(cls, item: dict[str, Any], label_columns: Sequence[str] = ()) -> "SpeechExample":
        """An example of an `AudioStream`. ValueError if it lacks its transcript, or a label."""
        waveform = item["input_values"].astype(np.float16)
        if not label_columns:
            return cls(item["id"], waveform, transcript(item["text"], item["id"]))
        for column in label_columns:
            if item["columns"].get(column) is None:
                raise ValueError(f"the utterance {item['id']} has no {column!r}; it has {sorted(item['columns'])}")
        return cls(item["id"], waveform, None, item["columns"])


class DoesNotFit(ValueError):
    """More labelled speech than may be kept in memory."""


def read_examples(
    sources: list[AudioSource],
    *,
    label_columns: Sequence[str] = (),
    minutes: float | None = None,
    max_examples: int | None = None,
    max_seconds: float | None = None,
    shuffle_seed: int | None = None,
    max_gigabytes: float = 4.0,
    description: str = "reading speech",
    progress: bool = True,
) -> list[SpeechExample]:
    """Read labelled utterances into memory.

    Args:
        sources: Where they are; every source needs a `text_column`, or `all_columns` for labels.
        label_columns: Columns with the labels; none: transcripts are read.
        minutes: Stop once this much is read, from every source its share by weight; with `shuffle_seed` that is a
            random part of the data, the same for one seed.
        max_examples: Stop after this many.
        max_seconds: Leave longer utterances out.
        shuffle_seed: Read in a random order; `None`: in the stored order.
        max_gigabytes: Bound on the memory taken.
        description: What the progress bar says.
        progress: Whether to show one.

    Raises:
        DoesNotFit: if `max_gigabytes` is reached before the data end.
        ValueError: if a source has no transcripts or there is nothing to read.
    """
    from tqdm.auto import tqdm

    if not label_columns:
        check_transcribed(sources)
    examples, limit = [], int(max_gigabytes * 1e9 / BYTES_PER_SECOND * SAMPLING_RATE)
    weights = sum(source.weight for source in sources)
    with tqdm(desc=description, unit="s", disable=not progress) as bar:
        for source in sources:
            stream = AudioStream(
                [source],
                seed=shuffle_seed or 0,
                shuffle=shuffle_seed is not None,
                repeat=False,
                max_seconds=max_seconds,
            )
            wanted = None if minutes is None else minutes * 60 * SAMPLING_RATE * source.weight / weights
            read = 0
            for item in stream:
                example = SpeechExample.of(item, label_columns)
                read += len(example.waveform)
                limit -= len(example.waveform)
                if limit < 0:
                    raise DoesNotFit(f"the labelled speech takes more than {max_gigabytes:g} GB")
                examples.append(example)
                bar.update(round(len(example.waveform) / SAMPLING_RATE, 1))
                if len(examples) == max_examples:
                    return examples
                if wanted is not None and read >= wanted:
                    break
    if not examples:
        raise ValueError(f"no labelled utterances in {[source.path for source in sources]}")
    return examples


def check_transcribed(sources: list[AudioSource]) -> None:
    """Raise a ValueError if a source does not name its transcripts."""
    silent = [source.path for source in sources if source.text_column is None]
    if silent:
        raise ValueError(f"no transcripts: set text_column of the sources {silent}, for example text_column: text")


def transcript(text: str | None, name: str) -> str:
    if text is None:
        raise ValueError(f"the utterance {name} has no transcript; leave it out of the data or fill its text column")
    return text


def batches_of_similar_length(lengths: Sequence[int], batch_seconds: float) -> list[list[int]]:
    """Indices in batches of at most `batch_seconds`, padding counted; the longest utterances come first.

    An utterance longer than that is a batch of its own.
    """
    most, batches, batch = batch_seconds * SAMPLING_RATE, [], []
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            batches.append(batch)
            batch = []
        batch.append(int(index))
    return [*batches, batch] if batch else batches


def shortest_input(config: PretrainedConfig) -> int:
    """Samples a training batch is padded to at least: models need one frame, and transformers' SpecAugment as many as
    its masks are long."""
    frames = config.mask_time_length if config.apply_spec_augment else 1
    return receptive_field(config) + (frames - 1) * math.prod(config.conv_stride)


def pad_waveforms(waveforms: list[np.ndarray], min_samples: int = 0) -> Batch:
    """`input_values` `(rows, samples)` float32, zero-padded on the right, and `attention_mask` of the same shape."""
    longest = max(min_samples, *(len(waveform) for waveform in waveforms))
    input_values = torch.zeros(len(waveforms), longest)
    attention_mask = torch.zeros(len(waveforms), longest, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        input_values[row, : len(waveform)] = torch.from_numpy(waveform)
        attention_mask[row, : len(waveform)] = 1
    return {"input_values": input_values, "attention_mask": attention_mask}


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

    `state` resumes after the batch that was yielded last: assign it and iterate anew.
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
        self.state: dict[str, Any] = {"epoch": 0, "batch": 0}

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The batches of all ranks. Those that do not go round are left out, or repeated if there are too few."""
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
        groups *= -(-self.world_size // len(groups))
        return groups[: len(groups) // self.world_size * self.world_size]

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self.state["epoch"], self.state["batch"]
        while True:
            own = self._epoch(epoch)[self.rank :: self.world_size]
            for number in range(start, len(own)):
                self.state = {"epoch": epoch, "batch": number + 1}
                yield self.collate([self.examples[index] for index in own[number]])
            epoch, start = epoch + 1, 0


class StreamedBatches:
    """Endless training batches of a stream, for more data than fit in memory.

    `accept` says whether an example can be trained on; the others are left out and counted in `num_refused`. With
    `label_column` the sources name that column as their `text_column`, as the one that a stream carries along.
    """

    def __init__(
        self,
        sources: list[AudioSource],
        collate: Callable[[list[SpeechExample]], Batch],
        accept: Callable[[SpeechExample], bool],
        *,
        batch_seconds: float,
        max_seconds: float,
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
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

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

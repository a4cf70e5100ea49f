"""INTERFACE (implementation follows): batches by seconds of audio, with the state to resume from handed out beside each.

loader = training_loader([AudioSource("folder-or-hub-id")], batch_seconds=60, crop_seconds=15, seed=0, rank=0, world_size=1)
loader.load_state(state)              # optional: JSON-able dict from an earlier run
for batch, state in loader:           # endless; `state` resumes right AFTER this batch, exactly
    ...                               # batch: input_values (B, T) float32, attention_mask (B, T) int64, ids, texts
"""

from collections.abc import Iterator
from typing import Any

import torch

from .streaming import AudioSource, AudioStream

Batch = dict[str, torch.Tensor | list]  # input_values, attention_mask, ids (list[str]), texts (list[str | None])


class AudioLoader:
    """Batches of one `AudioStream`, bucketed by length inside windows of `window_size` examples.

    Iterating is a pure function of the state: `iter(loader)` starts at what `load_state` was given (else at the
    beginning), every time. Endless if `stream.repeat`, else one pass.
    """

    def __init__(
        self,
        stream: AudioStream,
        *,
        batch_seconds: float,  # at most this many seconds per batch, padding included
        window_size: int = 256,  # examples among which lengths are matched
        equal_lengths: bool = False,  # crop every batch to its shortest row (teachers with a group-norm extractor)
    ): ...

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, Any]]]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def training_loader(
    sources: list[AudioSource],
    *,
    batch_seconds: float,
    crop_seconds: float,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    window_size: int = 256,
    equal_lengths: bool = False,
    **stream_options,
) -> AudioLoader:
    """Endless, shuffled, randomly cropped; `stream_options` go to `AudioStream`."""


def validation_loader(
    sources: list[AudioSource],
    *,
    batch_seconds: float,
    crop_seconds: float | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    equal_lengths: bool = False,
    max_examples: int | None = None,
    **stream_options,
) -> AudioLoader:
    """One pass in the stored order, the same on every call; ranks may end after different numbers of batches."""

"""Waveforms of different lengths in one batch: which go together, and how they are padded."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from lighthubert_hf.model.front_end import receptive_field
from lighthubert_hf.padding import is_padding_invariant
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .batching import Batch


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


def seconds_together(model: PreTrainedModel, batch_seconds: float) -> float:
    """How much audio to run as one batch: `batch_seconds`, or 0 (each waveform alone) if padding changes features."""
    return batch_seconds if is_padding_invariant(model) else 0.0


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

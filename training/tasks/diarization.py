"""Who speaks when: activity by frame, its loss, and how it is smoothed."""

from itertools import permutations
from typing import Any

import torch
from torch.nn import functional as F

from lighthubert_hf.preprocessing import SAMPLING_RATE

# SUPERB tries thresholds of 0.3 to 0.7 and filters of 1 and 11 frames on the test set; here both are fixed beforehand.
THRESHOLD, MEDIAN_FRAMES = 0.5, 11
MOST_SPEAKERS = 6  # the loss tries all their orders, 720 of six


def frame_activity(
    segments: list[dict[str, Any]], num_frames: int, stride: int, field: int, num_speakers: int = 0
) -> torch.LongTensor:
    """Who is active in the middle of the samples that each frame sees: `(frames, speakers)` of 0 or 1.

    Args:
        segments: `{speaker, start, end}`, in seconds; speakers are ordered by their names.
        num_frames: Of the recording.
        stride, field: Samples at 16 kHz from a frame to the next, and that a frame sees.
        num_speakers: The least to return; those that the recording lacks are never active.
    """
    speakers = sorted({segment["speaker"] for segment in segments})
    middles = (torch.arange(num_frames) * stride + field / 2) / SAMPLING_RATE
    activity = torch.zeros(num_frames, max(num_speakers, len(speakers)), dtype=torch.long)
    for segment in segments:
        inside = (middles >= segment["start"]) & (middles < segment["end"])
        activity[inside, speakers.index(segment["speaker"])] = 1
    return activity


def pit_bce(logits: torch.Tensor, speaking: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy under the best assignment of outputs to speakers (Yu et al., 2017,
    https://arxiv.org/abs/1607.00325): of each recording the mean over valid frames and speakers, then over recordings.

    Args:
        logits: `(rows, frames, speakers)`.
        speaking: of the same shape, 1 where a speaker is active.
        lengths: `(rows,)`, valid frames.
    """
    num_speakers = logits.shape[2]
    valid = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
    # cost[b, i, j]: output i taken for speaker j.
    outputs = logits[..., :, None].expand(*logits.shape, num_speakers)
    targets = speaking[..., None, :].expand_as(outputs).to(logits.dtype)
    errors = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    cost = (errors * valid[..., None, None]).sum(1) / lengths[:, None, None]
    order = torch.arange(num_speakers)
    assigned = [cost[:, order, list(choice)].mean(-1) for choice in permutations(range(num_speakers))]
    return torch.stack(assigned).amin(0).mean()


def median_filter(activity: torch.Tensor, size: int) -> torch.Tensor:
    """Medians over `size` frames, an odd number, of `(frames, speakers)`; beyond the ends there are zeros."""
    padded = F.pad(activity.T, (size // 2, size // 2))
    return padded.unfold(1, size, 1).median(-1).values.T

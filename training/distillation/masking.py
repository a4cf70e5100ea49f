"""Time masks for the student: a function of (seed, step, example), of nothing else."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch


def draw_time_mask(
    num_frames: Sequence[int],
    ids: Sequence[str],
    *,
    seed: int,
    step: int,
    probability: float,
    length: int,
    min_masks: int,
) -> torch.BoolTensor:
    """Spans to hide from the student, drawn as in wav2vec 2.0 (`compute_mask_indices` with static length).

    Each row has `probability * frames / length` spans (rounded at random, at least `min_masks`) of `length` frames
    whose starts differ; spans may overlap. A row's mask depends on (`seed`, `step`, its id and length) alone, so that
    it is the same on every rank, after every resume, and however examples are put together into batches.

    Args:
        num_frames: Valid frames of each row; nothing behind them is masked.
        ids: Name of each row's example.
        probability: Share of frames that spans would cover if they did not overlap.
        length: Frames of a span; at most half of a short clip's frames.
        min_masks: Least number of spans in a row.

    Returns:
        `(rows, max(num_frames))`, true where a frame is hidden.
    """
    mask = np.zeros((len(num_frames), max(num_frames, default=0)), dtype=bool)
    for row, (frames, name) in enumerate(zip(num_frames, ids, strict=True)):
        span = min(length, frames // 2)
        if span == 0:
            continue
        rng = np.random.default_rng([seed, step, zlib.crc32(name.encode())])
        num_spans = max(int(probability * frames / length + rng.random()), min_masks)
        places = frames - span + 1
        starts = rng.choice(places, min(num_spans, places, frames // span), replace=False)
        mask[row, (starts[:, None] + np.arange(span)).ravel()] = True
    return torch.from_numpy(mask)

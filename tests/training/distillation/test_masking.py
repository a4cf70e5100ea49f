"""Time masks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf.training.distillation.masking import draw_time_mask

SETTINGS = {"probability": 0.65, "length": 10, "min_masks": 2}


@given(
    frames=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**6),
    probability=st.floats(0, 1),
    length=st.integers(1, 40),
    min_masks=st.integers(0, 5),
)
def test_masks_stay_inside_and_leave_something(frames, seed, step, probability, length, min_masks):
    ids = [f"clip-{index}" for index in range(len(frames))]
    mask = draw_time_mask(
        frames, ids, seed=seed, step=step, probability=probability, length=length, min_masks=min_masks
    )
    assert mask.shape == (len(frames), max(frames))
    for row, valid in zip(mask, frames, strict=True):
        assert not row[valid:].any()
        if valid > 1 and min_masks:
            assert row.any()
        if row.any():
            # Runs of masked frames are at least as long as a span.
            padded = torch.nn.functional.pad(row.int(), (1, 1))
            edges = padded.diff().nonzero()[:, 0].view(-1, 2)
            assert (edges[:, 1] - edges[:, 0] >= min(length, valid // 2)).all()


def test_a_mask_depends_on_seed_step_and_example_alone():
    together = draw_time_mask([100, 60, 80], ["a", "b", "c"], seed=3, step=7, **SETTINGS)
    alone = draw_time_mask([60], ["b"], seed=3, step=7, **SETTINGS)
    assert torch.equal(together[1, :60], alone[0])
    for change in ({"seed": 4, "step": 7}, {"seed": 3, "step": 8}):
        assert not torch.equal(alone, draw_time_mask([60], ["b"], **change, **SETTINGS))
    assert not torch.equal(together[0, :60], draw_time_mask([100], ["z"], seed=3, step=7, **SETTINGS)[0, :60])


def test_share_of_masked_frames():
    """Spans of 10 covering 65 % with overlaps hide about half, as in wav2vec 2.0 (49 % at 15 s)."""
    frames = [750] * 50
    mask = draw_time_mask(frames, [str(i) for i in range(50)], seed=0, step=0, **SETTINGS)
    assert mask.float().mean().item() == pytest.approx(0.48, abs=0.03)
    assert np.isclose(draw_time_mask([750], ["a"], seed=0, step=0, probability=0, length=10, min_masks=0).sum(), 0)

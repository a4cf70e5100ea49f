"""Heads: what they compute, what padding may not change, and what a gradient may not reach."""

import numpy as np
import pytest
import torch

from lighthubert_hf.training.superb.heads import (
    Diarizer,
    FrameClassifier,
    RecurrentRecogniser,
    UtteranceClassifier,
    WeightedSum,
    XVector,
)
from lighthubert_hf.training.superb.spec_augment import spec_augment

from ...precision import assert_as_exact, assert_rounded_alike, in_double

STATES, WIDTH = 3, 8
SMALL = {"projection": 16, "recurrent": 12, "size": 16, "pooled": 24}
HEADS = {
    UtteranceClassifier: ("projection",),
    FrameClassifier: ("projection",),
    RecurrentRecogniser: ("projection", "recurrent"),
    XVector: ("size", "pooled"),
    Diarizer: ("recurrent",),
}


def make(kind, outputs: int = 4):
    torch.manual_seed(0)
    return kind(STATES, WIDTH, outputs, **{name: SMALL[name] for name in HEADS[kind]})


def features(frames: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, frames, STATES, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_weighted_sum_by_hand():
    layer = WeightedSum(STATES)
    given = features(5)
    assert_rounded_alike(layer(given), given.mean(2), 2 * STATES)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 50.0, 0.0]))
    assert_rounded_alike(layer(given), given[:, :, 1], 2 * STATES)
    assert sum(layer.shares()) == pytest.approx(1)


@pytest.mark.numerical
@pytest.mark.parametrize("kind", HEADS)
def test_padding_changes_nothing(kind):
    head = make(kind).eval()
    short, long = features(21), features(30, seed=1)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 0, 0, 0, 0, 9)), long])
    together = head(padded, torch.tensor([21, 30]))
    alone, exact = head(short, torch.tensor([21])), in_double(head)(short.double(), torch.tensor([21]))
    assert_as_exact(together[:1, :21] if alone.ndim == 3 else together[:1], alone, exact)


def test_utterances_shorter_than_the_tdnn():
    head = make(XVector).eval()
    found = head(torch.cat([features(2), features(2, seed=1)]), torch.tensor([2, 1]))
    assert found.isfinite().all()
    alone, length = features(2, seed=1)[:, :1], torch.tensor([1])
    assert_as_exact(found[1:], head(alone, length), in_double(head)(alone.double(), length))


def test_the_mean_may_be_taken_beforehand():
    head = make(UtteranceClassifier)
    given = features(17)
    found = head(given.mean(1, keepdim=True), torch.tensor([1]))
    length = torch.tensor([17])
    assert_as_exact(found, head(given, length), in_double(head)(given.double(), length))


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_reach_every_part_of_the_head(kind):
    head = make(kind).train()
    (head(features(40, 2), torch.tensor([40, 30])) * torch.randn(4)).sum().backward()
    untouched = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert not untouched
    assert head.weighted_sum.weight.grad.abs().sum() > 0


def test_spec_augment_hides_something_and_keeps_padding():
    torch.manual_seed(0)
    given = torch.ones(4, 100, 64)
    given[0, 50:] = 0
    augmented = spec_augment(given, torch.tensor([50, 100, 100, 100]))
    assert augmented.shape == given.shape
    assert not augmented[0, 50:].any()
    hidden = (augmented[1:] == 0).float().mean().item()
    assert 0.02 < hidden < 0.75
    assert np.isin(augmented.numpy().round(4), (0, 1)).all()  # warping a constant leaves it


@pytest.mark.parametrize("frames", [1, 2, 11, 13])
def test_spec_augment_survives_short_clips(frames):
    for seed in range(20):
        torch.manual_seed(seed)
        assert spec_augment(torch.randn(1, frames, 6), torch.tensor([frames])).isfinite().all()

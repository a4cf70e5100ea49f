"""The two losses against what they are by definition."""

import math

import pytest
import torch
from torch.nn import functional as F

from lighthubert_hf.training.tasks.diarization import pit_bce
from lighthubert_hf.training.tasks.verification import am_softmax

from ...precision import assert_rounded_alike


def test_am_softmax_by_hand():
    cosines, labels = torch.tensor([[0.9, 0.2, -0.3], [0.1, 0.4, 0.6]]), torch.tensor([0, 1])
    expected = []
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        own = math.exp(30 * (row[label] - 0.4))
        others = sum(math.exp(30 * value) for index, value in enumerate(row) if index != label)
        expected.append(-math.log(own / (own + others)))
    # Differences and exponentials of logits of up to 30.
    assert_rounded_alike(am_softmax(cosines, labels), torch.tensor(expected).mean(), 4, size=30)


def test_pit_picks_the_right_permutation():
    generator = torch.Generator().manual_seed(0)
    speaking = torch.randint(0, 2, (3, 20, 2), generator=generator)
    lengths = torch.tensor([20, 13, 7])
    logits = 4.0 * (2 * speaking - 1) + torch.randn(3, 20, 2, generator=generator)
    swapped = logits.clone()
    swapped[1] = swapped[1].flip(-1)  # in one recording the outputs are the other way round
    rows = [
        F.binary_cross_entropy_with_logits(logits[row, :length], speaking[row, :length].float())
        for row, length in enumerate(lengths.tolist())
    ]
    assert_rounded_alike(pit_bce(logits, speaking, lengths), torch.stack(rows).mean(), logits.numel())
    assert_rounded_alike(pit_bce(swapped, speaking, lengths), pit_bce(logits, speaking, lengths), logits.numel())


def test_padding_has_no_say():
    speaking, lengths = torch.ones(1, 8, 2), torch.tensor([5])
    logits = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    pit_bce(logits, speaking, lengths).backward()
    assert logits.grad[0, :5].all()
    assert not logits.grad[0, 5:].any()


@pytest.mark.parametrize("num_speakers", [1, 3])
def test_any_number_of_speakers(num_speakers):
    speaking = torch.randint(0, 2, (2, 30, num_speakers), generator=torch.Generator().manual_seed(2))
    order = torch.randperm(num_speakers, generator=torch.Generator().manual_seed(3))
    logits = 20.0 * (2 * speaking[..., order] - 1)
    assert pit_bce(logits, speaking, torch.tensor([30, 30])) < 1e-6

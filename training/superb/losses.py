"""The two losses that torch does not have: additive-margin softmax and permutation-invariant cross-entropy."""

from itertools import permutations

import torch
from torch.nn import functional as F


def am_softmax(cosines: torch.Tensor, labels: torch.Tensor, scale: float = 30.0, margin: float = 0.4) -> torch.Tensor:
    r"""Additive-margin softmax (Wang et al., 2018, https://arxiv.org/abs/1801.05599), the mean over rows.

    $$ -\log \frac{e^{s (\cos\theta_y - m)}}{e^{s (\cos\theta_y - m)} + \sum_{j \ne y} e^{s \cos\theta_j}} $$

    Args:
        cosines: `(rows, classes)`, between embeddings and class vectors.
        labels: `(rows,)`.
    """
    margins = margin * F.one_hot(labels, cosines.shape[1])
    return F.cross_entropy(scale * (cosines - margins), labels)


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

"""Do two utterances come from one speaker? The loss, and lists of trials."""

from pathlib import Path

import torch
from torch.nn import functional as F

from lighthubert_hf.absent import absent


def am_softmax(cosines: torch.Tensor, labels: torch.Tensor, scale: float = 30.0, margin: float = 0.4) -> torch.Tensor:
    r"""Additive-margin softmax (Wang et al., 2018, https://arxiv.org/abs/1801.05599), the mean over rows.

    $$ -\log \frac{e^{s (\cos\theta_y - m)}}{e^{s (\cos\theta_y - m)} + \sum_{j \ne y} e^{s \cos\theta_j}} $$

    Args:
        cosines: `(rows, classes)`, between embeddings and class vectors.
        labels: `(rows,)`.
    """
    margins = margin * F.one_hot(labels, cosines.shape[1])
    return F.cross_entropy(scale * (cosines - margins), labels)


def read_trials(path: Path) -> list[tuple[int, str, str]]:
    """Lines `1 ID ID` (one speaker) or `0 ID ID` (two), as VoxCeleb writes them. ValueError for any other."""
    if not path.is_file():
        raise absent("list of trials", path)
    trials = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise ValueError(f"line {number} of {path} must be '1 ID ID' or '0 ID ID', got {line!r}")
        trials.append((int(fields[0]), fields[1], fields[2]))
    return trials

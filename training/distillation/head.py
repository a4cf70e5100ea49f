"""The prediction head that a student which starts as its teacher begins with: fitted, not random.

A random head makes the first steps tear up the weights below it, which were right. The head is linear, so the best one
for weights as they are is a least-squares problem, solved on a minute of audio.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.model.elastic import ElasticHead
from lighthubert_hf.subnets import named_subnets
from lighthubert_hf.training.audio.batching import Batch

from .step import DistillationModel

RIDGE = 1e-3  # of the mean square of an input


@torch.no_grad()
def fit_head(model: DistillationModel, batches: Iterable[Batch], *, seed: int = 0, num_random: int = 2) -> None:
    r"""Set the student's prediction head to the ridge regression of the targets on its last hidden states, in place.

    $$ W = \Big(\sum_{t} z_t z_t^\top + \lambda I\Big)^{-1} \sum_t z_t \, y_t^\top, \qquad
       \lambda = \tfrac{1}{1000} \operatorname{mean} \operatorname{diag} \sum_t z_t z_t^\top $$

    over the valid frames of unmasked audio. One head of a supernet serves subnets of all widths: it is fitted on some
    of each width together, the states of narrow ones counting as zero beyond their width. A width with a head of its
    own (`head_per_width`) has it fitted on its subnets alone.

    Args:
        model: Whose objective is `lighthubert`.
        batches: Some audio; a minute does.
        seed: Of the subnets.
        num_random: Random subnets of each width, beside the smallest, the default and the largest one.
    """
    student = model.student
    was_training, active = student.training, None if student.search_space is None else student.active_subnet
    student.eval()
    subnets: list[Subnet | None] = [None] if active is None else _of_every_width(student, num_random, seed)
    sums: dict[nn.Parameter, _NormalEquations] = {}
    for batch in batches:
        prepared = model.prepare(batch, masking=None, seed=0, step=0)
        (targets,) = prepared.targets
        valid = prepared.valid[:, : targets.shape[1]]
        for subnet in subnets:
            features = model.features(prepared, subnet)
            if subnet is not None:
                student.set_active_subnet(subnet)
            states = student.lighthubert.encode(features, prepared.attention_mask).last_hidden_state
            weight = _weight_of(student.prediction_head, states.shape[2])
            equations = sums.setdefault(weight, _NormalEquations(*reversed(weight.shape)))
            equations.add(states[:, : targets.shape[1]][valid], targets[valid])
    for weight, equations in sums.items():
        weight.copy_(equations.solution().T)
    student.train(was_training)
    if active is not None:
        student.set_active_subnet(active)


def _of_every_width(student: LightHubertForPreTraining, num_random: int, seed: int) -> list[Subnet]:
    space, rng = student.search_space, random.Random(f"subnets of a head of seed {seed}")
    drawn = [
        replace(space, hidden_size=(width,)).sample(rng) for width in space.hidden_size for _ in range(num_random)
    ]
    return [*named_subnets(student.config).values(), *drawn]


def _weight_of(head: nn.Linear, width: int) -> nn.Parameter:
    """What a subnet of that width reads its prediction with, first columns or weights of its own."""
    own = head.per_width if isinstance(head, ElasticHead) else None
    return own[str(width)].weight if own is not None and str(width) in own else head.weight


class _NormalEquations:
    """Of a linear map without bias, from rows of at most `inputs` numbers, zero beyond them, to `outputs`."""

    def __init__(self, inputs: int, outputs: int):
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.cross = torch.zeros(inputs, outputs, dtype=torch.float64)

    def add(self, rows: torch.Tensor, wanted: torch.Tensor) -> None:
        rows, width = rows.double().cpu(), rows.shape[1]
        self.gram[:width, :width] += rows.T @ rows
        self.cross[:width] += rows.T @ wanted.double().cpu()

    def solution(self) -> torch.Tensor:
        """`(inputs, outputs)`."""
        penalty = RIDGE * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        return torch.linalg.solve(self.gram + penalty, self.cross)

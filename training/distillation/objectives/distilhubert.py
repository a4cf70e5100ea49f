"""DistilHuBERT's objective: predict several teacher layers from the student's last one."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from lighthubert_hf.training.recipes.sections import NonNegativeFloat, PositiveInt, Section

from .base import Objective, PrefixLinear, TeacherOutput, TeacherRequest, thirds


class DistilHubertObjectiveSection(Section):
    name: Literal["distilhubert"]
    layers: list[PositiveInt] | None = Field(
        None, description="None: the layers at each third of the teacher, [4, 8, 12] of twelve"
    )
    cosine_weight: NonNegativeFloat = 1.0


class DistilHubertObjective(Objective):
    r"""The DistilHuBERT loss (Chang et al. 2022, https://huggingface.co/papers/2110.01900).

    $$ \mathcal{L} = \frac{1}{T} \sum_t \sum_{l \in S} \Big( \frac{1}{D} \lVert W_l z_t - y_{l,t} \rVert_1
       - \lambda \log \sigma(\cos(W_l z_t, y_{l,t})) \Big) $$

    \(S\) = `layers` of the teacher; \(z\) the student's last hidden state, \(W_l\) one linear head per layer. The
    paper masks nothing: leave the recipe's `masking` empty.
    """

    def __init__(self, settings: DistilHubertObjectiveSection, teacher_sizes: tuple[int, int], hidden_size: int):
        """`teacher_sizes`: number of layers and hidden size."""
        super().__init__()
        num_teacher_layers, target_size = teacher_sizes
        self.settings, self.layers = settings, settings.layers or thirds(num_teacher_layers)
        self.heads = nn.ModuleList(PrefixLinear(hidden_size, target_size) for _ in self.layers)

    @property
    def request(self) -> TeacherRequest:
        return TeacherRequest(hidden_states=tuple(self.layers))

    def targets(self, clean: TeacherOutput, masked, valid, time_mask) -> list[torch.Tensor]:
        return [clean.hidden_states[layer].float() for layer in self.layers]

    def predictions(self, student, outputs) -> list[torch.Tensor]:
        return [head(outputs.last_hidden_state) for head in self.heads]

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        total = 0
        for prediction, target in zip(predictions, targets, strict=True):
            cosine = F.cosine_similarity(prediction, target, dim=-1)
            total = total + (prediction - target).abs().mean(-1) - self.settings.cosine_weight * F.logsigmoid(cosine)
        return total

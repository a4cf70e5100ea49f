"""DPHuBERT's objective: match some of the teacher's hidden states through shared linear maps."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from lighthubert_hf.training.recipes.sections import NonNegativeFloat, NonNegativeInt, Section

from .base import (
    Objective,
    PrefixLinear,
    TeacherOutput,
    TeacherRequest,
    initialise_as_identity,
    matched_depth,
    states_by_depth,
    thirds,
)


class DPHubertObjectiveSection(Section):
    name: Literal["dphubert"]
    layer_groups: list[list[NonNegativeInt]] | None = Field(
        None, description="None: the input, and the layers at each third of the teacher, [[0], [4, 8, 12]] of twelve"
    )
    cosine_weight: NonNegativeFloat = 1.0


class DPHubertObjective(Objective):
    r"""The DPHuBERT loss (Peng et al. 2023, https://huggingface.co/papers/2305.17651).

    $$ \mathcal{L} = \frac{1}{T} \sum_t \frac{1}{|S|} \sum_{l \in S} \Big(
       \frac{1}{D} \lVert A_{g(l)} h_{l,t} - y_{l,t} \rVert_1 - \lambda \cos(A_{g(l)} h_{l,t}, y_{l,t}) \Big) $$

    \(S\) are the teacher's layers in `layer_groups` (0 is the first layer's input), \(g(l)\) the group of \(l\); the
    layers of a group share one linear map \(A\), which starts as the identity. The published loss masks nothing: leave
    the recipe's `masking` empty. A student of another depth is read at the same share of its layers.
    """

    def __init__(
        self, settings: DPHubertObjectiveSection, teacher_sizes: tuple[int, int], student_sizes: tuple[int, int]
    ):
        """`teacher_sizes` and `student_sizes`: number of layers and hidden size."""
        super().__init__()
        self.settings = settings
        if settings.layer_groups is None:
            settings = settings.model_copy(update={"layer_groups": [[0], thirds(teacher_sizes[0])]})
        groups = self._groups = settings.layer_groups
        self.layers = tuple(layer for group in groups for layer in group)
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"objective.layer_groups must name each layer once, got {groups}")
        (num_teacher_layers, target_size), (num_student_layers, hidden_size) = teacher_sizes, student_sizes
        self.depths = {layer: matched_depth(layer, num_teacher_layers, num_student_layers) for layer in self.layers}
        self.maps = nn.ModuleList(PrefixLinear(hidden_size, target_size) for _ in groups)
        for linear in self.maps:
            initialise_as_identity(linear)

    @property
    def request(self) -> TeacherRequest:
        return TeacherRequest(hidden_states=self.layers)

    @property
    def needs_student_states(self) -> bool:
        return True

    def targets(self, clean: TeacherOutput, masked, valid, time_mask) -> list[torch.Tensor]:
        return [clean.hidden_states[layer].float() for layer in self.layers]

    def predictions(self, student, outputs) -> list[torch.Tensor]:
        states = states_by_depth(student, outputs)
        groups = zip(self.maps, self._groups, strict=True)
        return [linear(states[self.depths[layer]]) for linear, group in groups for layer in group]

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        total = 0
        for prediction, target in zip(predictions, targets, strict=True):
            cosine = F.cosine_similarity(prediction, target, dim=-1)
            total = total + (prediction - target).abs().mean(-1) - self.settings.cosine_weight * cosine
        return total / len(targets)

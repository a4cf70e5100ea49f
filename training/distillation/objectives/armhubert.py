"""ARMHuBERT's objective: masking distillation of every layer."""

from typing import Literal

import torch
from torch import nn

from lighthubert_hf.training.recipes.sections import NonNegativeFloat, PositiveFloat, Section

from .base import Objective, PrefixLinear, TeacherOutput, TeacherRequest, matched_depth, states_by_depth


class ArmHubertObjectiveSection(Section):
    name: Literal["armhubert"]
    last_layer_weight: PositiveFloat = 1.0
    other_layers_weight: NonNegativeFloat = 0.1


class ArmHubertObjective(Objective):
    r"""The masking distillation of ARMHuBERT (Jang et al. 2023, https://huggingface.co/papers/2305.11685).

    $$ \mathcal{L} = \frac{1}{T} \sum_t \sum_{l=1}^{L} \alpha_l \frac{1}{D} \lVert A_l h_{l,t} - y_{l,t} \rVert_2^2,
       \qquad y_{l,t} = \begin{cases} f_l(x)_t & t \text{ masked} \\ f_l(\tilde{x})_t & \text{else} \end{cases} $$

    The student sees masked audio \(\tilde{x}\). Where it cannot hear, it learns from the teacher that can (\(f(x)\));
    where it can, from the teacher that sees the same masks (\(f(\tilde{x})\)). One linear map \(A_l\) per teacher
    layer; \(\alpha\) is `last_layer_weight` for the last layer and `other_layers_weight` for the others.
    """

    def __init__(
        self, settings: ArmHubertObjectiveSection, teacher_sizes: tuple[int, int], student_sizes: tuple[int, int]
    ):
        """`teacher_sizes` and `student_sizes`: number of layers and hidden size."""
        super().__init__()
        (num_teacher_layers, target_size), (num_student_layers, hidden_size) = teacher_sizes, student_sizes
        others = range(1, num_teacher_layers) if settings.other_layers_weight else ()
        self.weights = dict.fromkeys(others, settings.other_layers_weight)
        self.weights[num_teacher_layers] = settings.last_layer_weight
        self.depths = [matched_depth(layer, num_teacher_layers, num_student_layers) for layer in self.weights]
        self.maps = nn.ModuleList(PrefixLinear(hidden_size, target_size) for _ in self.weights)

    @property
    def request(self) -> TeacherRequest:
        return TeacherRequest(hidden_states=tuple(self.weights), masked=True)

    @property
    def needs_student_states(self) -> bool:
        return True

    def targets(
        self, clean: TeacherOutput, masked: TeacherOutput, valid: torch.BoolTensor, time_mask: torch.BoolTensor
    ) -> list[torch.Tensor]:
        hidden = time_mask[..., None]
        return [
            torch.where(hidden, clean.hidden_states[layer].float(), masked.hidden_states[layer].float())
            for layer in self.weights
        ]

    def predictions(self, student, outputs) -> list[torch.Tensor]:
        states = states_by_depth(student, outputs)
        return [linear(states[depth]) for linear, depth in zip(self.maps, self.depths, strict=True)]

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        total = 0
        for weight, prediction, target in zip(self.weights.values(), predictions, targets, strict=True):
            total = total + weight * (prediction - target).square().mean(-1)
        return total

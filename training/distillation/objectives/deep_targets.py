"""Targets at several depths for the first part of the steps, then the paper's objective alone."""

import torch
from pydantic import Field
from torch import nn

from lighthubert_hf.training.recipes.sections import PositiveFloat, PositiveInt, Section, Share

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


class DeepTargetsSection(Section):
    """For the first `share` of the steps the student also learns hidden states, and nothing is masked."""

    share: Share = Field(0.3, gt=0, description="of all steps")
    layers: list[PositiveInt] | None = Field(
        None, description="of the teacher, 1 is the first; None: those at each third, 4, 8, 12 of twelve"
    )
    weight: PositiveFloat = Field(1.0, description="of the hidden states' loss beside the objective's own")


class DeepTargets(Objective):
    r"""An objective and, beside it, some of the teacher's hidden states, through one linear head each.

    $$ \mathcal{L} = \mathcal{L}_{\text{base}} + \lambda \, \frac{1}{T} \sum_t \frac{1}{|S|} \sum_{l \in S}
       \frac{1}{D} \lVert A_l h_{l,t} - y_{l,t} \rVert_1 $$

    over all valid frames of unmasked audio. \(y_l\) is the teacher's hidden state \(l\), \(h_l\) the student's at the
    same share of its depth; \(A_l\) starts as the identity and is thrown away with the training state. One head a
    layer, as in DistilHuBERT (Chang et al. 2022, https://huggingface.co/papers/2110.01900).
    """

    masks = False

    def __init__(
        self,
        settings: DeepTargetsSection,
        base: Objective,
        teacher_sizes: tuple[int, int],
        student_sizes: tuple[int, int],
    ):
        """`teacher_sizes`, `student_sizes`: number of layers and width."""
        super().__init__()
        self.base, self.weight = base, settings.weight
        num_layers, target_size = teacher_sizes
        self.layers = settings.layers or thirds(num_layers)
        if max(self.layers) > num_layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(
                f"deep_targets.layers are {self.layers}, the teacher has layers 1 to {num_layers}; name some of them, "
                "each once, or leave them out"
            )
        self.depths = [matched_depth(layer, num_layers, student_sizes[0]) for layer in self.layers]
        self.heads = nn.ModuleList(PrefixLinear(student_sizes[1], target_size) for _ in self.layers)
        for head in self.heads:
            initialise_as_identity(head)

    def follow(self, order: torch.Tensor) -> None:
        for head in self.heads:
            initialise_as_identity(head, order)

    @property
    def request(self) -> TeacherRequest:
        request = self.base.request
        states = tuple(sorted({*request.hidden_states, *self.layers}))
        return TeacherRequest(request.layer_results, states, request.masked, request.projected)

    needs_student_states = True

    def targets(self, clean: TeacherOutput, masked, valid: torch.BoolTensor, time_mask) -> list[torch.Tensor]:
        own = [clean.hidden_states[layer].float() for layer in self.layers]
        return [*self.base.targets(clean, masked, valid, time_mask), *own]

    def predictions(self, student, outputs) -> list[torch.Tensor]:
        states = states_by_depth(student, outputs)
        own = [head(states[depth]) for head, depth in zip(self.heads, self.depths, strict=True)]
        return [*self.base.predictions(student, outputs), *own]

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        first = len(predictions) - len(self.layers)
        pairs = zip(predictions[first:], targets[first:], strict=True)
        own = sum((prediction - target).abs().mean(-1) for prediction, target in pairs) / len(self.layers)
        return self.base.frame_errors(predictions[:first], targets[:first]) + self.weight * own


class DeepTargetsFirst(Objective):
    """`DeepTargets` for the first steps, then the objective alone. Validation is by the objective alone always."""

    def __init__(self, deep: DeepTargets, num_first_steps: int):
        super().__init__()
        self.deep, self.num_first_steps = deep, num_first_steps

    def follow(self, order: torch.Tensor) -> None:
        self.deep.follow(order)

    def at(self, step: int | None) -> Objective:
        return self.deep if step is not None and step < self.num_first_steps else self.deep.base

    @property
    def request(self) -> TeacherRequest:
        return self.deep.request

"""The local objective of an elastic front end: the teacher's projected features."""

from typing import Literal

import torch

from lighthubert_hf.training.recipes.sections import Section

from .base import Objective, TeacherOutput, TeacherRequest


class FrontEndObjectiveSection(Section):
    name: Literal["front_end"] = "front_end"


class FrontEndObjective(Objective):
    r"""Learn what the teacher's first layer is given, before positions are added.

    $$ \mathcal{L} = \frac{\sum_t \frac{1}{E} \lVert P(C(x))_t - P^*(C^*(x))_{t,:E} \rVert_1}{\sum_t 1} $$

    over the valid frames \(t\) of unmasked audio \(x\); \(C\) are the convolutions, \(P\) is the feature projection,
    \(E\) the width of the student's stream, and stars mark the teacher's. No transformer layer runs, on either side.
    A subnet's width takes the first channels of the stream, so it learns the first channels of the teacher's: for a
    student that starts as the teacher this is the input its own layers know. Of a stream that was put in another order
    (`follow`) each channel learns the one it was.
    """

    runs_encoder = False
    request = TeacherRequest(projected=True)

    def follow(self, order: torch.Tensor) -> None:
        self.register_buffer("order", order)  # a checkpoint has it

    def targets(self, clean: TeacherOutput, masked, valid: torch.BoolTensor, time_mask) -> list[torch.Tensor]:
        projected, order = clean.projected.float(), self._buffers.get("order")
        return [projected if order is None else projected.index_select(-1, order)]

    def predictions(self, student, outputs: torch.Tensor) -> list[torch.Tensor]:
        return [outputs]

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        (prediction,), (target,) = predictions, targets
        return (prediction - target[..., : prediction.shape[-1]]).abs().mean(-1)

"""LightHuBERT's objective: regress the mean of the teacher's last FFN outputs."""

from typing import Literal

import torch
from pydantic import Field
from pydantic import model_validator as checked
from torch.nn import functional as F

from lighthubert_hf.training.recipes.sections import NonNegativeFloat, PositiveInt, Section

from .base import Objective, TeacherOutput, TeacherRequest


class LightHubertObjectiveSection(Section):
    name: Literal["lighthubert"] = "lighthubert"
    num_target_layers: PositiveInt | None = Field(
        None, description="from the teacher's top; None: 8, or all that it has"
    )
    layer_norm: Literal["none", "instance", "layer"] = "none"
    masked_weight: NonNegativeFloat = 1.0
    unmasked_weight: NonNegativeFloat = 1.0

    @checked(mode="after")
    def _some_weight(self):
        if self.masked_weight == self.unmasked_weight == 0:
            raise ValueError("masked_weight and unmasked_weight cannot both be 0")
        return self


class LightHubertObjective(Objective):
    r"""The LightHuBERT loss (Wang et al. 2022, https://huggingface.co/papers/2203.15610).

    $$ y_t = \frac{1}{k} \sum_{l=L-k+1}^{L} \mathrm{norm}(\mathrm{FFN}_l)_t, \qquad
       \mathcal{L} = \frac{\sum_t w_t \, \frac{1}{D} \lVert W z_t - y_t \rVert_1}{\sum_t w_t} $$

    \(\mathrm{FFN}_l\) is the output of the second linear layer of teacher layer \(l\), before dropout, residual and
    norm; \(z_t\) the student's last hidden state on masked audio; \(W\) the student's bias-free `prediction_head`;
    \(w_t\) is `masked_weight` on masked and `unmasked_weight` on other valid frames. `layer_norm` is applied to
    every layer before averaging: "none"; "instance", over the valid frames of each channel, as in data2vec; "layer",
    over the channels of each frame.
    """

    def __init__(self, settings: LightHubertObjectiveSection, num_teacher_layers: int):
        super().__init__()
        self.settings = settings
        wanted = settings.num_target_layers or min(8, num_teacher_layers)
        if wanted > num_teacher_layers:
            raise ValueError(
                f"objective.num_target_layers is {wanted}, the teacher has {num_teacher_layers} layers; ask for at "
                "most as many, or leave it out"
            )
        self.layers = tuple(range(num_teacher_layers - wanted, num_teacher_layers))

    @property
    def request(self) -> TeacherRequest:
        return TeacherRequest(layer_results=self.layers)

    def targets(self, clean: TeacherOutput, masked, valid: torch.BoolTensor, time_mask) -> list[torch.Tensor]:
        total = 0
        for layer in self.layers:
            total = total + self._normed(clean.layer_results[layer].float(), valid)
        return [total / len(self.layers)]

    def predictions(self, student, outputs) -> list[torch.Tensor]:
        return [student.prediction_head(outputs.last_hidden_state)]

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        return (predictions[0] - targets[0]).abs().mean(-1)

    def frame_weights(self, valid: torch.BoolTensor, time_mask: torch.BoolTensor) -> torch.Tensor:
        weights = torch.where(time_mask, self.settings.masked_weight, self.settings.unmasked_weight)
        return weights * valid

    def _normed(self, results: torch.Tensor, valid: torch.BoolTensor) -> torch.Tensor:
        if self.settings.layer_norm == "layer":
            return F.layer_norm(results, results.shape[-1:])
        if self.settings.layer_norm == "instance":
            return instance_norm(results, valid)
        return results


def instance_norm(hidden_states: torch.Tensor, valid: torch.BoolTensor, eps: float = 1e-5) -> torch.Tensor:
    """Each channel of each row to zero mean and unit variance over the row's valid frames; zero on padding."""
    valid = valid[..., None]
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(valid, hidden_states, 0).sum(1, keepdim=True) / count
    centred = torch.where(valid, hidden_states - mean, 0)
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + eps)

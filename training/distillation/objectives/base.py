"""What all objectives share: predictions and targets of equal shape, an error per frame, a weight per frame."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class TeacherRequest:
    """What an objective wants to see of the teacher.

    Args:
        layer_results: Layers (0-based) whose FFN output, before dropout, residual and norm, is wanted.
        hidden_states: Hidden states wanted; 0 is the input of the first layer, i the output of layer i (1-based).
        masked: Whether the objective also wants the teacher to see masked features.
        projected: Whether the projected features are wanted: the input of the first layer, before positions.
    """

    layer_results: tuple[int, ...] = ()
    hidden_states: tuple[int, ...] = ()
    masked: bool = False
    projected: bool = False

    @property
    def runs_layers(self) -> bool:
        """Whether any transformer layer must run for it."""
        return bool(self.layer_results or self.hidden_states or self.masked)


@dataclass
class TeacherOutput:
    """What was asked for, in the teacher's dtype: `(batch, frames, hidden_size)` by layer, projected features of that
    shape, and the convolutional features, `(batch, frames, channels)`, after `Teacher.keep_front_end`."""

    layer_results: dict[int, torch.Tensor] = field(default_factory=dict)
    hidden_states: dict[int, torch.Tensor] = field(default_factory=dict)
    projected: torch.Tensor | None = None
    front_end: torch.Tensor | None = None

    def frames(self) -> int:
        """Frames of what was asked for."""
        found = [*self.layer_results.values(), *self.hidden_states.values(), self.projected]
        return next(states.shape[1] for states in found if states is not None)


@dataclass
class FrameLoss:
    """A loss that is not divided yet, so that it can be normalised over all batches and processes.

    Args:
        sum: Weighted sum of the frames' errors, fp32, carries the gradient.
        count: Sum of the weights.
    """

    sum: torch.Tensor
    count: torch.Tensor


class Objective(nn.Module):
    """A distillation loss. Subclasses say what to see of the teacher, what to predict, and how to compare.

    The teacher's part (`targets`) does not depend on the subnet and is computed once per batch; `predictions` and
    `frame_errors` run per subnet. Parameters of an objective (prediction heads) are trained along and are not part of
    the student.
    """

    #: Whether the student's encoder runs. Where it does not, `predictions` is given the projected features instead of
    #: its outputs, and only what makes these is trained.
    runs_encoder = True

    #: Whether the recipe's masks apply.
    masks = True

    def follow(self, order: torch.Tensor) -> None:
        """Take it that the student starts with the teacher's stream in another order.

        Args:
            order: Which of the teacher's channels each of the student's is, `(hidden_size,)`.
        """

    def at(self, step: int | None) -> "Objective":
        """What is learnt in `step`; `None`: what a validation looks at."""
        return self

    @property
    def request(self) -> TeacherRequest:
        raise NotImplementedError

    def targets(
        self,
        clean: TeacherOutput,
        masked: TeacherOutput | None,
        valid: torch.BoolTensor,
        time_mask: torch.BoolTensor,
    ) -> list[torch.Tensor]:
        """What to predict, fp32, `(batch, frames, hidden_size)` each.

        Args:
            clean: The teacher on unmasked audio.
            masked: The teacher on masked features, if `request.masked`.
            valid: `(batch, frames)`, false on padding.
            time_mask: `(batch, frames)`, true where the student's features are masked.
        """
        raise NotImplementedError

    @property
    def needs_student_states(self) -> bool:
        """Whether `predictions` reads the student's hidden states, not only its last one."""
        return False

    def predictions(self, student: nn.Module, outputs: BaseModelOutput) -> list[torch.Tensor]:
        """One prediction per target from what the student's encoder put out."""
        raise NotImplementedError

    def frame_errors(self, predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        """`(batch, frames)`, fp32."""
        raise NotImplementedError

    def frame_weights(self, valid: torch.BoolTensor, time_mask: torch.BoolTensor) -> torch.Tensor:
        """`(batch, frames)`, fp32; zero on padding."""
        return valid.float()

    def forward(
        self, predictions: list[torch.Tensor], targets: list[torch.Tensor], weights: torch.Tensor
    ) -> FrameLoss:
        with torch.autocast(weights.device.type, enabled=False):
            errors = self.frame_errors([p.float() for p in predictions], targets)
        # where, not a product: what stands on padding may be anything, infinities included.
        return FrameLoss(torch.where(weights > 0, errors * weights, 0).sum(), weights.sum())


class PrefixLinear(nn.Linear):
    """A linear layer that reads however many channels its input has: the first columns of its weight."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight[:, : hidden_states.shape[-1]], self.bias)


def initialise_as_identity(linear: nn.Linear, order: torch.Tensor | None = None) -> None:
    """Ones on the diagonal, zeros elsewhere; also for a weight that is not square.

    Args:
        order: Which output each input is, if they are in another order; there may be more than the layer has inputs.
    """
    nn.init.eye_(linear.weight)
    if order is not None:
        whole = torch.eye(linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
        linear.weight.data.copy_(whole[:, order[: linear.in_features].to(whole.device)])
    nn.init.zeros_(linear.bias)


def states_by_depth(student: nn.Module, outputs: BaseModelOutput) -> list[torch.Tensor]:
    """The student's residual stream at every depth of the *full* network, 0 to its number of layers.

    A layer that the active subnet leaves out passes its input on, so a target keeps its place in the network whatever
    the depth of the subnet.
    """
    encoder = student.base_model.encoder
    states, place = [outputs.hidden_states[0]], 0
    for index in range(len(encoder.layers)):
        if place < len(encoder.active_layers) and encoder.active_layers[place] == index:
            place += 1
        states.append(outputs.hidden_states[place])
    return states


def matched_depth(layer: int, num_teacher_layers: int, num_student_layers: int) -> int:
    """The depth of the student that answers the teacher's hidden state `layer`: the same share of the way up."""
    return round(layer * num_student_layers / num_teacher_layers)


def thirds(num_layers: int) -> list[int]:
    """The layers at one and two thirds of the depth, and the last: 4, 8, 12 of twelve, as the papers have them."""
    return sorted({max(1, round(num_layers * share)) for share in (1 / 3, 2 / 3, 1)})

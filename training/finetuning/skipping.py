"""Steps whose gradients are not finite change nothing; too many of them in a row end the run."""

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class NonFiniteSteps(TrainerCallback, ExportableState):
    """Leaves weights and optimiser as they are where a gradient is NaN or infinite, as distillation does, and counts.

    All processes decide alike, since their gradients have been averaged by then. The counts are part of a checkpoint.

    Args:
        max_in_a_row: So many without a good one between end the run.
    """

    def __init__(self, max_in_a_row: int):
        self.max_in_a_row = max_in_a_row
        self.skipped = self.in_a_row = 0

    def state(self) -> dict:
        """What goes into a checkpoint."""
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row}
        return {"args": {"max_in_a_row": self.max_in_a_row}, "attributes": counts}

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(kept, dict):
            self.skipped, self.in_a_row = (kept["attributes"][name] for name in ("skipped", "in_a_row"))

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            self.in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # which the optimiser passes over, moments and all
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= min(self.max_in_a_row, state.max_steps):  # not one good step is too few, however short
            raise ValueError(
                f"{self.in_a_row} steps in a row were not finite (up to step {state.global_step + 1}); lower "
                "optimizer.lr"
            )

"""Learning rate schedules: functions of the step alone, run by torch's `LambdaLR`."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lighthubert_hf.training.recipes.sections import ScheduleSection


def learning_rate_scale(step: int, num_steps: int, settings: ScheduleSection) -> float:
    r"""Factor on the learning rate at `step` (0-based).

    With \(w\) = warm-up steps, \(h\) = steps held, \(N\) = all steps, and a, b the initial and final scale:

    - both: \(a + (1 - a) s / w\) for \(s < w\);
    - `tri_stage`: 1 for \(w \le s < w + h\), then \(b^{(s - w - h) / (N - w - h)}\) (as in fairseq);
    - `linear`: \(1 - (1 - b) (s - w) / (N - w)\).
    """
    warmup = round(settings.warmup * num_steps)
    if step < warmup:
        return settings.initial_scale + (1 - settings.initial_scale) * step / warmup
    held = round(settings.hold * num_steps) if settings.kind == "tri_stage" else 0
    past = step - warmup - held
    if past < 0:
        return 1.0
    progress = min(past / max(num_steps - warmup - held, 1), 1.0)
    if settings.kind == "linear":
        return 1 - (1 - settings.final_scale) * progress
    return settings.final_scale**progress


def make_scheduler(optimizer: Optimizer, num_steps: int, settings: ScheduleSection, start: int = 0) -> LambdaLR:
    """The schedule over `num_steps`, about to run step `start`. It has no other state than the step."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, lambda step: learning_rate_scale(step, num_steps, settings), last_epoch=start - 1)

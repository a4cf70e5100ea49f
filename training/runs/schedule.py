"""Learning rate schedules: functions of the step alone, run by torch's `LambdaLR`."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lighthubert_hf.training.recipes.sections import ScheduleSection


def learning_rate_scale(step: int, num_steps: int, settings: ScheduleSection) -> float:
    r"""Factor on the learning rate at `step` (0-based).

    With \(w\) = warm-up steps, \(h\) = steps held, \(N\) = all steps, a, b the initial and final scale, and
    \(p\) = the share of the last decline that is done:

    - all: \(a + (1 - a) s / w\) for \(s < w\);
    - `tri_stage`: 1 for \(w \le s < w + h\), then \(b^p\) (as in fairseq);
    - `trapezoid`: 1 for \(w \le s < w + h\), then \(1 - (1 - b) p\) (Zhai et al. 2022,
      https://huggingface.co/papers/2106.04560, call it a cool-down);
    - `inverse_sqrt`: \(\sqrt{w / s}\) for \(w \le s < w + h\), then linearly from there to b;
    - `linear`: \(1 - (1 - b) p\) from \(w\) on; `cosine`: \(b + (1 - b)(1 + \cos \pi p) / 2\) from \(w\) on.
    """
    warmup = round(settings.warmup * num_steps)
    if step < warmup:
        return settings.initial_scale + (1 - settings.initial_scale) * step / warmup
    held = 0 if settings.kind in ("linear", "cosine") else round(settings.hold * num_steps)
    past, final = step - warmup - held, settings.final_scale
    peak = 1.0
    if settings.kind == "inverse_sqrt":
        first = max(warmup, 1)
        peak = math.sqrt(first / max(min(step, warmup + held), first))
    if past < 0:
        return peak
    progress = min(past / max(num_steps - warmup - held, 1), 1.0)
    if settings.kind == "tri_stage":
        return final**progress
    if settings.kind == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    return peak - (peak - min(final, peak)) * progress


def make_scheduler(optimizer: Optimizer, num_steps: int, settings: ScheduleSection, start: int = 0) -> LambdaLR:
    """The schedule over `num_steps`, about to run step `start`. It has no other state than the step."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return LambdaLR(optimizer, lambda step: learning_rate_scale(step, num_steps, settings), last_epoch=start - 1)

"""Learning rates."""

import pytest
import torch

from lighthubert_hf.training.recipes.sections import ScheduleSection
from lighthubert_hf.training.runs.schedule import learning_rate_scale, make_scheduler

TRI = ScheduleSection(kind="tri_stage", warmup=0.1, hold=0.5, initial_scale=0.01, final_scale=0.05)


def test_tri_stage_by_hand():
    scale = [learning_rate_scale(step, 100, TRI) for step in (0, 5, 10, 59, 60, 80, 100)]
    assert scale == pytest.approx([0.01, 0.505, 1, 1, 1, 0.05**0.5, 0.05])


def test_linear_by_hand():
    settings = ScheduleSection(kind="linear", warmup=0.2, initial_scale=0, final_scale=0)
    scale = [learning_rate_scale(step, 10, settings) for step in (0, 1, 2, 6, 10)]
    assert scale == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", [0.55, 1, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1]),
        ("trapezoid", [0.55, 1, 1, 1, 0.1]),
        ("inverse_sqrt", [0.55, 1, (20 / 40) ** 0.5, (20 / 60) ** 0.5, 0.1]),
    ],
)
def test_schedules_that_end_low_by_hand(kind, expected):
    settings = ScheduleSection(kind=kind, warmup=0.2, hold=0.6, initial_scale=0.1, final_scale=0.1)
    scale = [learning_rate_scale(step, 100, settings) for step in (10, 20, 40, 60, 100)]
    assert scale == pytest.approx(expected)
    declining = [learning_rate_scale(step, 100, settings) for step in range(20, 101)]
    assert declining == sorted(declining, reverse=True)
    assert kind == "cosine" or declining[70] == pytest.approx((declining[60] + declining[80]) / 2)


@pytest.mark.parametrize("start", [0, 1, 13, 37, 40])
def test_a_resumed_schedule_goes_on_where_it_was(start):
    def rates(first: int, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = make_scheduler(optimizer, 40, TRI, first)
        out = []
        for _ in range(steps):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    assert rates(start, 40 - start) == rates(0, 40)[start:]

"""Averages of the last weights: what they are, what becomes of them, and that interrupted runs have the same."""

import pytest
import torch

from lighthubert_hf.training.distillation.averaging import WeightAverage
from lighthubert_hf.training.distillation.recipe import AveragingSection

from .test_step import make_batch, make_step

HEAD = "prediction_head.weight"


@pytest.mark.parametrize("kind", ["uniform", "ema"])
def test_the_average_by_hand(tiny_recipe, kind):
    step = make_step(tiny_recipe(optimizer={"lr": 1e-2}))
    average = WeightAverage(AveragingSection(kind=kind, share=0.5, every=2, decay=0.75), 10)
    taken = []
    for done in range(1, 11):
        step.run(done - 1, [make_batch([2000])], (step.model.student.search_space.largest(),))
        average.after_step(done, step.model)
        if done in (6, 8, 10):
            taken.append(step.model.student.state_dict()[HEAD].clone())
        assert (average.model(step.model) is step.model) == (done < 6)
    expected = sum(taken) / 3 if kind == "uniform" else 0.75**2 * taken[0] + 0.25 * (0.75 * taken[1] + taken[2])
    found = average.model(step.model).student.state_dict()[HEAD]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, taken[-1], rtol=1e-3)


@pytest.mark.parametrize("averaging", [{"share": 0}, {"kind": "ema", "decay": 1.0}, {"every": 0}])
def test_what_is_no_average_is_named(tiny_recipe, averaging):
    with pytest.raises(ValueError, match="averaging"):
        tiny_recipe(averaging=averaging)

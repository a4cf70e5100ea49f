"""Counted work of recipes."""

import json

import pytest
import yaml
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from lighthubert_hf.cli import app
from lighthubert_hf.training.distillation.cost import count_cost, plan
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.recipes.loading import load_recipe

from .test_step import make_batch, make_step
from .tiny import TINY_SPACE


def test_counts_agree_with_a_real_step(tiny_recipe):
    """Ten seconds of audio through a real training step, counted while it runs."""
    recipe = tiny_recipe(sampler={"kind": "largest"}, masking=None)
    step = make_step(recipe)
    for model in (step.model.teacher.model, step.model.student):
        model.set_attn_implementation("eager")  # the counter knows no fused attention on a CPU
    with FlopCounterMode(display=False) as counter:
        step.run(0, [make_batch([160000])], [step.model.student.search_space.largest()])
    cost = count_cost(recipe)
    # Less in the real step: no gradient with respect to the audio.
    assert cost.total * 10 == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_what_is_not_run_is_not_counted(tiny_recipe):
    base = count_cost(tiny_recipe(sampler={"kind": "largest"}))
    frozen = count_cost(tiny_recipe(sampler={"kind": "largest"}, student={"freeze_front_end": True}))
    assert (frozen.front_end, frozen.encoder) == (0, base.encoder)
    sandwich = count_cost(tiny_recipe(sampler={"kind": "sandwich"}))
    assert base.encoder < sandwich.encoder < 3 * base.encoder
    assert count_cost(tiny_recipe(objective={"name": "armhubert"})).teacher == 2 * base.teacher
    # One subnet, whatever the sampler says; it does not know of any.
    cut = count_cost(tiny_recipe(sampler={"kind": "largest"}, student={"init": "random", "subnet": "smallest"}))
    assert cut.encoder < base.encoder / 2


def test_front_ends_are_counted_as_wide_as_they_run(tiny_recipe):
    space = TINY_SPACE | {"conv_dim": [[8, 16]] * 6 + [[16]]}
    whole = count_cost(tiny_recipe(sampler={"kind": "largest"}))

    def cost(kind, **sections):
        student = {"search_space": space, **sections.pop("student", {})}
        return count_cost(tiny_recipe(student=student, sampler={"kind": kind}, **sections))

    assert cost("largest") == whole
    assert whole.front_end < cost("sandwich").front_end < 3 * whole.front_end
    frozen = cost("largest", student={"freeze_front_end": True})
    assert frozen.front_end == pytest.approx(whole.front_end / 3)  # forward only
    first = cost("largest", objective={"name": "front_end"}, masking=None)
    assert first.front_end == whole.front_end
    assert first.teacher < whole.teacher / 2
    assert first.encoder < whole.encoder / 20


@pytest.mark.slow
def test_the_economical_recipe_keeps_its_budget():
    """24 A100-hours at a third of the peak, 100 TFLOP/s."""
    recipe = load_recipe(DistillationRecipe, "economical", ["teacher.path=null", "teacher.random_config={}"])
    audio = recipe.training.steps * recipe.data.batch_seconds * 4
    assert audio * count_cost(recipe).total / 100e12 / 3600 < 24


def test_command(tiny_recipe, tmp_path):
    recipe = tiny_recipe(student={"init": "random"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    result = CliRunner().invoke(app, ["cost", str(tmp_path / "recipe.yaml"), "--processes", "2", "--json"])
    assert result.exit_code == 0, result.exception
    planned = json.loads(result.stdout)
    seconds = recipe.training.steps * recipe.training.accumulation * recipe.data.batch_seconds * 2
    assert planned["audio_seconds"] == seconds
    assert planned["flop"] == pytest.approx(seconds * count_cost(recipe).total)
    said = plan(recipe, 2).describe(tflops=1e-9)
    assert f"{recipe.training.steps:,} steps" in said.splitlines()[0]
    assert f"{planned['flop'] / 1e-9 / 1e12 / 3600:,.0f} process-hours" in said
    refused = CliRunner().invoke(app, ["cost", "lighthubert-small"])
    assert "add student.init=random" in str(refused.exception)

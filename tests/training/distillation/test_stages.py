"""Stages in a row: each begins where the one before ended, and a second call does nothing twice."""

import itertools
from pathlib import Path

import pytest
import torch
import yaml

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.stages import StagedRecipe, distill_stages, load_stages
from lighthubert_hf.training.recipes.loading import load_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes(StagedRecipe))
def test_shipped_stages_are_valid_and_fit_together(name):
    recipes, staged = load_stages(name), load_recipe(StagedRecipe, name)
    assert staged.name == name
    assert len({recipe.output_dir for recipe in recipes}) == len(staged.stages)
    for before, after in itertools.pairwise(recipes):
        assert after.student.init == f"{before.output_dir}/model"
    assert name.removesuffix("-tiny") + "-tiny" in shipped_recipes(StagedRecipe)


def test_one_stage_is_a_row_of_one():
    assert load_stages("economical") == [load_recipe(DistillationRecipe, "economical")]


def test_the_tiny_twin_runs_and_goes_on(tmp_path):
    recipes = load_stages(
        "elastic-small-tiny",
        [f"output_dir={tmp_path}", "stages.1.overrides={training.steps: 2, data.synthetic_minutes: 0.3}"],
    )
    assert [recipe.training.steps for recipe in recipes] == [3, 2]
    distill_stages(recipes[:1], show_progress=False)  # interrupted between the two
    final = distill_stages(recipes, show_progress=False)
    assert final == Path(tmp_path) / "2-elastic-tiny" / "model"
    steps = [entry["step"] for entry in read_log(tmp_path / "1-front-end-tiny" / "log.jsonl") if "loss" in entry]
    assert steps == sorted(set(steps))  # none was made twice
    model = LightHubertForPreTraining.from_pretrained(final)
    model.set_active_subnet(model.search_space.smallest())
    assert torch.isfinite(model.eval()(torch.randn(1, 4000)).predictions).all()


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "stages"),
        ([{"recipe": "nothing-like-this"}], "nothing-like-this"),
        ([{"recipe": "economical", "overrides": {"optimizer.rate": 1}}], "optimizer.rate"),
        ([{"recipe": "economical", "override": {}}], "override"),
    ],
)
def test_mistakes_are_named(tmp_path, stages, words):
    path = tmp_path / "row.yaml"
    path.write_text(yaml.safe_dump({"name": "row", "output_dir": "runs/row", "stages": stages}), encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        load_stages(path)
    assert "\n" not in str(caught.value)

"""Listing and printing the recipes that come with the package."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from lighthubert_hf.cli import app
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.stages import StagedRecipe
from lighthubert_hf.training.finetuning.recipe import FineTuningRecipe
from lighthubert_hf.training.recipes.loading import shipped_recipes


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["recipes", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_all_kinds_are_listed_with_the_command_that_runs_them():
    listed = json.loads(run("--json"))
    names = {
        command: {entry["name"] for entry in listed if entry["command"] == command}
        for command in ("distill", "finetune")
    }
    assert names["finetune"] == set(shipped_recipes(FineTuningRecipe))
    assert names["distill"] == {*shipped_recipes(DistillationRecipe), *shipped_recipes(StagedRecipe)}
    assert all(entry["description"] for entry in listed)
    lines = run().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [entry["name"] for entry in listed]


@pytest.mark.parametrize("name", ["own-recogniser", "elastic-small", "economical"])
def test_one_is_printed_as_it_is(name):
    text = run(name)
    assert text.startswith("#")
    assert yaml.safe_load(text)["name"] == name


def test_a_misspelt_name_is_hinted_at():
    with pytest.raises(FileNotFoundError, match=r"no shipped recipe 'own-recognizer'.*did you mean 'own-recogniser'"):
        run("own-recognizer")

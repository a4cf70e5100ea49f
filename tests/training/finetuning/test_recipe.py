"""Recipes of fine-tuning: the shipped ones, overrides, and what mistakes are called."""

import pytest
import yaml

from lighthubert_hf.training.finetuning.recipe import FineTuningRecipe
from lighthubert_hf.training.finetuning.run import finetune
from lighthubert_hf.training.recipes.loading import load_recipe, parse_recipe, shipped_recipes

MINIMAL = {
    "name": "x",
    "output_dir": "runs/x",
    "model": {"path": "subnet"},
    "data": {
        "sources": [{"path": "speech", "text_column": "text"}],
        "evaluation": {"held_out": [{"path": "speech", "split": "test", "text_column": "text"}]},
    },
    "training": {"steps": 10},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("name", shipped_recipes(FineTuningRecipe))
def test_shipped_recipes_are_valid(name):
    recipe = load_recipe(FineTuningRecipe, name)
    assert recipe.name == name
    assert parse_recipe(type(recipe), recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("twin", [name for name in shipped_recipes(FineTuningRecipe) if name.endswith("-tiny")])
def test_a_tiny_twin_uses_what_the_real_recipe_uses(twin):
    real, tiny = (load_recipe(FineTuningRecipe, name) for name in (twin.removesuffix("-tiny"), twin))
    assert real.task == tiny.task
    assert real.model_fields_set - {"description"} == tiny.model_fields_set


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="'task' must be one of ctc, classification, verification, diarization"):
        load_recipe(FineTuningRecipe, "finetune-ctc-tiny", ["task=asr"])


def test_the_tiny_recipe_runs(tmp_path):
    recipe = load_recipe(FineTuningRecipe, "finetune-ctc-tiny", [f"output_dir={tmp_path}", "training.steps=4"])
    metrics = finetune(recipe, quiet=True)
    assert metrics["evaluation"].keys() == {"validation", "test_sentences", "test_voice"}


def test_overrides(file):
    recipe = load_recipe(
        FineTuningRecipe, file, ["model.from_scratch=true", "data.evaluation.held_out.0.split=dev", "lora={}"]
    )
    assert recipe.model.from_scratch
    assert recipe.data.evaluation["held_out"][0].split == "dev"
    assert recipe.lora.rank == 8


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modell.path=x", ["unknown recipe key 'modell'", "did you mean 'model'"]),
        ("freezing.freze=encoder", ["unknown recipe key 'freezing.freze'", "did you mean 'freezing.freeze'"]),
        ("freezing.freeze=encodr", ["'freezing.freeze' must be one of", "did you mean 'encoder'"]),
        ("training.steps=0", ["'training.steps'", "greater than 0"]),
        ("model.path=null", ["exactly one of model.path and model.random_config"]),
        ('data.evaluation={"a\\nb": []}', ["held-out set must be one short line"]),
        ("data.evaluation={' ': []}", ["held-out set"]),
        ("model.subnet=smalest", ["'model.subnet' must be one of", "did you mean 'smallest'"]),
    ],
)
def test_mistakes_are_one_clear_line(file, override, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are checked below)
        load_recipe(FineTuningRecipe, file, [override])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message

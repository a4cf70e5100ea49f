"""Listing and printing the recipes that come with the package."""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from lighthubert_hf.cli import app
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.stages import StagedRecipe
from lighthubert_hf.training.finetuning.recipe import ClassificationRecipe, CtcRecipe, FineTuningRecipe
from lighthubert_hf.training.recipes.loading import load_recipe, parse_recipe, shipped_recipes
from lighthubert_hf.training.superb.settings import EvaluationSettings, HeadSizes, Rates, SuperbData


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


def _numbers(annotation: Any, metadata: tuple, name: str) -> Iterator[tuple[str, tuple]]:
    """Every number that a section may hold, with what is said of it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        yield from _numbers(inner, (*metadata, *more), name)
    elif annotation in (int, float):
        yield name, tuple(item for entry in metadata for item in getattr(entry, "metadata", [entry]))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for field, info in annotation.model_fields.items():
            yield from _numbers(info.annotation, tuple(info.metadata), f"{name}.{field}")
    elif origin in (Union, types.UnionType, list, tuple, dict):
        metadata = metadata if origin in (Union, types.UnionType) else ()
        for inner in get_args(annotation):
            yield from _numbers(inner, metadata, name)
    else:
        assert annotation in (str, bool, type(None), Any, ...) or origin is Literal, (name, annotation)


@pytest.mark.parametrize(
    "kind",
    [
        DistillationRecipe,
        StagedRecipe,
        CtcRecipe,
        ClassificationRecipe,
        EvaluationSettings,
        Rates,
        HeadSizes,
        SuperbData,
    ],
)
def test_every_number_has_bounds(kind):
    found = list(_numbers(kind, (), kind.__name__))
    for name, metadata in found:
        assert any(isinstance(item, annotated_types.Ge | annotated_types.Gt) for item in metadata), name
        assert any(isinstance(item, annotated_types.Le | annotated_types.Lt) for item in metadata), name
    assert found


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1" + "0" * 30, "-5000000", "9" * 5000, "2020-13-45"])
@pytest.mark.parametrize(
    "key",
    [
        "data.num_workers",
        "data.batch_seconds",
        "training.steps",
        "optimizer.lr",
        "seed",
        "student.config.num_hidden_layers",
        "data.sources.0.weight",
        "sampler.num_random",
        "checkpoint.keep",
    ],
)
def test_numbers_that_cannot_be_are_one_short_line(key, value):
    with pytest.raises(ValueError, match=key.split(".")[-1]) as error:
        load_recipe(DistillationRecipe, "lighthubert-small", [f"{key}={value}"])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_value_that_unfolds_without_end_is_one_line(tmp_path):
    parts = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    parts += [f"&a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 12)]
    for bomb in (f"[{', '.join(parts)}]", "&a [*a]", "&a {b: *a}"):
        with pytest.raises(ValueError, match=r"override student\.config means more than 100,000 values"):
            load_recipe(DistillationRecipe, "lighthubert-small", [f"student.config={bomb}"])
        (tmp_path / "r.yaml").write_text(f"name: {bomb}")
        with pytest.raises(ValueError, match=r"r\.yaml means more than 100,000 values"):
            load_recipe(DistillationRecipe, tmp_path / "r.yaml")


@pytest.mark.parametrize("rates", [{"steps": 10**10}, {"stps": 3}, {"learning_rate": float("inf")}])
def test_rates_of_an_evaluation_are_checked_in_one_line(rates):
    with pytest.raises(ValueError, match=next(iter(rates))) as error:
        parse_recipe(EvaluationSettings, {"rates": {"pr": rates}})
    assert "\n" not in str(error.value)

"""Recipes: what is refused, and with which words."""

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.recipes.loading import load_recipe, parse_recipe, shipped_recipes
from lighthubert_hf.training.recipes.sections import SourceSection

MINIMAL = {
    "name": "x",
    "output_dir": "runs/x",
    "teacher": {"path": "facebook/hubert-base-ls960"},
    "data": {"sources": [{"path": "speech"}]},
    "training": {"steps": 10},
}


WIDE = "{hidden_size: [64], num_attention_heads: [1], ffn_ratio: [2], num_hidden_layers: [2],"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("name", shipped_recipes(DistillationRecipe))
def test_shipped_recipes_are_valid_and_complete(name):
    recipe = load_recipe(DistillationRecipe, name)
    assert recipe.name == name
    assert parse_recipe(DistillationRecipe, recipe.model_dump(mode="json")) == recipe
    twin = load_recipe(DistillationRecipe, f"{name.removesuffix('-tiny')}-tiny")
    real = load_recipe(DistillationRecipe, name.removesuffix("-tiny"))
    assert (twin.objective.name, twin.sampler.kind) == (real.objective.name, real.sampler.kind)


def test_overrides(file):
    recipe = load_recipe(
        DistillationRecipe,
        file,
        ["optimizer.lr=1e-4", "data.sources.0.path=other", "hub.repo_id=me/x", "training.mixed_precision='no'"],
    )
    assert recipe.optimizer.lr == 1e-4
    assert recipe.data.sources[0].path == "other"
    assert recipe.hub.repo_id == "me/x"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizr.lr=1", ["unknown recipe key 'optimizr'", "did you mean 'optimizer'", "output_dir"]),
        ("optimizer.learning_rate=1", ["unknown recipe key 'optimizer.learning_rate'", "allowed in optimizer", "lr"]),
        ("training.step=3", ["did you mean 'training.steps'"]),
        ("objective={name: dphubert, layer_norm: none}", ["'objective.layer_norm'", "layer_groups, cosine_weight"]),
        ("data.sources=[{pth: x}]", ["'data.sources.0.pth'", "did you mean 'data.sources.0.path'"]),
        ("data.sources=[{}]", ["'data.sources.0.path' is missing"]),
        ("training.steps=abc", ["'training.steps'", "integer", "'abc'"]),
        ("training.steps=true", ["'training.steps'", "integer", "True"]),
        ("training.steps=0", ["'training.steps'", "greater than 0"]),
        ("optimizer.lr=.nan", ["'optimizer.lr'", "finite"]),
        ("objective.name=dphuber", ["'objective.name' must be one of", "did you mean 'dphubert'"]),
        ("student.search_space=smal", ["must be one of 'small', 'base'", "did you mean 'small'"]),
        ("student.search_space={hidden_size: [a]}", ["'student.search_space.hidden_size.0'", "integer"]),
        ("student.search_space={width: [4]}", ["unknown recipe key 'student.search_space.width'", "hidden_size"]),
        (f"student.search_space={WIDE} conv_dim: [a]}}", ["'student.search_space.conv_dim.0", "'a'"]),
        (f"student.search_space={WIDE} conv_dim: [[64], 128]}}", ["single number 128 for layer 1; give [128]"]),
        ("sampler.phases=[{from_step: 0, open: [width]}]", ["'sampler.phases.0.open.0' must be one of", "ffn_ratio"]),
        ("sampler.phases=[{from_step: 5, open: []}]", ["must start at step 0"]),
        ("sampler.in_place_weight=0.5", ["sandwich"]),
        ("schedule={warmup: 0.5, hold: 0.6}", ["at most 1, got 1.1"]),
        ("teacher.path=null", ["exactly one of teacher.path and teacher.random_config"]),
        ("data.synthetic_minutes=3", ["exactly one of data.sources and data.synthetic_minutes"]),
        ("data.batch_seconds=3", ["data.batch_seconds (3)", "data.crop_seconds (15.6)"]),
        ("validation.every=5", ["validation.sources is empty"]),
        ("objective={name: armhubert}", None),
        ("data.sources.3.path=x", ["data.sources is a list of 1"]),
        ("name.x=3", ["name is 'x', which has no keys"]),
        ("steps", ["key=value"]),
        ("training.steps=[", ["training.steps is not valid YAML"]),
    ],
)
def test_mistakes_are_one_clear_line(file, override, words):
    if words is None:
        load_recipe(DistillationRecipe, file, [override])
        override, words = "masking=null", ["give the section masking"]
        data = MINIMAL | {"objective": {"name": "armhubert"}}
        file.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are checked below)
        load_recipe(DistillationRecipe, file, [override])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_recipe_names_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match=r"no recipe 'lighthubert-smal'.*did you mean 'lighthubert-small'\?"):
        load_recipe(DistillationRecipe, "lighthubert-smal")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*DistillationRecipe.model_fields, "path", "steps", "name", "kind"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(sorted(DistillationRecipe.model_fields)),
)
def test_any_nonsense_is_a_value_error_of_one_line(nonsense, key):
    message = "no mistake"
    try:
        parse_recipe(DistillationRecipe, MINIMAL | {key: nonsense})
    except ValueError as error:
        message = str(error)
    assert message
    assert "\n" not in message


def test_source_section_mirrors_audio_source():
    """But for `all_columns`, which the task decides and no recipe."""
    fields = {field.name: field.default for field in dataclasses.fields(AudioSource)}
    mirrored = {name: info.default for name, info in SourceSection.model_fields.items()}
    for apart in ("path", "all_columns"):
        fields.pop(apart)
        mirrored.pop(apart, None)
    assert fields == mirrored


def test_no_needs_no_quotes():
    recipe = load_recipe(DistillationRecipe, "lighthubert-small-tiny", ["training.mixed_precision=no"])
    assert recipe.training.mixed_precision == "no"

"""Several stages of distillation in a row, each beginning where the one before ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lighthubert_hf.training.recipes.loading import parse_recipe, read_recipe, shipped_recipes
from lighthubert_hf.training.recipes.sections import Recipe, Section
from lighthubert_hf.training.runs.run_folder import MODEL

from .recipe import DistillationRecipe
from .run import distill


class StageSection(Section):
    """One stage: a recipe of distillation, and what differs from it."""

    recipe: str = Field(description="a YAML file, or the name of a shipped recipe")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="keys with dots, for example optimizer.lr, and their values"
    )


class StagedRecipe(Recipe):
    """Stages that run one after another, in folders `1-NAME`, `2-NAME`, … of `output_dir`.

    From the second on a stage starts from the model of the one before, whatever its recipe says of `student.init`.
    """

    shipped_in = "staged"

    stages: list[StageSection] = Field(min_length=1)


def load_stages(path_or_name: str | Path, overrides: Sequence[str] = ()) -> list[DistillationRecipe]:
    """The recipes that a file of either kind stands for: one stage, or several in a row.

    Args:
        path_or_name: A YAML file, or the name of a shipped recipe.
        overrides: `key=value`; of stages in a row `stages.0.overrides.KEY` reaches into one of them.

    Raises:
        FileNotFoundError: Neither a file nor a shipped recipe.
        ValueError: A mistake in one of the recipes.
    """
    kind = StagedRecipe if str(path_or_name) in shipped_recipes(StagedRecipe) else DistillationRecipe
    data = read_recipe(kind, path_or_name, overrides)
    if "stages" not in data:
        return [parse_recipe(DistillationRecipe, data)]
    staged = parse_recipe(StagedRecipe, data)
    recipes: list[DistillationRecipe] = []
    for number, stage in enumerate(staged.stages, 1):
        own = read_recipe(DistillationRecipe, stage.recipe, list(stage.overrides.items()))
        folder = Path(staged.output_dir) / f"{number}-{own.get('name', 'stage')}"
        own |= {"output_dir": str(folder), "seed": staged.seed}
        if recipes:
            own["student"] = (own.get("student") or {}) | {"init": str(Path(recipes[-1].output_dir) / MODEL)}
        recipes.append(parse_recipe(DistillationRecipe, own))
    return recipes


def distill_stages(recipes: Sequence[DistillationRecipe], **options) -> Path:
    """Run what is left of stages in a row; `options` are those of `distill`. The folder of the last one's model."""
    for recipe in recipes:
        model = distill(recipe, **options)
    return model

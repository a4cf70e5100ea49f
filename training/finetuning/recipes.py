"""Reads a recipe of fine-tuning of whatever kind."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from lighthubert_hf.training.recipe import Section, load_recipe

from .classification_recipe import ClassificationRecipe
from .ctc_recipe import CtcRecipe
from .recipe import FineTuningRecipe

KINDS: dict[str, type[FineTuningRecipe]] = {
    "ctc": CtcRecipe,
    "classification": ClassificationRecipe,
    "verification": ClassificationRecipe,
    "diarization": ClassificationRecipe,
}


class _AnyKind(Section):
    model_config = ConfigDict(extra="allow")
    task: str = "ctc"


def load_finetuning_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> FineTuningRecipe:
    """Read a recipe of fine-tuning, see `load_recipe`; its key `task` (default: ctc) says what else is in it."""
    task = load_recipe(path_or_name, overrides, _AnyKind).task
    if task not in KINDS:
        raise ValueError(f"recipe key 'task' must be one of {', '.join(KINDS)}, got {task!r}")
    return load_recipe(path_or_name, overrides, KINDS[task])

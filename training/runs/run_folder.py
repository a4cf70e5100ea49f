"""Whose run a folder holds: a run continues with the recipe and the number of processes it began with."""

from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lighthubert_hf.files import sweep, write_text
from lighthubert_hf.training.recipes.sections import Recipe

# What may change between two lives of a run without changing what it computes.
FREE_TO_CHANGE = (
    "name",
    "description",
    "checkpoint",
    "hub",
    "logging",
    "validation",
    "data.num_workers",
    "training.max_skipped_in_a_row",
)


def claim_folder(output_dir: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Make `output_dir` this recipe's, or see that it already is. Called by all processes.

    Raises:
        ValueError: It holds a run of another recipe.
    """
    file = output_dir / "recipe.yaml"
    problem = [""]
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        if file.exists():
            for folder in (output_dir, output_dir / "checkpoints"):
                sweep(folder)
            problem = [_difference(yaml.safe_load(file.read_text(encoding="utf-8")), recipe) or ""]
        if not problem[0]:
            write_text(file, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    broadcast_object_list(problem)
    if problem[0]:
        raise ValueError(f"{output_dir} holds a run with {problem[0]}; take the same recipe, or another output_dir")


def _difference(stored: dict[str, Any], recipe: Recipe) -> str | None:
    """The first setting that makes `recipe` another run than the stored one."""
    before, now = _leaves(stored), _leaves(recipe.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_TO_CHANGE)
        if not free and before.get(key) != now.get(key):
            return f"{key}={before.get(key)!r}, the recipe says {now.get(key)!r}"
    return None


def _leaves(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    return {
        leaf: value
        for key, part in data.items()
        for leaf, value in _leaves(part, f"{prefix}.{key}" if prefix else key).items()
    }


def check_processes(num_processes: int, accelerator: Accelerator) -> None:
    """Raise a ValueError if a checkpoint of `num_processes` cannot be continued by this launch."""
    if num_processes != accelerator.num_processes:
        raise ValueError(
            f"the checkpoint is of {num_processes} processes, each with its own place in the data, this launch "
            f"has {accelerator.num_processes}; launch {num_processes}, or start a new run (another output_dir) "
            "with student.init=…/pretrained_model"
        )

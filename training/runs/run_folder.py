"""The folder of a training run, and what doing a command again means.

```
output_dir/
  recipe.yaml        the recipe of the run, all defaults filled in
  log.jsonl          distillation: a line per logged step
  checkpoints/
    step-00010000/   to go on from; complete, or not there
  model/             the finished model, as `from_pretrained` reads it
  metrics.json       fine-tuning: its scores
  logs/              TensorBoard's, with `logging.trackers: [tensorboard]`
```

The same command again goes on where the run was; of a finished run nothing is done again. A run begins with its first
checkpoint: before that there is nothing to lose, and another recipe may take the folder. A folder that holds another
run, or something else, is refused. `overwrite` starts a run over; what is no run's it never touches.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lighthubert_hf.files import is_leftover, sweep, write_text
from lighthubert_hf.locks import locked
from lighthubert_hf.training.recipes.sections import Recipe

from .checkpoints import CheckpointError, latest_checkpoint, num_processes_of

RECIPE, CHECKPOINTS, MODEL, METRICS, LOG = "recipe.yaml", "checkpoints", "model", "metrics.json", "log.jsonl"
LOGS = "logs"
# Synthetic speech that a run makes for itself.
CORPUS = "synthetic_speech"
_MADE_HERE = (CHECKPOINTS, MODEL, METRICS, LOG, CORPUS, LOGS)

Result = TypeVar("Result")

# What may change between two lives of a run without changing what it computes.
FREE_TO_CHANGE = (
    "name",
    "description",
    "output_dir",
    "checkpoint",
    "hub",
    "logging",
    "validation",
    "data.num_workers",
    "training.max_skipped_in_a_row",
)


def holding_output_dir(run: Callable[..., Result]) -> Callable[..., Result]:
    """`run(recipe, …)` while the lock of `recipe.output_dir` is held, by the first process of a launch for all.

    Raises:
        InUseError: another launch holds it. The message names it.
    """

    @functools.wraps(run)
    def alone(recipe: Recipe, *arguments: Any, **options: Any) -> Result:
        if int(os.environ.get("RANK", "0")) != 0:
            return run(recipe, *arguments, **options)
        with locked(recipe.output_dir):
            return run(recipe, *arguments, **options)

    return alone


def claim_folder(recipe: Recipe, *, overwrite: bool = False) -> Path | None:
    """Make `recipe.output_dir` this recipe's, or see that it already is. Called by all processes.

    Args:
        overwrite: Start over: delete the run that is there, of whatever recipe.

    Returns:
        The checkpoint to go on from, if there is one: the main process looks, so that all agree. A damaged one is
        named in a warning, and the one before it taken.

    Raises:
        ValueError: It holds a run of another recipe, or something else, or damaged checkpoints only.
    """
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        folder = Path(recipe.output_dir)
        try:
            checkpoint = None if overwrite else _latest(folder)
            problem = _problem(folder, recipe, overwrite, checkpoint)
            if problem is None:
                _take(folder, recipe, overwrite, checkpoint)
        except (CheckpointError, ValueError) as error:
            checkpoint, problem = None, str(error)
        found = [problem, str(checkpoint or "")]
    broadcast_object_list(found)
    problem, checkpoint = found
    if problem:
        raise ValueError(problem)
    return Path(checkpoint) if checkpoint else None


def _problem(folder: Path, recipe: Recipe, overwrite: bool, checkpoint: Path | None) -> str | None:
    """Why the folder cannot be this recipe's."""
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; choose another output_dir"
    stored = _stored(folder)
    if stored is None:
        others = [entry.name for entry in folder.iterdir() if not is_leftover(entry)] if folder.exists() else []
        if others:
            return f"{folder} holds something else (it has {min(others)!r}, no {RECIPE}); choose another output_dir"
    elif overwrite and (source := _source_in(folder, recipe)):
        return f"--overwrite would delete {source}, which the recipe reads; choose another output_dir"
    elif not overwrite and _has_begun(folder, checkpoint) and (changed := _difference(stored, recipe, checkpoint)):
        return (
            f"{folder} holds a run with {changed}; take the same recipe, choose another output_dir, or start over "
            "with --overwrite (overwrite=True)"
        )
    return None


def _source_in(folder: Path, recipe: Recipe) -> str | None:
    """Something that the recipe reads, and that starting over would delete."""
    leaves = _leaves(recipe.model_dump(mode="json")).items()
    values = [one for key, value in leaves if key != "output_dir" for one in _strings(value)]
    places = [os.path.realpath(folder / name) for name in _MADE_HERE]
    for value in values:
        real = os.path.realpath(os.path.expanduser(value))
        if os.path.exists(real) and any(real == place or real.startswith(place + os.sep) for place in places):
            return value
    return None


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in _strings(part)]
    return [value] if isinstance(value, str) and value else []


def _stored(folder: Path) -> dict[str, Any] | None:
    """The recipe of the run in the folder, as plain data."""
    file = folder / RECIPE
    if not file.is_file():
        return None
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} is not a recipe that can be read ({reason}); restore it from the run's own"
        ) from None
    if not isinstance(stored, dict):
        raise ValueError(f"{file} must hold the run's recipe, got {type(stored).__name__}; restore it")
    return stored


def _latest(folder: Path) -> Path | None:
    checkpoints = folder / CHECKPOINTS
    if (folder / RECIPE).is_file():
        sweep(checkpoints)
    if (folder / MODEL).exists():  # nobody goes on from there
        with contextlib.suppress(CheckpointError):
            return latest_checkpoint(checkpoints, contents=False)
        return None
    return latest_checkpoint(checkpoints)


def _has_begun(folder: Path, checkpoint: Path | None) -> bool:
    """Whether there is something to lose."""
    return (folder / MODEL).exists() or checkpoint is not None


def _take(folder: Path, recipe: Recipe, overwrite: bool, checkpoint: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, folder / CHECKPOINTS):
        sweep(place)
    stored = _stored(folder)
    begun = _has_begun(folder, checkpoint)
    if stored is not None and (overwrite or (not begun and _difference(stored, recipe))):
        logging = stored.get("logging")
        for name in (*_MADE_HERE, logging.get("project") if isinstance(logging, dict) else None):
            if isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", ".."):
                _remove(folder / name)
    write_text(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _difference(stored: dict[str, Any], recipe: Recipe, checkpoint: Path | None = None) -> str | None:
    """The first setting that makes `recipe` another run than the stored one."""
    before, now = _leaves(stored), _leaves(recipe.model_dump(mode="json"))
    homes = (stored.get("output_dir"), recipe.output_dir)
    allowed = list(FREE_TO_CHANGE)
    if checkpoint is not None and num_processes_of(checkpoint) != PartialState().num_processes:
        allowed.append("training.accumulation")  # the other way to as many batches a step
    for key in sorted(before.keys() | now.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in allowed)
        if not free and not _same(before.get(key), now.get(key), homes):
            return f"{key}={before.get(key)!r}, the recipe says {now.get(key)!r}"
    return None


def _same(before: Any, now: Any, homes: tuple[str | None, str]) -> bool:
    """Whether two values are the same; of paths, whether they name the same thing.

    That is one file or folder, however it is written, or one that lies as it did beside the run: both were moved.
    """
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(_same(*pair, homes) for pair in zip(before, now, strict=True))
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(_same(before[key], now[key], homes) for key in before)
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return before == now
    here = [os.path.realpath(os.path.expanduser(path)) for path in (before, now)]
    if not os.path.exists(here[1]) or homes[0] is None:
        return False
    beside = [os.path.relpath(path, os.path.realpath(home)) for path, home in zip(here, homes, strict=True)]
    return here[0] == here[1] or beside[0] == beside[1]


def _leaves(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    return {
        leaf: value
        for key, part in data.items()
        for leaf, value in _leaves(part, f"{prefix}.{key}" if prefix else key).items()
    }

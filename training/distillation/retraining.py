"""The last step of a user: the chosen subnet, cut out of its supernet, goes on alone for a tenth of the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lighthubert_hf import LightHubertConfig, Subnet
from lighthubert_hf.files import read_object
from lighthubert_hf.subnets import choose_subnet
from lighthubert_hf.training.recipes.loading import parse_recipe, read_recipe, set_values
from lighthubert_hf.training.runs.run_folder import MODEL, RECIPE

from .recipe import DistillationRecipe

PARETO = "pareto.json"
# The subnet's own prediction head is fitted on so many seconds, before it is trained: that of the supernet serves all.
_HEAD_SECONDS = 60.0
# From the supernet's rate down to nothing.
_SCHEDULE = {"kind": "linear", "warmup": 0.1, "final_scale": 0.0}
# What a run does every so many steps, it does in a tenth of the steps as often.
_EVERY = ("validation", "checkpoint", "logging")


def retraining_recipe(
    source: str | Path,
    output_dir: str | Path,
    *,
    subnet: str | None = None,
    recipe: str | Path | None = None,
    share: float = 0.1,
    overrides: Sequence[str] = (),
) -> DistillationRecipe:
    """How to retrain one subnet of a supernet: teacher, data and objective are those of the run that made it.

    Args:
        source: The folder of a finished distillation, its `model`, or the folder of a search.
        output_dir: Of the new run.
        subnet: Of a distillation `default` (if not given), `smallest`, `largest` or a JSON file; of a search the name
            of a subnet in its `pareto.json`.
        recipe: The supernet's recipe, if none lies beside it.
        share: Of the supernet's steps.
        overrides: `key=value`, as `load_recipe` takes them.

    Raises:
        FileNotFoundError: There is no such folder, supernet or recipe.
        ValueError: There is no such subnet, the model is static, or the run's recipe trains no encoder.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the supernet's steps must be above 0 and at most 1, got {share:g}")
    supernet, chosen, revision = _chosen(Path(source), subnet)
    data = _plain(recipe if recipe is not None else _recipe_beside(supernet))
    if data["objective"]["name"] == "front_end":
        raise ValueError(
            f"the run of {supernet} trained the front end alone: retrain a subnet of the stage that comes after it"
        )
    data |= {
        "name": f"{data['name']}-retrained",
        "description": f"The subnet {chosen} of {data['name']}, distilled further alone",
        "output_dir": str(output_dir),
        "sampler": {},
        "deep_targets": None,
        "hub": None,
        "student": {
            "init": str(supernet),
            "revision": revision,
            "subnet": chosen.to_dict(),
            "freeze_front_end": data["student"]["freeze_front_end"],
            "fit_head_on": _HEAD_SECONDS if data["objective"]["name"] == "lighthubert" else None,
        },
        "schedule": _SCHEDULE,
    }
    data["training"]["steps"] = max(1, round(share * data["training"]["steps"]))
    for section in _EVERY:
        if data[section] is not None:
            data[section]["every"] = max(1, round(share * data[section]["every"]))
    return parse_recipe(DistillationRecipe, set_values(data, overrides))


def _plain(recipe: str | Path) -> dict[str, Any]:
    """A recipe with all its defaults, as plain data."""
    return parse_recipe(DistillationRecipe, read_recipe(DistillationRecipe, recipe)).model_dump(mode="json")


def _chosen(source: Path, name: str | None) -> tuple[str | Path, Subnet, str | None]:
    """The supernet (a folder or Hub id), the subnet meant, and the supernet's revision on the Hub."""
    if (source / PARETO).is_file():
        return _of_search(source, name)
    folders = [folder for folder in (source / MODEL, source) if (folder / "config.json").is_file()]
    if not folders:
        raise FileNotFoundError(
            f"{source} is neither the folder of a finished distillation (it has no {MODEL}) nor of a search "
            f"(it has no {PARETO})"
        )
    config = LightHubertConfig.from_pretrained(folders[0])
    if config.search_space is None:
        raise ValueError(f"{folders[0]} is static: it is no supernet from which a subnet could be cut")
    return folders[0], choose_subnet(name or "default", config), None


def _of_search(folder: Path, name: str | None) -> tuple[str | Path, Subnet, str | None]:
    data = read_object(folder / PARETO)
    entries = [entry for entry in data.get("scored") or data.get("subnets") or [] if isinstance(entry, Mapping)]
    by_name = {entry.get("name"): entry for entry in entries}
    front = ", ".join(str(entry["name"]) for entry in entries if entry.get("on_front")) or "none"
    if name is None:
        raise ValueError(f"which subnet of {folder / PARETO}? On its front are {front}; choose one with --subnet NAME")
    if name not in by_name:
        raise ValueError(f"{folder / PARETO} knows no subnet {name!r}; on its front are {front}")
    supernet = str(data.get("supernet") or "")
    if not supernet:
        raise ValueError(f"{folder / PARETO} does not say which supernet was searched; name the run's folder instead")
    found = next((place for place in (folder / supernet, Path(supernet)) if place.is_dir()), supernet)
    return found, Subnet.of(by_name[name].get("subnet")), data.get("revision")


def _recipe_beside(supernet: str | Path) -> Path:
    path = Path(supernet).parent / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"no {RECIPE} lies beside the supernet {supernet}; name its recipe with --recipe")
    return path

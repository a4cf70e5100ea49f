"""Loading recipes of any kind: YAML with overrides in, a validated recipe out.

`load_recipe` reads a file, shipped or of the user's own, applies `key=value` overrides, and turns any mistake into one
line that names the key and the remedy. What a recipe holds is said by its kind: `DistillationRecipe`,
`FineTuningRecipe`.
"""

import difflib
import reprlib
import types
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lighthubert_hf.absent import suggestion

from .sections import Recipe, Section

AnySection = TypeVar("AnySection", bound=Section)
_PACKAGE = "lighthubert_hf.training.recipes"
_MOST_VALUES = 100_000
# The folders of shipped recipes, and the command that runs what is in them.
KINDS = {"distillation": "distill", "staged": "distill", "finetuning": "finetune"}


def shipped_recipes(kind: type[Recipe]) -> list[str]:
    """Names of the recipes of a kind that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _shipped(kind).iterdir() if item.name.endswith(".yaml"))


def _shipped(kind: type[Recipe]) -> Traversable:
    return resources.files(_PACKAGE) / kind.shipped_in


def every_recipe() -> dict[str, tuple[str, str]]:
    """Of every shipped recipe, by its name: its kind (`distillation`, `finetuning`, `staged`) and its text."""
    found = {}
    for folder in KINDS:
        for item in resources.files(_PACKAGE).joinpath(folder).iterdir():
            if item.name.endswith(".yaml"):
                found[item.name.removesuffix(".yaml")] = folder, item.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


def recipe_text(name: str) -> str:
    """The file of a shipped recipe, of whatever kind, to start one's own from. FileNotFoundError if there is none."""
    recipes = every_recipe()
    if name not in recipes:
        raise FileNotFoundError(f"no shipped recipe {name!r}: there are {', '.join(recipes)}{_hint(name, [*recipes])}")
    return recipes[name][1]


def load_recipe(kind: type[AnySection], path_or_name: str | Path, overrides: Sequence[str] = ()) -> AnySection:
    """Read a recipe and apply overrides.

    Args:
        kind: `DistillationRecipe`, `FineTuningRecipe`, or another section that a whole file holds.
        path_or_name: A YAML file, or the name of a shipped recipe.
        overrides: `key=value`, keys dotted (`optimizer.lr=1e-4`, `data.sources.0.path=/audio`), values in YAML.

    Raises:
        FileNotFoundError: Neither a file nor a shipped recipe.
        ValueError: Not YAML, an unknown key, a wrong value; the message is one line.
    """
    return parse_recipe(kind, read_recipe(kind, path_or_name, overrides))


def read_recipe(
    kind: type[Section], path_or_name: str | Path, overrides: Sequence[str | tuple[str, Any]] = ()
) -> dict[str, Any]:
    """What `load_recipe` reads, with the overrides (also as pairs of key and value), before it is checked."""
    text, origin = _read(kind, path_or_name)
    data = _parsed(text, f"recipe {origin}")
    if not isinstance(data, dict):
        raise ValueError(f"recipe {origin} must be a mapping with the keys {list(kind.model_fields)}")
    return set_values(data, overrides)


def set_values(data: dict[str, Any], overrides: Sequence[str | tuple[str, Any]]) -> dict[str, Any]:
    """Set what `overrides` say in plain data, which is changed and returned."""
    for override in overrides:
        key, value = _key_and_value(override) if isinstance(override, str) else override
        _set(data, key, value)
    return data


def parse_recipe(kind: type[AnySection], data: dict[str, Any]) -> AnySection:
    """A recipe of a kind from plain data; ValueError with one line for the first mistake."""
    section = kind.variant(data)
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise ValueError(_one_line(error, section)) from None


def _read(kind: type[Section], path_or_name: str | Path) -> tuple[str, str]:
    path = Path(path_or_name)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig"), str(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"recipe {path} is not a text in UTF-8 (at byte {error.start})") from None
    shipped = shipped_recipes(kind)
    if str(path_or_name) in shipped:
        return (_shipped(kind) / f"{path_or_name}.yaml").read_text(encoding="utf-8"), str(path_or_name)
    hint = _hint(str(path_or_name), shipped)
    if not hint and (near := suggestion(path_or_name)):
        hint = f"; {near}"
    raise FileNotFoundError(f"no recipe {str(path_or_name)!r}: neither a file nor one of {', '.join(shipped)}{hint}")


def _key_and_value(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"an override is written key=value (for example optimizer.lr=1e-4), got {override!r}")
    return key, _parsed(text, f"the value of override {key}")


def _parsed(text: str, name: str) -> Any:
    """What YAML says, in plain data of a reasonable size: with aliases a few lines can mean billions of values."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of numbers and dates that cannot be
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    waiting, seen = [data], 0
    while waiting and seen <= _MOST_VALUES:
        value = waiting.pop()
        seen += 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if waiting:
        raise ValueError(f"{name} means more than {_MOST_VALUES:,} values; its aliases (*) multiply them")
    return data


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place: Any = data
    for depth, part in enumerate([*parents, last]):
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                name = ".".join([*parents, last][:depth])
                raise ValueError(f"override {key}: {name} is a list of {len(place)}; index it from 0, got {part!r}")
            part = int(part)
        elif not isinstance(place, dict):
            name = ".".join([*parents, last][:depth])
            raise ValueError(f"override {key}: {name} is {place!r}, which has no keys; replace it whole")
        if depth == len(parents):
            place[part] = value
        else:
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
            place = place[part]


def _one_line(error: ValidationError, model: type[Section]) -> str:
    """The first mistake in one line: the key, what is allowed, the nearest thing that is."""
    errors = error.errors()
    first = next(
        (e for e in errors if e["type"] == "extra_forbidden"), errors[0]
    )  # a misspelt key is also a missing one
    if isinstance(first["input"], dict):  # of a union of plain values and a section, a mapping meant the section
        key, _ = _locate(first["loc"], model)
        first = max((e for e in errors if _locate(e["loc"], model)[0].startswith(key)), key=lambda e: len(e["loc"]))
    key, section = _locate(first["loc"], model)
    kind, context, message = first["type"], first.get("ctx", {}), first["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # our own checks: they name the keys themselves
        return message
    if kind == "extra_forbidden":
        *parents, last = key.split(".")
        where = f" in {'.'.join(parents)}" if parents else ""
        allowed = list(section.model_fields)
        return f"unknown recipe key {key!r}{_hint(last, allowed, parents)}; allowed{where}: {', '.join(allowed)}"
    if kind in ("missing", "union_tag_not_found"):
        key = key if kind == "missing" else f"{key}.name"
        return f"recipe key {key!r} is missing; give it a value in the file or as {key}=…"
    if kind == "union_tag_invalid":
        expected, value, key = context["expected_tags"], context["tag"], f"{key}.name"
    elif kind == "literal_error":
        expected, value = context["expected"], first["input"]
    else:
        return f"recipe key {key!r}: {message[0].lower()}{message[1:]}, got {_shown(first['input'])}"
    hint = _hint(str(value), expected.split(chr(39))) if isinstance(value, str) else ""
    return f"recipe key {key!r} must be one of {expected}, got {_shown(value)}{hint}"


def _shown(value: Any) -> str:
    """A value as it stands in a message, shortened: YAML writes enormous ones in few characters."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 200
    shown.maxlevel = 4
    return " ".join(shown.repr(value).split())


def _locate(loc: tuple[str | int, ...], model: type[Section]) -> tuple[str, type[BaseModel]]:
    """Dotted key of an error's place, and the section it lies in.

    pydantic's places also hold tags for the members of unions it tried (`SpaceSection`, `dphubert`), left out here.
    """
    section, annotation, key = model, model, []
    for part in loc:
        members = _members(annotation)
        if len(members) > 1:
            tagged = [m for m in members if _is_section(m) and part in (m.__name__, *get_args(_annotation(m, "name")))]
            if not tagged:
                break
            annotation = tagged[0]
            continue
        key.append(str(part))
        if isinstance(part, int):
            annotation = get_args(members[0])[0]
            continue
        section = members[0] if _is_section(members[0]) else section
        annotation = _annotation(section, part)
        if annotation is None:
            break
    return ".".join(key), section


def _members(annotation: Any) -> list[Any]:
    """What an annotation allows, without None."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _annotation(section: type[BaseModel], name: str | int) -> Any:
    return section.model_fields[name].annotation if name in section.model_fields else None


def _hint(word: str, allowed: Sequence[str], parents: Sequence[str] = ()) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {'.'.join([*parents, close[0]])!r}?" if close else ""

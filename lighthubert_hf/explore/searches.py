"""What the page of a search shows: every subnet scored, its costs, its drawing and the command that extracts it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighthubert_hf.costs.figures import human
from lighthubert_hf.files import read_object
from lighthubert_hf.hub.picture import architecture_svg
from lighthubert_hf.search.costs import Cost, format_cost
from lighthubert_hf.search.report import NAME

FILE = f"{NAME}.json"
AGAIN = "run the same `lighthubert search` again: it scores nothing twice and writes the file anew"


def search_data(folder: Path, supernet: str | None = None) -> dict[str, Any]:
    """What the page shows of the search in `folder`, as plain data.

    Args:
        supernet: Hub id to extract subnets from, instead of the search's own supernet.

    Raises:
        FileNotFoundError: if the search has not written its report yet.
        ValueError: if the report is damaged or of an earlier version.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds a search that has not ended; {AGAIN}")
    report = read_object(path, AGAIN)
    try:
        return _page_data(report, supernet)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not the report of a search ({reason}); {AGAIN}") from None


def _page_data(report: Mapping[str, Any], supernet: str | None) -> dict[str, Any]:
    score = report["score"]
    scored = [entry for entry in report["scored"] if entry[score] is not None]
    source = (supernet, None) if supernet else (report["supernet"], report["revision"])
    costs = list(dict.fromkeys(name for entry in scored for name in entry["costs"]))
    objectives = [name for name in report["objectives"] if name in costs]
    return {
        "kind": "search",
        "title": f"Subnets of {source[0] or 'a supernet'}",
        "score": score,
        "maximize": bool(report["maximize"]),
        "costs": [{"name": name, "unit": _unit(name)} for name in costs],
        "axis": next(iter(objectives or costs), None),
        "limits": {name: value for name, value in report["limits"].items() if name in costs},
        "baseline": report["baseline"],
        "warnings": list(map(str, report["warnings"])),
        "facts": _facts(report),
        "history": report["hypervolume_history"],
        "teacher": _teacher(report["teacher"], costs),
        "subnets": [_subnet(entry, score, source) for entry in scored],
    }


def _subnet(entry: Mapping[str, Any], score: str, source: tuple[str, str | None]) -> dict[str, Any]:
    return {
        "name": entry["name"],
        "score": float(entry[score]),
        "costs": {name: float(value) for name, value in entry["costs"].items()},
        "shown": _shown(entry["costs"]),
        "description": entry["description"],
        "found_by": list(entry["found_by"]),
        "front": bool(entry["on_front"]),
        "folder": entry["folder"],
        "drawing": architecture_svg(**entry["shape"]),
        "command": _command(entry, *source),
    }


def _command(entry: Mapping[str, Any], supernet: str, revision: str | None) -> str:
    words = ["lighthubert", "extract", supernet or "SUPERNET", entry["name"], "--subnet"]
    words.append(json.dumps(entry["subnet"], separators=(",", ":")))
    return shlex.join(words + (["--revision", revision] if revision else []))


def _teacher(teacher: Mapping[str, Any] | None, costs: list[str]) -> dict[str, Any] | None:
    """The teacher's costs are known where they are counted, in clips as long as those of subnets."""
    if teacher is None:
        return None
    known = {"parameters": teacher["parameters"], str(Cost("macs")): teacher["macs_per_second"]}
    known = {name: value for name, value in known.items() if name in costs}
    shape = {key: teacher[key] for key in ("hidden_size", "layers", "convolutions")}
    return {
        "name": teacher["name"],
        "costs": known,
        "shown": _shown(known),
        "drawing": architecture_svg(**shape),
    }


def _shown(costs: Mapping[str, float]) -> dict[str, str]:
    return {name: format_cost(Cost.parse(name).name, value) for name, value in costs.items()}


def _facts(report: Mapping[str, Any]) -> list[str]:
    facts = [f"{human(len(report['scored']))} subnets scored", f"seed {report['seed']}"]
    facts.append(f"costs measured on: {report['machine']['device']}")
    for name, error in report["latency_error"].items():
        facts += [] if error is None else [f"{name} predicted within {error:.0%} (median)"]
    return facts


def _unit(name: str) -> str:
    return {"latency": "ms", "memory": "B"}.get(Cost.parse(name).name, "")

"""What a search found, as files: JSON and CSV for machines, and a picture."""

import csv
import io
import json
import math
import textwrap
from pathlib import Path
from typing import Any

from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.files import write_bytes
from lighthubert_hf.model.search_space import Subnet

from .costs import Cost, format_cost
from .result import ScoredSubnet, SearchResult

NAME = "pareto"


def write_report(result: SearchResult, folder: Path, plot: Cost | None = None) -> None:
    """Write `pareto.json`, `pareto.csv` and `pareto.png`; each appears as a whole or not at all.

    Args:
        plot: the cost on the picture's horizontal axis; by default the first objective.
    """
    data = to_json(result)
    objective = next(iter(result.settings["objectives"][1:]), None)
    axis = str(plot) if plot else objective or next(iter(result.settings["limits"]), str(Cost("parameters")))
    text = json.dumps(data, indent=1, allow_nan=False)
    files = {
        "json": (text + "\n").encode(),
        "csv": _csv(result).encode(),
        "png": _png(result, axis),
    }
    for suffix, content in files.items():
        write_bytes(folder / f"{NAME}.{suffix}", content)


def to_json(result: SearchResult) -> dict[str, Any]:
    """The content of `pareto.json`.

    Beside the search's settings: "warnings", why the result is doubtful; "baseline", the score of what needs no model
    (of a loss: of always predicting the mean target; null for others); "scored", all subnets, each with the score
    under the score's name ("loss", unless it is a custom one; null if it was not finite) and its costs; and "subnets",
    those to publish: the extracted ones, or else the whole front.
    """
    scored = [_subnet_json(subnet, result) for subnet in result.subnets]
    extracted = [entry for entry in scored if entry["folder"] is not None]
    return {
        **result.settings,
        "machine": next((table.machine for table in result.tables.values()), describe_machine()),
        "latency_error": {name: table.median_error for name, table in result.tables.items()},
        "warnings": list(result.warnings),
        "baseline": result.baseline,
        "teacher": result.teacher,
        "trials": {name: len(history) for name, history in result.hypervolume.items()},
        "hypervolume": {name: history[-1] for name, history in result.hypervolume.items() if history},
        "hypervolume_history": result.hypervolume,
        "subnets": extracted or [entry for entry in scored if entry["on_front"]],
        "scored": scored,
    }


def describe_search(result: SearchResult) -> str:
    """For the console: the front with every cost that is an objective or limited, what to compare the scores with,
    and what makes the result doubtful."""
    settings = result.settings
    shown = dict.fromkeys([str(Cost("parameters")), *settings["objectives"][1:], *settings["limits"]])
    lines = []
    for found in result.front:
        costs = ", ".join(f"{name} {format_cost(Cost.parse(name).name, found.costs[name])}" for name in shown)
        lines.append(f"{found.name}: {settings['score']} {found.score:.4g}, {costs}; {found.subnet}")
    if result.baseline is not None:
        lines.append(f"always predicting the mean: {settings['score']} {result.baseline:.4g}")
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in result.warnings)])


def _subnet_json(scored: ScoredSubnet, result: SearchResult) -> dict[str, Any]:
    entry = {
        "name": scored.name,
        "subnet": scored.subnet.to_dict(),
        "description": str(scored.subnet),
        "shape": scored.shape,
        "parameters": scored.costs["parameters"],
        "macs_per_second": scored.costs[str(Cost("macs"))],
        result.settings["score"]: scored.score if math.isfinite(scored.score) else None,
        "costs": scored.costs,
        "found_by": list(scored.found_by),
        "within_limits": scored.within_limits,
        "on_front": scored.on_front,
        "folder": scored.folder,
        "latency_ms": None,
    }
    table = next(iter(result.tables.values()), None)
    if table is not None:
        entry["latency_ms"] = table.latency_ms(scored.subnet)
        entry["latency"] = predicted_latency(scored.subnet, result)
    return entry


def predicted_latency(subnet: Subnet, result: SearchResult) -> dict[str, Any] | None:
    """As a model card states it (the fields of `Latency`); `None` if no latency was measured."""
    table = next(iter(result.tables.values()), None)
    if table is None:
        return None
    error = "" if table.median_error is None else f", median error {table.median_error:.0%}"
    return {
        "milliseconds_per_second": table.latency_ms(subnet) / (table.batch * table.seconds),
        "machine": ", ".join(f"{key} {value}" for key, value in table.machine.items()),
        "command": f"lighthubert search (clips of {table.seconds:g} s, batch {table.batch}{error})",
        "predicted": True,
    }


def _csv(result: SearchResult) -> str:
    buffer = io.StringIO()
    costs = list(result.subnets[0].costs) if result.subnets else []
    writer = csv.writer(buffer, lineterminator="\n")
    shape = list(result.subnets[0].subnet.to_dict()) if result.subnets else []
    writer.writerow(["name", result.settings["score"], *costs, "on_front", "within_limits", "found_by", *shape])
    for scored in result.subnets:
        values = [" ".join(map(str, v)) if isinstance(v, list) else v for v in scored.subnet.to_dict().values()]
        flags = [scored.on_front, scored.within_limits, " ".join(scored.found_by)]
        writer.writerow([scored.name, scored.score, *scored.costs.values(), *flags, *values])
    return buffer.getvalue()


def _png(result: SearchResult, cost: str) -> bytes:
    """Score against a cost, with a cross where a limit is exceeded, and how the hypervolume grew."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    score, limits = result.settings["score"], result.settings["limits"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for algorithm in result.hypervolume:
        points = [s for s in result.subnets if algorithm in s.found_by and s.within_limits]
        left.scatter([s.costs[cost] for s in points], [s.score for s in points], s=14, alpha=0.6, label=algorithm)
    if over := [s for s in result.subnets if not s.within_limits]:
        positions = [s.costs[cost] for s in over], [s.score for s in over]
        left.scatter(*positions, s=20, marker="x", color="tab:red", alpha=0.6, label="over a limit")
    if cost in limits:
        left.axvline(limits[cost], color="tab:red", ls="--", lw=1, label="limit")
    if result.baseline is not None:
        left.axhline(result.baseline, color="gray", ls=":", lw=1, label="always the mean")
    front = sorted((s.costs[cost], s.score) for s in result.front)
    left.plot(*zip(*front), "k.-", lw=1, label="Pareto front") if front else None
    left.set(xlabel=cost, ylabel=score, title=f"{len(result.subnets)} subnets, {len(front)} on the front")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_cost(Cost.parse(cost).name, value)))
    left.legend()
    if result.warnings:
        figure.suptitle("\n".join(textwrap.wrap(" ".join(result.warnings), 150)), color="tab:red", fontsize=9)
    for algorithm, history in result.hypervolume.items():
        right.plot(range(1, len(history) + 1), history, label=algorithm)
    right.set(xlabel="subnets tried", ylabel="hypervolume", title="share of the box the front dominates")
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()

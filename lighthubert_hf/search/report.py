"""What a search found, as files: JSON and CSV for machines, a picture, and a page to explore in a browser."""

import csv
import html
import io
import json
import math
from pathlib import Path
from string import Template
from typing import Any

from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.files import write_bytes
from lighthubert_hf.model.search_space import Subnet

from .costs import Cost, format_cost
from .result import ScoredSubnet, SearchResult

NAME = "pareto"
TEMPLATE = Path(__file__).with_name("templates") / "search_report.html"


def write_report(result: SearchResult, folder: Path) -> None:
    """Write `pareto.json`, `pareto.csv`, `pareto.png` and `pareto.html`; each appears as a whole or not at all."""
    data = to_json(result)
    text = json.dumps(data, indent=1, allow_nan=False)
    files = {
        "json": (text + "\n").encode(),
        "csv": _csv(result).encode(),
        "png": _png(result),
        "html": _html(data).encode(),
    }
    for suffix, content in files.items():
        write_bytes(folder / f"{NAME}.{suffix}", content)


def to_json(result: SearchResult) -> dict[str, Any]:
    """The content of `pareto.json`.

    Beside the search's settings: "scored", all subnets, each with the score under the score's name ("loss", unless it
    is a custom one; null if it was not finite) and its costs; and "subnets", those to publish: the extracted ones, or
    else the whole front.
    """
    scored = [_subnet_json(subnet, result) for subnet in result.subnets]
    extracted = [entry for entry in scored if entry["folder"] is not None]
    return {
        **result.settings,
        "machine": next((table.machine for table in result.tables.values()), describe_machine()),
        "latency_error": {name: table.median_error for name, table in result.tables.items()},
        "trials": {name: len(history) for name, history in result.hypervolume.items()},
        "hypervolume": {name: history[-1] for name, history in result.hypervolume.items() if history},
        "hypervolume_history": result.hypervolume,
        "subnets": extracted or [entry for entry in scored if entry["on_front"]],
        "scored": scored,
    }


def _subnet_json(scored: ScoredSubnet, result: SearchResult) -> dict[str, Any]:
    entry = {
        "name": scored.name,
        "subnet": scored.subnet.to_dict(),
        "description": str(scored.subnet),
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
    return {
        "milliseconds_per_second": table.latency_ms(subnet) / (table.batch * table.seconds),
        "machine": ", ".join(f"{key} {value}" for key, value in table.machine.items()),
        "command": f"lighthubert search (clips of {table.seconds:g} s, batch {table.batch})",
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


def _png(result: SearchResult) -> bytes:
    """Score against the first objective's cost, and how the hypervolume grew."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    score, *costs = result.settings["objectives"]
    cost = costs[0] if costs else str(Cost("parameters"))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for algorithm in result.hypervolume:
        points = [s for s in result.subnets if algorithm in s.found_by]
        left.scatter([s.costs[cost] for s in points], [s.score for s in points], s=14, alpha=0.6, label=algorithm)
    front = sorted((s.costs[cost], s.score) for s in result.front)
    left.plot(*zip(*front), "k.-", lw=1, label="Pareto front") if front else None
    left.set(xlabel=cost, ylabel=score, title=f"{len(result.subnets)} subnets, {len(front)} on the front")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_cost(Cost.parse(cost).name, value)))
    left.legend()
    for algorithm, history in result.hypervolume.items():
        right.plot(range(1, len(history) + 1), history, label=algorithm)
    right.set(xlabel="subnets tried", ylabel="hypervolume", title="share of the box the front dominates")
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _html(data: dict[str, Any]) -> str:
    """A page that needs nothing but a browser: the data stands inside it."""
    embedded = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # or "</script>" would end the script
    title = html.escape(f"Subnets of {data['supernet'] or 'a supernet'}")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=title, data=embedded)

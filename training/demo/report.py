"""What `lighthubert demo` shows at the end: a table, a picture, and the JSON behind both."""

from pathlib import Path
from statistics import median
from typing import Any

from lighthubert_hf.files import replacing_file, write_json, write_text


def write_results(folder: Path, results: dict[str, Any]) -> str:
    """Write `results.json`, `results.md` and `pareto.png` into `folder`; return the table as Markdown."""
    table = render_table(results)
    write_json(folder / "results.json", results)
    write_text(folder / "results.md", table)
    draw_pareto(results, folder / "pareto.png")
    return table


def render_table(results: dict[str, Any]) -> str:
    """The results as Markdown: one row per model, then what the two stages and the search did."""
    teacher = results["teacher"]
    minutes = results["settings"]["labelled_minutes"]
    head = ["model", "parameters", "MACs per s", "ms per s of audio", "validation loss"]
    head += [f"CER, {minutes:g} labelled min", "CER from scratch"]
    rows = [["teacher", *_costs(teacher), "0", f"({_percent(teacher['cer'].get('test_sentences'))}, all labels)", "–"]]
    for subnet in results["subnets"]:
        errors = [_percent(subnet[f"cer_{kind}"]) for kind in ("distilled", "scratch")]
        rows.append([subnet["name"], *_costs(subnet), f"{subnet['loss']:.3f}", *errors])
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(["# What the demo measured", "", *lines, "", *_findings(results), ""])


def _findings(results: dict[str, Any]) -> list[str]:
    stages, search = results["distillation"], results["search"]
    random = len(stages["random_subnets"])
    lines = [
        "Validation loss: L1 between the prediction and the mean of the teacher's last FFN outputs; "
        f"predicting their mean would cost {stages['predicting_the_mean']:.3f}.",
        "",
        f"- {random} random subnets cost {_range(stages['stage1'])} cut from the stage-1 supernet, "
        f"{_range(stages['stage2'])} after stage 2.",
        f"- The search scored {search['evaluated']} of {search['subnets']} subnets in {search['seconds']:.0f} s.",
    ]
    for subnet in results["subnets"]:
        alike = subnet["losses_of_random_subnets"]
        line = f"- {subnet['name']} ({subnet['description']}): {subnet['loss']:.3f}"
        if alike:
            line += f"; {len(alike)} random subnets of its size: median {median(alike):.3f}, best {min(alike):.3f}"
        lines.append(line + ".")
    machine = results["machine"]
    where = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    lines += ["", f"Measured by `lighthubert demo` on {where}, {results['date']}."]
    return lines


def draw_pareto(results: dict[str, Any], path: Path) -> None:
    """Parameters against validation loss: every subnet scored, the front, and the ones that were picked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    scored, front = results["search"]["scored"], sorted(results["search"]["front"])
    axes.scatter(*_columns(scored), s=8, color="0.75", label="subnets scored")
    axes.plot(*_columns(front), drawstyle="steps-post", color="tab:blue", lw=1.2, label="Pareto front")
    picked = [(subnet["parameters"], subnet["loss"]) for subnet in results["subnets"]]
    axes.scatter(*_columns(picked), color="tab:red", zorder=3, label="picked")
    for subnet in results["subnets"]:
        axes.annotate(
            subnet["name"], (subnet["parameters"] / 1e6, subnet["loss"]), xytext=(6, 6), textcoords="offset points"
        )
    axes.axvline(results["teacher"]["parameters"] / 1e6, color="0.4", ls=":", label="teacher's size")
    axes.set(xlabel="parameters (millions)", ylabel="distillation loss on validation audio")
    axes.legend(frameon=False)
    with replacing_file(path) as new:
        figure.savefig(new, format="png")


def _columns(points: list) -> tuple[list[float], list[float]]:
    return [parameters / 1e6 for parameters, _ in points], [loss for _, loss in points]


def _costs(row: dict[str, Any]) -> list[str]:
    return [f"{row['parameters'] / 1e6:.2f}M", f"{row['macs_per_second'] / 1e9:.3f}G", f"{row['ms_per_second']:.1f}"]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _range(losses: list[float]) -> str:
    return f"{min(losses):.3f}–{max(losses):.3f}"

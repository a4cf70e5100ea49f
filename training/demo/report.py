"""What `lighthubert demo` shows at the end: a table, a picture, and the JSON behind both."""

from pathlib import Path
from statistics import median
from typing import Any

from lighthubert_hf.files import replacing_file, write_json, write_text

_SPLITS = {"test_sentences": "new sentences", "test_voice": "a new voice", "validation": "held out"}


def write_results(folder: Path, results: dict[str, Any]) -> str:
    """Write `results.json`, `results.md` and `pareto.png` into `folder`; return the table as Markdown."""
    table, below = render_table(results), [*findings(results), "", _where(results)]
    text = "\n".join(["# What the demo measured", "", table, "", *below, ""])
    write_json(folder / "results.json", results)
    write_text(folder / "results.md", text)
    draw_results(results, folder / "pareto.png")
    return text


def render_table(results: dict[str, Any]) -> str:
    """A row for the teacher and each subnet, as Markdown."""
    teacher = results["teacher"]
    splits = list(results["subnets"][0]["cer"])
    head = ["model", "parameters", "MACs per s", "ms per s of audio", "× the teacher", "distillation loss"]
    head += [f"CER, {_SPLITS.get(split, split)}" for split in splits] + ["units unlike the teacher's"]
    rows = [["teacher", *_costs(teacher), "0", *_errors(teacher["cer"], splits), "0"]]
    rows += [
        [
            *(subnet["name"], *_costs(subnet), f"{subnet['loss']:.3f}", *_errors(subnet["cer"], splits)),
            f"{subnet['units']['unit_error_rate']:.0%}",
        ]
        for subnet in results["subnets"]
    ]
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows))


def findings(results: dict[str, Any]) -> list[str]:
    """What the table's columns mean, and what the search found: lines of a Markdown list."""
    teacher, search = results["teacher"], results["search"]
    lines = [
        "- × the teacher: medians of runs in turn, 5 s of audio, all in this package's form. transformers' own takes "
        f"{teacher['ms_per_second_in_transformers']:.1f} ms for the teacher.",
        "- Distillation loss: L1 between the prediction and the mean of the teacher's last FFN outputs; predicting "
        f"their mean would cost {search['predicting_the_mean']:.3f}.",
        "- CER: share of wrong characters. The subnets are fine-tuned on the labels that the teacher was trained on "
        "and start from what it has learnt of them, so one may end up better.",
        "- Units unlike the teacher's: edits per unit between both sequences, without repeats, on held-out speech; "
        f"{results['settings']['units']} units of the last layer, mapped onto each subnet.",
        f"- The search scored {search['evaluated']} of {search['subnets']:,} subnets.",
    ]
    for subnet in results["subnets"]:
        alike = subnet["losses_of_random_subnets"]
        line = f"- {subnet['name']} ({subnet['description']}): {subnet['loss']:.3f}"
        if alike:
            line += f"; {len(alike)} random subnets as costly: median {median(alike):.3f}, best {min(alike):.3f}"
        lines.append(line + ".")
    return lines


def _where(results: dict[str, Any]) -> str:
    machine = results["machine"]
    where = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in results["seconds"].items())
    return f"Measured by `lighthubert demo` on {where}, {results['date']}: {parts}."


def draw_results(results: dict[str, Any], path: Path) -> None:
    """Arithmetic against loss of every subnet scored, and speed against errors of those that were picked."""
    from matplotlib.figure import Figure

    teacher, subnets, search = results["teacher"], results["subnets"], results["search"]
    splits = list(subnets[0]["cer"])
    figure = Figure(figsize=(10 if splits else 5.5, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if splits else 1, squeeze=False)[0]
    axes = panels[0]
    axes.scatter(*_columns(search["scored"]), s=8, color="0.75", label="subnets scored")
    axes.plot(
        *_columns(sorted(search["front"])), drawstyle="steps-post", color="tab:blue", lw=1.2, label="Pareto front"
    )
    picked = [(subnet["macs_per_second"], subnet["loss"]) for subnet in subnets]
    axes.scatter(*_columns(picked), color="tab:red", zorder=3, label="picked")
    for subnet, place in zip(subnets, zip(*_columns(picked), strict=True), strict=True):
        axes.annotate(subnet["name"], place, xytext=(6, 6), textcoords="offset points")
    axes.axvline(teacher["macs_per_second"] / 1e6, color="0.4", ls=":", label="teacher")
    axes.set(xlabel="million MACs per second of audio", ylabel="distillation loss on validation audio")
    axes.legend(frameon=False)
    if splits:
        _draw_errors(panels[1], teacher, subnets, splits)
    with replacing_file(path) as new:
        figure.savefig(new, format="png")


def _draw_errors(axes, teacher: dict[str, Any], subnets: list[dict[str, Any]], splits: list[str]) -> None:
    for split, marker in zip(splits, "os^", strict=False):
        models = [model for model in (teacher, *subnets) if split in model["cer"]]
        models.sort(key=lambda model: model["speed"])
        speeds, errors = [model["speed"] for model in models], [100 * model["cer"][split] for model in models]
        axes.plot(speeds, errors, marker + "-", label=_SPLITS.get(split, split))
    for model in ({"name": "teacher"} | teacher, *subnets):
        if splits[0] not in model["cer"]:
            continue
        place = (model["speed"], 100 * model["cer"][splits[0]])
        axes.annotate(model["name"], place, xytext=(4, -12), textcoords="offset points")
    axes.set(xlabel="speed, times the teacher's", ylabel="wrong characters (%)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.12)
    axes.legend(frameon=False)


def _columns(points: list) -> tuple[list[float], list[float]]:
    return [macs / 1e6 for macs, _ in points], [loss for _, loss in points]


def _costs(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['parameters'] / 1e6:.2f}M",
        f"{row['macs_per_second'] / 1e6:.0f}M",
        f"{row['ms_per_second']:.2f}",
        f"{row['speed']:.2f}",
    ]


def _errors(cer: dict[str, float], splits: list[str]) -> list[str]:
    return [f"{cer[split]:.1%}" if split in cer else "–" for split in splits]

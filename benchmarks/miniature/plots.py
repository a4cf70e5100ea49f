"""The report's plots, from the results."""

from pathlib import Path
from typing import Any

import claims
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_COLOURS = plt.get_cmap("tab10").colors


def plot_all(results: dict[str, Any], folder: Path) -> dict[Path, str]:
    """Draw what there are results for; the files and what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, (draw, needs, title) in PLOTS.items():
        present = [seed for seed in results["seeds"].values() if set(needs) <= set(seed)]
        if present:
            figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
            draw(axes, present)
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"miniature-{name}.png"
            figure.savefig(path, dpi=110)
            plt.close(figure)
            drawn[path] = title
    return drawn


def _probes(axes, seeds: list[dict[str, Any]]) -> None:
    """A group of points for each task: models beside one another, a dot a seed, a bar the mean."""
    models = list(seeds[0]["probes"])
    for column, task in enumerate(claims.TITLES):
        for place, model in enumerate(models):
            values = [claims.points(seed["probes"][model]["scores"], task) for seed in seeds]
            x = column + (place - (len(models) - 1) / 2) * 0.8 / len(models)
            axes.plot([x] * len(values), values, ".", color=_COLOURS[place], alpha=0.6)
            label = model + (" %" if model[-1].isdigit() else "")
            mean = sum(values) / len(values)
            axes.plot([x - 0.03, x + 0.03], [mean, mean], color=_COLOURS[place], label=None if column else label)
    axes.set_xticks(range(len(claims.TITLES)), claims.TITLES.values())
    axes.set_ylabel("100 % less errors, or accuracy (%)")
    _legend(axes)


def _sizes(axes, seeds: list[dict[str, Any]]) -> None:
    """Loss against parameters: random subnets of three supernets, and the students trained alone."""
    for colour, part in zip(_COLOURS, ("stage1", "stage2-alone", "stage2")):
        points = [point for seed in seeds for point in seed[part]["random"]]
        axes.plot(*_millions(points), ".", color=colour, alpha=0.6, label=f"random subnets, {part}")
    own = [
        (record["parameters"][name], record["losses"][name])
        for seed in seeds
        for name in ("71", "29")
        for record in [seed[f"alone-{name}"]]
    ]
    axes.plot(*_millions(own), "k*", label="trained alone")
    axes.axhline(seeds[0]["stage2"]["predicting_the_mean"], color="grey", lw=1, ls="--", label="predicting the mean")
    axes.set_xlabel("M parameters")
    axes.set_ylabel("distillation loss")
    _legend(axes)


def _legend(axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)


def _millions(points) -> tuple[list[float], list[float]]:
    return [parameters / 1e6 for parameters, _ in points], [loss for _, loss in points]


def _curves(axes, seeds: list[dict[str, Any]]) -> None:
    """Loss of the random subnets against work, a line a seed."""
    from distilling import ADDITIONS

    names = [name for name in ADDITIONS if all(name in seed for seed in seeds)]
    for colour, name in zip(["black", *_COLOURS], ["plain", *names]):
        for index, seed in enumerate(seeds):
            curve = claims.total_curve(seed, name)
            axes.plot(
                *zip(*curve), color=colour, lw=1.6 if name == "plain" else 1, alpha=0.8, label=name * (not index)
            )
    axes.set_xlabel("work, as a share of the plain recipe's (FLOP, both stages)")
    axes.set_ylabel("loss of random subnets")
    _legend(axes)


def _ranking(axes, seeds: list[dict[str, Any]]) -> None:
    """Probes against loss, over the subnets of all seeds."""
    for colour, (task, title) in zip(_COLOURS, claims.TITLES.items()):
        rows = [row for seed in seeds for row in seed["ranking"]]
        scores = [claims.points(row["scores"], task) for row in rows]
        axes.plot([row["loss"] for row in rows], scores, ".", color=colour, label=title)
    axes.set_xlabel("distillation loss of the subnet")
    axes.set_ylabel("100 % less errors, or accuracy (%)")
    _legend(axes)


PLOTS = {
    "probes": (_probes, ("probes",), "Probes of teacher, subnets and students"),
    "sizes": (
        _sizes,
        ("stage1", "stage2", "stage2-alone", "alone-71", "alone-29"),
        "Loss against parameters of subnets and of students trained alone",
    ),
    "additions": (_curves, ("stage1", "stage2"), "Loss against work, with each addition"),
    "ranking": (_ranking, ("ranking",), "Probes against loss"),
}

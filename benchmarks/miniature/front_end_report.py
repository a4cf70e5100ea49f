"""The front-end study's rules, fixed before its run, and its tables and plots."""

from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from claims import TITLES, Row, Seeds, points, with_spread
from contenders import markdown  # in the folder above
from matplotlib import pyplot as plt
from publishing import saved

from lighthubert_hf.search.pareto import hypervolume

ENCODERS = ("largest", "71", "default", "29", "smallest")
FRONT_ENDS = ("whole", "half", "third", "sixth")
BUDGETS = 40  # on which fronts are compared, evenly between the smallest fixed subnet and half of the teacher
NARROW_LOSS = 1.05  # times the loss of the same encoder with the whole front end: what counts as worth having


def rules(seeds: Seeds) -> list[Row]:
    """Numbers per seed that must not be below a bound."""
    rows = []
    for front_end in ("half", "third"):
        for encoder in ("71", "29"):
            ratio = _per_seed(
                seeds,
                ("elastic",),
                lambda run, e=encoder, f=front_end: run["losses"][f"{e}, whole"] / run["losses"][f"{e}, {f}"],
            )
            what = (
                f"{encoder} %: loss with the whole front end, as a share of that with a {front_end} of its arithmetic"
            )
            rows.append(Row("1", what, f"at least {1 / NARROW_LOSS:.2f}", ratio, 1 / NARROW_LOSS))
    for other, what in (("no-first-stage", "without the first stage"), ("no-order", "without ordering channels")):
        gain = _per_seed(
            seeds, ("elastic", other), lambda run, without: 100 * (1 - front_loss(run) / front_loss(without))
        )
        rows.append(Row("2", f"narrow front ends: loss below that {what}, at equal work", "above", gain, 0.0, " %"))
    worst = _per_seed(seeds, ("elastic", "fixed"), lambda run, other: min(gains(run, other), default=0.0))
    what = "budgets below half of the teacher's MACs: least gain of the elastic front over the fixed one"
    rows.append(Row("3", what, "above at every budget", worst, 0.0, " %"))
    volumes = _per_seed(seeds, ("elastic", "fixed"), lambda run, other: volume(run) / volume(other))
    rows.append(
        Row("3", "hypervolume of the elastic front, as a share of the fixed one's", "at least 1", volumes, 1.0)
    )
    return rows


def _per_seed(seeds: Seeds, needs: tuple[str, ...], value) -> tuple[float, ...]:
    present = [seed for seed in seeds.values() if all(need in seed for need in needs)]
    return tuple(value(*(seed[need] for need in needs)) for seed in present)


def front_loss(run: dict[str, Any]) -> float:
    """Mean loss of the named encoders with half and with a third of the front end's arithmetic."""
    return mean(run["losses"][f"{encoder}, {front_end}"] for encoder in ENCODERS for front_end in ("half", "third"))


def teacher_macs(run: dict[str, Any]) -> float:
    return run["sizes"]["largest, whole"]["macs"]


def loss_at(run: dict[str, Any], budget: float) -> float | None:
    """Of the best subnet of the front within a budget of multiply-accumulates; `None` if there is none."""
    return min((entry["loss"] for entry in run["front"] if entry["macs"] <= budget), default=None)


def gains(run: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """How far the loss of `run`'s front is below that of `other`'s, in percent, at budgets that both can keep."""
    least = max(min(entry["macs"] for entry in front["front"]) for front in (run, other))
    half = teacher_macs(run) / 2
    budgets = [least + (half - least) * index / (BUDGETS - 1) for index in range(BUDGETS)] if least < half else []
    return [100 * (1 - loss_at(run, budget) / loss_at(other, budget)) for budget in budgets]


def volume(run: dict[str, Any]) -> float:
    """Hypervolume of the front below predicting the mean and the teacher's multiply-accumulates, as a share of it."""
    size, scale = teacher_macs(run), run["predicting_the_mean"]
    return hypervolume([(entry["macs"] / size, entry["loss"] / scale) for entry in run["front"]], (1.0, 1.0))


def report(results: dict[str, Any]) -> str:
    """Everything as Markdown."""
    seeds = results["seeds"]
    tables = [
        "### Rules"
        + "\n\n"
        + markdown(
            ["", "what", "measured", "rule", "verdict"],
            [[row.claim, row.what, row.measured, row.expected, row.verdict] for row in rules(seeds)],
        ),
        _losses(seeds),
        _fronts(seeds),
        _probes(seeds),
    ]
    return "\n\n".join(table for table in tables if table)


def _runs(seeds: Seeds) -> list[str]:
    """Names of supernets, those that most seeds have first."""
    names = dict.fromkeys(name for seed in seeds.values() for name, part in seed.items() if "front" in part)
    return sorted(names, key=lambda name: -sum(name in seed for seed in seeds.values()))


def _losses(seeds: Seeds) -> str:
    cells = []
    for name in _runs(seeds):
        present = [seed[name] for seed in seeds.values() if name in seed]
        row = [name.replace("-", " "), str(len(present)), " + ".join(str(s["steps"]) for s in present[0]["stages"])]
        row.append(f"{mean(run['flop'] for run in present) / 1e12:.2f}")
        for encoder in ("largest", "71", "29"):
            for front_end in FRONT_ENDS[:3]:
                key = f"{encoder}, {front_end}"
                values = [run["losses"][key] for run in present if key in run["losses"]]
                row.append(with_spread(values, signed=False, digits=3) if values else "–")
        cells.append(row)
    if not cells:
        return ""
    sizes = [f"{size}, {front_end}" for size in ("largest", "71 %", "29 %") for front_end in FRONT_ENDS[:3]]
    return "### Losses\n\nOn new sentences, by encoder and the front end's arithmetic.\n\n" + markdown(
        ["run", "seeds", "steps", "TFLOP", *sizes], cells
    )


def _fronts(seeds: Seeds) -> str:
    cells = []
    for name in _runs(seeds):
        present = [seed[name] for seed in seeds.values() if name in seed]
        row = [name.replace("-", " "), with_spread([volume(run) for run in present], signed=False, digits=3)]
        for share in (0.25, 0.35, 0.45, 0.5, 0.6, 0.75, 1.0):
            values = [loss_at(run, share * teacher_macs(run) * 1.0001) for run in present]
            row.append("–" if None in values else with_spread(values, signed=False, digits=3))
        cells.append(row)
    if not cells:
        return ""
    return (
        "### Fronts\n\nHypervolume below predicting the mean and the teacher's MACs, as a share of that; the "
        "loss of the best subnet within a share of the teacher's MACs.\n\n"
        + markdown(["run", "hypervolume", "25 %", "35 %", "45 %", "50 %", "60 %", "75 %", "100 %"], cells)
    )


def _probes(seeds: Seeds) -> str:
    present = [seed["probes"] for seed in seeds.values() if "probes" in seed]
    if not present:
        return ""
    cells = [
        [name, *(with_spread([points(p[name]["scores"], task) for p in present], signed=False) for task in TITLES)]
        for name in present[0]
    ]
    return (
        "### Probes\n\nOf the 71 % encoder. 100 % less the error rate (phonemes, verification), or accuracy, in "
        "percent.\n\n" + markdown(["frozen model", *TITLES.values()], cells)
    )


def plot(results: dict[str, Any], folder: Path) -> dict[Path, str]:
    seeds = [seed for seed in results["seeds"].values() if {"elastic", "fixed"} <= set(seed)]
    if not seeds:
        return {}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for colour, name in (("tab:grey", "fixed"), ("tab:blue", "elastic")):
        for index, seed in enumerate(seeds):
            front = seed[name]["front"]
            shares = [100 * entry["macs"] / teacher_macs(seed[name]) for entry in front]
            losses = [entry["loss"] for entry in front]
            axes.step(
                shares, losses, where="post", marker=".", color=colour, label=None if index else f"{name} front end"
            )
    axes.axvline(50, color="black", lw=0.8, ls=":")
    axes.set_xlabel("multiply-accumulates, % of the teacher's")
    axes.set_ylabel("distillation loss on new sentences")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = saved(figure, folder / "miniature-front-ends.png")
    return {path: "Loss against multiply-accumulates of subnets with an elastic and with a fixed front end"}

"""The recipe study's rules, fixed before its confirming runs, and its tables and plots."""

from pathlib import Path
from statistics import mean
from typing import Any

import claims
import matplotlib

matplotlib.use("Agg")
from claims import TITLES, Row, Seeds, points, with_spread
from contenders import markdown  # in the folder above
from label_free import with_mixes
from matplotlib import pyplot as plt
from publishing import saved
from scipy.stats import spearmanr

SIZES = ("71", "29")
WORK = 0.6  # of the two students' that the supernet may take
CLAIMS = {
    "goal": "Cut subnets are within 2 % of students trained alone, for 0.6 of their work; retrained, no worse",
    "1": "The largest subnet is as good as the teacher",
    "2": "29 % fewer parameters cost almost nothing; at 3.5 × fewer only phonemes lose more than a point",
    "3": "Subnets cut untouched match students trained alone, at a fraction of the cost",
    "4": "Two stages beat the winner alone; cutting from stage 1 fails",
    "5": "The loss ranks subnets as the probes do; evolution beats random search and the default subnet",
}


def rules(seeds: Seeds) -> dict[str, list[Row]]:
    """Rows by claim: the goal of the study, and the paper's claims 1 to 5 for the winner."""
    goal = []
    for size in SIZES:

        def share(cut, own, size=size):
            return own["losses"][size] / cut["losses"][size]

        ratio = _per_seed(seeds, ("winner", f"alone-{size}"), share)
        what = f"{size} %: loss of the student trained alone, as a share of the cut subnet's"
        goal.append(Row("goal", what, f"at least {1 / claims.SAME_LOSS:.2f}", ratio, 1 / claims.SAME_LOSS))
        needs = (f"retrained-{size}", f"alone-{size}")
        ratio = _per_seed(seeds, needs, share)
        what = f"{size} %: the same, after retraining for a tenth of the steps"
        goal.append(Row("goal", what, "at least 1", ratio, 1.0))
    work = _per_seed(seeds, ("winner", "alone-71", "alone-29"), lambda s, a, b: s["flop"] / (a["flop"] + b["flop"]))
    goal.append(Row("goal", "work less than 0.6 of the two students': share left over", "above", _left(work), 0.0))
    found = claims.all_claims({"seeds": {name: _as_the_papers(seed) for name, seed in seeds.items()}})
    staged = claims.all_claims({"seeds": {name: _with_stages(seed) for name, seed in seeds.items()}})
    return {"goal": goal, **{number: found[number] for number in "1235"}, "4": staged["4"]}


def _left(work: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(WORK - share for share in work)


def _per_seed(seeds: Seeds, needs: tuple[str, ...], value) -> tuple[float, ...]:
    present = [seed for seed in seeds.values() if all(need in seed for need in needs)]
    return tuple(value(*(seed[need] for need in needs)) for seed in present)


def _as_the_papers(seed: dict[str, Any]) -> dict[str, Any]:
    """The parts under the names that the paper's claims know; the winner has one stage, which stands for both."""
    known = {"winner": "stage2", "alone-71": "alone-71", "alone-29": "alone-29", "ranking": "ranking"}
    parts = {new: seed[old] for old, new in known.items() if old in seed}
    parts |= {"evolution": seed["evolution"]} if "evolution" in seed else {}
    if "winner" in seed:
        parts["stage1"] = seed["winner"] | {"flop": 0.0}
    if "probes" in seed:
        probes = seed["probes"]
        names = {f"winner, {size}": f"stage 2, {size}" for size in ("largest", *SIZES)}
        parts["probes"] = probes | {new: probes[old] for old, new in names.items()}
        parts["probes"]["stage 1, largest"] = probes["winner, largest"]
        parts["probes"]["stage 2 alone, 71"] = probes["winner, 71"]  # claim 4 is judged by `_with_stages`
    return parts


def _with_stages(seed: dict[str, Any]) -> dict[str, Any]:
    """The two-stage run beside the winner, which is its stage 2 alone."""
    parts = {}
    if {"two-stages", "winner"} <= set(seed):
        parts = {"stage1": seed["two-stages"]["first"], "stage2": seed["two-stages"]["second"]}
        parts["stage2-alone"] = seed["winner"]
        if "probes" in seed:
            probes = {"stage 2, 71": seed["two-stages"]["probes"], "stage 2 alone, 71": seed["probes"]["winner, 71"]}
            parts["probes"] = probes
    return parts


def report(results: dict[str, Any]) -> str:
    """Everything as Markdown."""
    seeds = results["seeds"]
    tables = [_verdicts(seeds), _ideas(results), _confirmed(seeds), _scores(seeds), _rows(seeds)]
    return "\n\n".join(table for table in tables if table)


def _verdicts(seeds: Seeds) -> str:
    rows = rules(seeds)
    cells = [
        [f"{number}. {title}" if number != "goal" else title, f"**{claims.verdict(rows[number])}**"]
        for number, title in CLAIMS.items()
    ]
    return "### Verdicts\n\n" + markdown(["claim", "verdict"], cells)


def _rows(seeds: Seeds) -> str:
    cells = [
        [number, row.what, row.measured, row.expected, row.verdict]
        for number, rows in rules(seeds).items()
        for row in rows
        if row.values
    ]
    return "### Every measurement\n\n" + markdown(["claim", "what", "measured", "rule", "verdict"], cells)


def screened(results: dict[str, Any]) -> dict[str, Any]:
    """The screening's runs by idea, and the students trained alone by idea and size."""
    seed = results["seeds"][str(results["setting"]["screened_seed"])]
    return {name.removeprefix("screen-"): run for name, run in seed.items() if name.startswith("screen-")}


def _ideas(results: dict[str, Any]) -> str:
    runs = screened(results)
    if not runs:
        return ""
    sizes = ("largest", "71", "default", "29", "smallest")
    cells = []
    for name, run in runs.items():
        if not name.startswith("alone-"):
            losses = [f"{run['losses'][size]:.3f}" if size in run["losses"] else "–" for size in sizes]
            own = [runs.get(f"alone-{size}-{name}") for size in SIZES]
            own = [f"{run['losses'][size]:.3f}" if run else "–" for run, size in zip(own, SIZES, strict=True)]
            drawn = mean(loss for _, loss in run["random"]) if run["random"] else float("nan")
            cells.append([name.replace("-", " "), f"{run['flop'] / 1e12:.2f}", *losses, f"{drawn:.3f}", *own])
    header = [
        "idea",
        "TFLOP",
        "largest",
        "71 %",
        "default",
        "29 %",
        "smallest",
        "random",
        "alone, 71 %",
        "alone, 29 %",
    ]
    setting = results["setting"]
    return (
        f"### Ideas\n\nScreened in seed {setting['screened_seed']} with {setting['screened_steps']} steps: losses on "
        "new sentences.\n\n" + markdown(header, cells)
    )


def _confirmed(seeds: Seeds) -> str:
    cells = []
    for name in ("winner", "plain", *(f"{kind}-{size}" for size in SIZES for kind in ("alone", "retrained"))):
        present = [seed[name] for seed in seeds.values() if name in seed]
        if present:
            losses = [
                with_spread([run["losses"][size] for run in present], signed=False, digits=4)
                if size in present[0]["losses"]
                else "–"
                for size in ("largest", "71", "default", "29", "smallest")
            ]
            work = mean(run["flop"] for run in present) / 1e12
            cells.append([name.replace("-", " "), str(present[0]["steps"]), f"{work:.2f}", *losses])
    if not cells:
        return ""
    header = ["run", "steps", "TFLOP", "largest", "71 %", "default", "29 %", "smallest"]
    text = "### Losses\n\nOf all seeds, on new sentences.\n\n" + markdown(header, cells)
    present = [seed["probes"] for seed in seeds.values() if "probes" in seed]
    if present:
        rows = [
            [name, *(with_spread([points(p[name]["scores"], task) for p in present], signed=False) for task in TITLES)]
            for name in present[0]
        ]
        text += (
            "\n\n### Probes\n\n100 % less the error rate (phonemes, verification) or accuracy, in percent.\n\n"
            + markdown(["frozen model", *TITLES.values()], rows)
        )
    return text


def correlations(ranking: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's correlation of every score with every probe over the subnets, and its mean over the probes."""
    scores = {"loss": [-row["loss"] for row in ranking]}
    scores |= {name: [row["label_free"][name] for row in ranking] for name in ranking[0]["label_free"]}
    scores = with_mixes(scores)
    if "subnet" in ranking[0]:  # what a score must beat to say more than that larger is better
        subnets = [row["subnet"] for row in ranking]
        scores["FFN weights"] = [float(net["hidden_size"] * sum(net["intermediate_size"])) for net in subnets]
    found = {}
    for name, values in scores.items():
        by_task = {}
        for task in TITLES:
            probed = [points(row["scores"], task) for row in ranking]
            same = len(set(values)) < 2 or len(set(probed)) < 2
            by_task[task] = 0.0 if same else float(spearmanr(values, probed).statistic)
        found[name] = by_task | {"mean": mean(by_task.values())}
    return found


def better_scores(seeds: Seeds) -> list[str]:
    """Scores whose mean correlation is above the loss's in every seed."""
    found = [correlations(seed["ranking"]) for seed in seeds.values() if "ranking" in seed]
    if len(found) < claims.CUT_SHORT:
        return []
    return [name for name in found[0] if all(seed[name]["mean"] > seed["loss"]["mean"] for seed in found)]


def _scores(seeds: Seeds) -> str:
    found = [correlations(seed["ranking"]) for seed in seeds.values() if "ranking" in seed]
    if not found:
        return ""
    cells = [
        [name, *(with_spread([seed[name][key] for seed in found]) for key in (*TITLES, "mean"))] for name in found[0]
    ]
    best = better_scores(seeds)
    said = f"Better than the loss in every seed: {', '.join(best) or 'none'}."
    return (
        "### Scores without labels\n\nSpearman's correlation with each probe over the ranked subnets. "
        + said
        + "\n\n"
        + markdown(["score", *TITLES.values(), "mean"], cells)
    )


def plot(results: dict[str, Any], folder: Path) -> dict[Path, str]:
    drawn, runs = {}, screened(results)
    supernets = {name: run for name, run in runs.items() if not name.startswith("alone-")}
    if supernets:
        figure, axes = plt.subplots(figsize=(7, 0.6 + 0.3 * len(supernets)), layout="constrained")
        for row, (name, run) in enumerate(reversed(supernets.items())):
            for size, colour in (("71", "tab:blue"), ("29", "tab:orange")):
                own = runs.get(f"alone-{size}-{name}")
                label = f"{size} % of the parameters, cut" if row == 0 else None
                axes.plot(run["losses"].get(size), row, "o", color=colour, label=label)
                if own:
                    label = "trained alone" if row == 0 and size == "29" else None
                    axes.plot(own["losses"][size], row, "*", color=colour, label=label)
        axes.set_yticks(range(len(supernets)), [name.replace("-", " ") for name in reversed(supernets)], fontsize=7)
        axes.set_xlabel("distillation loss on new sentences")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
        drawn[saved(figure, folder / "miniature-ideas.png")] = (
            "Loss of cut subnets, by idea, beside students trained alone"
        )
    return drawn

"""What the results say of the paper's claims: rows of measured, expected, and a verdict by a rule fixed here.

The rule is the same everywhere. A claim is a number per seed that must not be below a bound. It *holds* if that is so
in every seed, *fails* if it is so in none, and is *undecided* otherwise, or with fewer than two seeds. A claim of
several numbers holds if all hold, and fails if one fails.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import spearmanr

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
POINT = 1.0  # of a probe: what counts as no loss
SAME_LOSS = 1.02  # times the loss of a student trained alone: what counts as matching it
HALF = 0.5  # of what stage 2 gains over predicting the mean: below it, cutting from stage 1 has failed
RANKS = 0.6  # Spearman's correlation from which on the loss ranks as a probe does
ERRORS = ("pr", "asv")  # their metric is an error rate
TITLES = {"pr": "phonemes", "ks": "keywords", "ic": "intent", "sid": "voices", "asv": "verification"}
CUT_SHORT = 2  # seeds that a verdict takes

Seeds = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A claim, in whole or part: `values` and what they must reach, by seed."""

    claim: str
    what: str
    expected: str
    values: tuple[float, ...]
    bound: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        if len(self.values) < CUT_SHORT:
            return UNDECIDED
        reached = [value >= self.bound for value in self.values]
        return HOLDS if all(reached) else UNDECIDED if any(reached) else FAILS

    @property
    def measured(self) -> str:
        return with_spread(self.values, self.unit) if self.values else "not run"


def with_spread(values: Iterable[float], unit: str = "", signed: bool = True, digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    values = list(values)
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{'+' if signed else ''}.{digits}f}{spread}{unit}"


def verdict(rows: list[Row]) -> str:
    """Of a claim that consists of all of them."""
    found = {row.verdict for row in rows}
    return FAILS if FAILS in found else UNDECIDED if UNDECIDED in found or not rows else HOLDS


def points(scores: dict[str, float], task: str) -> float:
    """A probe's score in percent, more is better."""
    return 100 * (1 - scores[task] if task in ERRORS else scores[task])


def all_claims(results: dict[str, Any]) -> dict[str, list[Row]]:
    """Rows by claim; a seed counts for a row if the parts that the row needs are there."""
    seeds: Seeds = results["seeds"]
    return {
        "1": _first(seeds),
        "2": _second(seeds),
        "3": _third(seeds),
        "4": _fourth(seeds),
        "5": _fifth(seeds),
        "6": _sixth(seeds),
    }


def _per_seed(seeds: Seeds, needs: tuple[str, ...], value: Callable[..., float]) -> tuple[float, ...]:
    """`value` of the parts `needs`, of every seed that has them."""
    present = [seed for seed in seeds.values() if all(need in seed for need in needs)]
    return tuple(value(*(seed[need] for need in needs)) for seed in present)


def _probe_gap(seeds: Seeds, task: str, model: str, reference: str) -> tuple[float, ...]:
    def gap(probes):
        return points(probes[model]["scores"], task) - points(probes[reference]["scores"], task)

    return _per_seed(seeds, ("probes",), gap)


def _mean_probe_gap(seeds: Seeds, model: str, reference: str) -> tuple[float, ...]:
    gaps = [_probe_gap(seeds, task, model, reference) for task in TITLES]
    return tuple(mean(values) for values in zip(*gaps, strict=True))


def _first(seeds: Seeds) -> list[Row]:
    return [
        Row(
            "1",
            f"{title}: largest after stage 1 less teacher",
            f"no more than {POINT:g} point below",
            _probe_gap(seeds, task, "stage 1, largest", "teacher"),
            -POINT,
            " points",
        )
        for task, title in TITLES.items()
    ]


def _second(seeds: Seeds) -> list[Row]:
    rows = [
        Row(
            "2",
            f"{TITLES[task]}: {size} % of the parameters less all",
            f"no more than {POINT:g} point below",
            _probe_gap(seeds, task, f"stage 2, {size}", "stage 2, largest"),
            -POINT,
            " points",
        )
        for size, tasks in (("71", tuple(TITLES)), ("29", ("ks", "ic", "asv")))
        for task in tasks
    ]
    drops = [_probe_gap(seeds, task, "stage 2, 29", "stage 2, largest") for task in ("pr", "ks", "ic", "asv")]
    more = tuple(min(others) - phonemes for phonemes, *others in zip(*drops, strict=True))
    what = "29 %: how much more phonemes lose than the worst of keywords, intent and verification"
    return [*rows, Row("2", what, "more", more, 0.0, " points")]


def _third(seeds: Seeds) -> list[Row]:
    rows = []
    for name in ("71", "29"):
        alone = f"alone-{name}"
        ratio = _per_seed(seeds, ("stage2", alone), lambda cut, own, n=name: own["losses"][n] / cut["losses"][n])
        what = f"{name} %: loss of the student trained alone, as a share of the cut subnet's"
        rows.append(Row("3", what, f"at least {1 / SAME_LOSS:.2f}", ratio, 1 / SAME_LOSS))
        gap = _mean_probe_gap(seeds, f"stage 2, {name}", f"alone, {name}")
        what = f"{name} %: mean of the probes, cut less trained alone"
        rows.append(Row("3", what, f"no more than {POINT:g} point below", gap, -POINT, " points"))
    needs = ("stage1", "stage2", "alone-71", "alone-29")
    cost = _per_seed(seeds, needs, lambda s1, s2, a, b: (a["flop"] + b["flop"]) / (s1["flop"] + s2["flop"]))
    return [*rows, Row("3", "work of the two students alone, as a share of the supernet's", "at least 1", cost, 1.0)]


def mean_loss(record: dict[str, Any]) -> float:
    """Of the random subnets, at the end, on new sentences."""
    return mean(loss for _, loss in record["random"])


def _fourth(seeds: Seeds) -> list[Row]:
    needs = ("stage2", "stage2-alone")
    drawn = _per_seed(seeds, needs, lambda two, one: 100 * (1 - mean_loss(two) / mean_loss(one)))
    work = _per_seed(seeds, ("stage1", *needs), lambda s1, s2, one: one["flop"] / (s1["flop"] + s2["flop"]))
    probes = _mean_probe_gap(seeds, "stage 2, 71", "stage 2 alone, 71")
    largest = _per_seed(seeds, needs, lambda two, one: 100 * (1 - two["losses"]["largest"] / one["losses"]["largest"]))

    def lost(stage1, stage2):
        scale = stage2["predicting_the_mean"]
        return 1 - (scale - mean_loss(stage1)) / (scale - mean_loss(stage2))

    cut = _per_seed(seeds, ("stage1", "stage2"), lost)
    what = f" (with {mean(work):.2f} × the work)" if work else ""
    return [
        Row("4", f"random subnets: loss of two stages below stage 2 alone{what}", "below", drawn, 0.0, " %"),
        Row("4", "largest subnet: the same", "below", largest, 0.0, " %"),
        Row("4", "71 %: mean of the probes, two stages less stage 2 alone", "above", probes, 0.0, " points"),
        Row("4", "random subnets cut from stage 1: share lost of stage 2's gain over the mean", "half", cut, HALF),
    ]


def rank_correlation(ranking: list[dict[str, Any]], task: str) -> float:
    """Spearman's, between less loss and a better probe; 0 if either is the same for all subnets."""
    losses = [-row["loss"] for row in ranking]
    scores = [points(row["scores"], task) for row in ranking]
    if len(set(losses)) < 2 or len(set(scores)) < 2:
        return 0.0
    return float(spearmanr(losses, scores).statistic)


def _fifth(seeds: Seeds) -> list[Row]:
    rows = [
        Row(
            "5",
            f"{title}: Spearman of loss and probe over subnets",
            f"at least {RANKS:g}",
            _per_seed(seeds, ("ranking",), lambda ranking, t=task: rank_correlation(ranking, t)),
            RANKS,
        )
        for task, title in TITLES.items()
    ]
    for other, what in (("random", "random search"), ("default", "the default subnet")):
        gain = _per_seed(
            seeds,
            ("evolution",),
            lambda found, o=other: 100 * (1 - found["evolutionary"]["test"] / found[o]["test"]),
        )
        rows.append(Row("5", f"loss of evolution's best below that of {what}", "below", gain, 0.0, " %"))
    return rows


def total_curve(seed: dict[str, Any], name: str, measure: str = "flop") -> list[tuple[float, float]]:
    """Work, as a share of the plain recipe's total, and mean loss of the random subnets, at every validation."""
    from distilling import FROM_TEACHER

    before, plain = seed["stage1"][measure], seed["stage2"][measure]
    start = 0.0 if name in FROM_TEACHER else before
    record = seed["stage2"] if name == "plain" else seed[name]
    return [((start + point[measure]) / (before + plain), point["random"]) for point in record["curve"]]


def share_to_reach(curve: list[tuple[float, float]], loss: float) -> float | None:
    """Work at which a curve first reaches a loss, linear between validations; `None` if it never does."""
    for index, (work, value) in enumerate(curve):
        if value <= loss:
            if index == 0 or curve[index - 1][1] <= loss:
                return work
            before, above = curve[index - 1]
            return before + (work - before) * (above - loss) / (above - value)
    return None


def additions(seeds: Seeds) -> dict[str, dict[str, list[float | None]]]:
    """By addition and seed: loss at equal work below the plain one's (%); shares of FLOP and time to reach that."""
    from distilling import ADDITIONS

    found = {}
    for name in ADDITIONS:
        present = [seed for seed in seeds.values() if {"stage1", "stage2", name} <= set(seed)]
        entry: dict[str, list] = {"gain": [], "flop": [], "seconds": []}
        for seed in present:
            plain = seed["stage2"]["curve"][-1]["random"]
            entry["gain"].append(100 * (1 - mean_loss(seed[name]) / mean_loss(seed["stage2"])))
            for measure in ("flop", "seconds"):
                entry[measure].append(share_to_reach(total_curve(seed, name, measure), plain))
        found[name] = entry
    return found


def _sixth(seeds: Seeds) -> list[Row]:
    """Saved: 1 less the share of the plain recipe's work that reached its loss; 0 where it was never reached."""
    rows = []
    for name, entry in additions(seeds).items():
        saved = tuple(0.0 if share is None else 100 * (1 - share) for share in entry["flop"])
        rows.append(Row("6", f"{name}: work saved", "more than 0", saved, 1e-9, " %"))
    return rows


def winner(seeds: Seeds) -> str | None:
    """The addition that saved most work on average, of those that saved some in every seed."""
    rows = {row.what.split(":")[0]: row for row in _sixth(seeds)}
    saving = {name: mean(row.values) for name, row in rows.items() if row.verdict == HOLDS}
    return max(saving, key=saving.get) if saving else None

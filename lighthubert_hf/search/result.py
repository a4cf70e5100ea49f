"""What a search found: every subnet with its score and costs, the front, and how the front grew."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lighthubert_hf.costs.figures import size_name
from lighthubert_hf.costs.latency import MAX_ERROR, LatencyTable
from lighthubert_hf.costs.profiling import shape
from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.search_space import Subnet

from .costs import Cost
from .pareto import hypervolume, pareto_front
from .score import Score
from .studies import Studies


@dataclass(frozen=True)
class ScoredSubnet:
    """A subnet the search tried.

    Args:
        costs: by the costs' names, in ms, bytes or one.
        found_by: the algorithms.
        shape: what a drawing shows of it; see `lighthubert_hf.costs.profiling.shape`.
    """

    name: str
    subnet: Subnet
    score: float
    costs: dict[str, float]
    found_by: tuple[str, ...]
    within_limits: bool
    shape: dict[str, Any]
    on_front: bool = False
    folder: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        settings: what determines the search; see `search`.
        subnets: all that were scored, by number of parameters.
        hypervolume: for each algorithm the share of the box between the best and the worst values found by any that
            its front dominates, after each of its trials.
        tables: the latency measurements behind the costs.
        baseline, teacher: what to compare scores and costs with; see `Score`.
    """

    settings: dict[str, Any]
    subnets: tuple[ScoredSubnet, ...]
    hypervolume: dict[str, list[float]]
    tables: dict[str, LatencyTable] = field(default_factory=dict)
    baseline: float | None = None
    teacher: Mapping[str, Any] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the result doubtful, a sentence each."""
        return tuple(filter(None, (doubt(name, table) for name, table in self.tables.items())))

    @property
    def front(self) -> list[ScoredSubnet]:
        """The subnets within the limits that no other dominates, by number of parameters."""
        return [subnet for subnet in self.subnets if subnet.on_front]


def doubt(name: str, table: LatencyTable) -> str | None:
    """Why the latencies of a table, and the front that follows from them, are not to be relied on, if they are not."""
    if table.is_reliable:
        return None
    return (
        f"{name} is not to be relied on: its predictions are off by {table.median_error:.0%} (median of "
        f"{len(table.errors)} subnets that were also measured whole), more than {MAX_ERROR:.0%}; search again with "
        "--overwrite while nothing else runs on this machine"
    )


def collect(
    studies: Studies,
    settings: dict[str, Any],
    functions: Mapping[Cost, Callable[[Subnet], float]],
    tables: Mapping[tuple[float, int], LatencyTable],
    objectives: Sequence[Cost],
    score: Score,
    config: LightHubertConfig,
) -> SearchResult:
    """What the studies of a search have found so far.

    Args:
        settings: what determines the search.
        functions: what prices a subnet, by cost; parameters and MACs among them.
        tables: the measurements by (seconds, batch).
        objectives: the costs that are traded against the score.
        config: the supernet's.
    """
    found = studies.found()
    scores = {subnet: score for entries in found.values() for subnet, score in entries}
    found_by = {subnet: tuple(name for name, entries in found.items() if subnet in dict(entries)) for subnet in scores}
    sign = -1 if settings["maximize"] else 1
    points = {
        subnet: (sign * score, *(functions[cost](subnet) for cost in objectives))
        for subnet, score in scores.items()
        if studies.limits.allow(subnet) and math.isfinite(score)
    }
    front = {list(points)[index] for index in pareto_front(list(points.values()))}
    ordered = sorted(scores, key=lambda subnet: (functions[Cost("parameters")](subnet), subnet.key))
    names = _names(ordered, functions[Cost("parameters")], front)
    subnets = tuple(
        ScoredSubnet(
            names[subnet],
            subnet,
            scores[subnet],
            {str(cost): function(subnet) for cost, function in functions.items()},
            found_by[subnet],
            studies.limits.allow(subnet),
            shape(config, subnet),
            subnet in front,
        )
        for subnet in ordered
    )
    history = _hypervolumes({name: [s for s, _ in entries] for name, entries in found.items()}, points)
    labelled = {str(Cost("latency", *setting)): table for setting, table in tables.items()}
    return SearchResult(settings, subnets, history, labelled, score.baseline, score.teacher)


def _names(subnets: list[Subnet], parameters: Callable[[Subnet], float], front: set[Subnet]) -> dict[Subnet, str]:
    """`lighthubert-27M`; where several subnets would share it, the others get a part of their key."""
    names, taken = {}, set()
    for subnet in sorted(subnets, key=lambda subnet: subnet not in front):
        name = f"lighthubert-{size_name(parameters(subnet))}"
        names[subnet] = name if name not in taken else f"{name}-{subnet.key[:6]}"
        taken.add(name)
    return names


def _hypervolumes(found: dict[str, list[Subnet]], points: dict[Subnet, tuple[float, ...]]) -> dict[str, list[float]]:
    """For every algorithm the hypervolume after each trial, in coordinates that run from 0, best, to 1, worst."""
    if not points:
        return {name: [0.0] * len(subnets) for name, subnets in found.items()}
    best, worst = ([choose(column) for column in zip(*points.values())] for choose in (min, max))
    scaled = {
        subnet: [(x - low) / (high - low) if high > low else 0.0 for x, low, high in zip(point, best, worst)]
        for subnet, point in points.items()
    }
    history: dict[str, list[float]] = {}
    for name, subnets in found.items():
        front, volumes = [], []
        for subnet in subnets:
            if subnet in scaled:
                front.append(scaled[subnet])
                front = [front[index] for index in pareto_front(front)]
            volumes.append(hypervolume(front, [1.0] * len(best)))
        history[name] = volumes
    return history

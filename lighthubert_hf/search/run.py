"""Search for the subnets of a supernet that trade a score against costs best."""

import functools
import hashlib
import importlib
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lighthubert_hf.costs.latency import LatencyTable
from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.model.search_space import Subnet

from .costs import Cost, Limit, Limits, cost_function
from .pareto import hypervolume, pareto_front

logger = logging.getLogger(__name__)

EVOLUTIONARY, RANDOM = "evolutionary", "random"
DEFAULT_COSTS = (Cost("parameters"), Cost("macs"))


@dataclass(frozen=True)
class Score:
    """What makes a subnet good.

    Args:
        function: takes a `Subnet`, returns a number; it must depend on the subnet alone.
        name: under which it is reported.
        maximize: whether more is better.
        fingerprint: tells scores apart that are not comparable (other data, another teacher), so that a search is not
            resumed with another one.
    """

    function: Callable[[Subnet], float]
    name: str = "loss"
    maximize: bool = False
    fingerprint: str = ""

    @classmethod
    def load(cls, reference: str, maximize: bool = False) -> "Score":
        """The function `NAME` given as `package.module:NAME` or `path/to/file.py:NAME`.

        Raises:
            ValueError, FileNotFoundError: if there is no such function.
        """
        place, _, name = reference.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError(f"cannot read the score {reference!r}; write package.module:function or file.py:function")
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise FileNotFoundError(f"there is no file {place} to take the score {name} from")
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            try:
                module = importlib.import_module(place)
            except ModuleNotFoundError as error:
                raise ValueError(f"cannot import {place} for the score {name}: {error}") from None
        function = getattr(module, name, None)
        if not callable(function):
            raise ValueError(f"{place} has no function {name}")
        return cls(function, name, maximize, reference)


@dataclass(frozen=True)
class ScoredSubnet:
    """A subnet the search tried. `costs` by the costs' names, in ms, bytes or one; `found_by` the algorithms."""

    name: str
    subnet: Subnet
    score: float
    costs: dict[str, float]
    found_by: tuple[str, ...]
    within_limits: bool
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
    """

    settings: dict[str, Any]
    subnets: tuple[ScoredSubnet, ...]
    hypervolume: dict[str, list[float]]
    tables: dict[str, LatencyTable] = field(default_factory=dict)

    @property
    def front(self) -> list[ScoredSubnet]:
        """The subnets within the limits that no other dominates, by number of parameters."""
        return [subnet for subnet in self.subnets if subnet.on_front]


def search(
    model,
    score: Score | Callable[[Subnet], float],
    out: str | Path,
    *,
    objectives: Sequence[Cost] = (Cost("parameters"),),
    limits: Sequence[Limit] = (),
    costs: Sequence[Cost] = (),
    trials: int = 200,
    population_size: int = 20,
    seed: int = 0,
    algorithms: Sequence[str] = (EVOLUTIONARY, RANDOM),
    supernet: str = "",
    revision: str | None = None,
    extract: int = 0,
    progress: bool = True,
) -> SearchResult:
    """Find the subnets of a supernet that no other beats in score and costs, and report them in a folder.

    The search may be stopped at any time and goes on when called again with the same settings (`trials` may grow).
    Several processes called with the same folder share the work. A subnet is scored once, whichever algorithm or
    process asks.

    OUT/
      study.db                optuna's studies, one per algorithm; study.lock: held while a process draws a subnet
      latency@10s.json        measurements, if a latency or memory cost is asked for
      pareto.json, .csv       what was found, see `search_report`; .png, .html: plots
      NAME/                   model folders of the extracted subnets

    Args:
        model: the supernet, `LightHubertModel` or with any head.
        score: what makes a subnet good. A bare function is minimised under the name "loss".
        objectives: the costs to trade the score against.
        limits: what no subnet of the front may exceed.
        costs: further costs to report; parameters and MACs are always reported.
        trials: distinct subnets per algorithm, the smallest, default and largest included.
        population_size: subnets per generation of the evolution; at most half of `trials`.
        seed: determines the candidates.
        algorithms: "evolutionary", "random" or both; random search is the baseline of the report.
        supernet, revision: folder or Hub id of the supernet, for the record.
        extract: how many subnets of the front to save as model folders, evenly spread over it.
        progress: show progress bars.

    Raises:
        ValueError: if the model is static, a setting is not allowed, no subnet can meet the limits, or `out` holds a
            search of another supernet or with other settings.
    """
    from .report import write_report
    from .sampler import Genome
    from .studies import Studies, check_settings
    from .workers import alone_in

    score = score if isinstance(score, Score) else Score(score)
    _check(model, trials, population_size, algorithms, extract)
    out = Path(out)
    priced = tuple(dict.fromkeys([*DEFAULT_COSTS, *objectives, *(limit.cost for limit in limits), *costs]))
    settings = {
        "supernet": supernet or model.name_or_path,
        "revision": revision,
        "fingerprint": supernet_fingerprint(model),
        "score": score.name,
        "maximize": score.maximize,
        "score_fingerprint": score.fingerprint,
        "objectives": [score.name, *map(str, objectives)],
        "limits": {str(limit.cost): limit.maximum for limit in limits},
        "population_size": population_size,
        "seed": seed,
    }
    check_settings(out, settings)
    tables = {}
    if any(cost.is_measured for cost in priced):
        out.mkdir(parents=True, exist_ok=True)
        with alone_in(out):  # so that all processes read the same latencies
            tables = latency_tables(model, priced, out, progress)
    functions = {cost: functools.cache(cost_function(cost, model.config, tables)) for cost in priced}
    kept = Limits(limits, functions, model.search_space)
    out.mkdir(parents=True, exist_ok=True)
    studies = Studies(
        folder=out,
        settings=settings,
        score=score.function,
        maximize=score.maximize,
        objectives={str(cost): functions[cost] for cost in objectives},
        limits=kept,
        genome=Genome(model.search_space, model.config.num_hidden_layers),
        anchors=_anchors(model),
    )

    def report() -> SearchResult:
        with alone_in(out):  # or a process that read less may overwrite the report of one that read more
            result = _result(studies, settings, functions, tables, objectives)
            write_report(result, out)
        return result

    try:
        for algorithm in algorithms:
            studies.run(algorithm, algorithm == EVOLUTIONARY, trials, progress)
    except KeyboardInterrupt:
        report()
        raise
    finally:
        studies.close()
    result = report()
    if extract:
        result = extract_front(model, result, out, extract)
        write_report(result, out)
    return result


def _check(model, trials: int, population_size: int, algorithms: Sequence[str], extract: int) -> None:
    if model.search_space is None:
        raise ValueError("this model is static (its config has no search_space); a search needs its supernet")
    unknown = set(algorithms) - {EVOLUTIONARY, RANDOM}
    if unknown or not algorithms:
        raise ValueError(f"algorithms must be of {EVOLUTIONARY!r} and {RANDOM!r}, got {list(algorithms)}")
    if population_size < 2:
        raise ValueError(f"population_size must be at least 2, got {population_size}")
    least = 2 * population_size if EVOLUTIONARY in algorithms else 1
    if trials < least:
        raise ValueError(
            f"trials must be at least {least} (the first population_size = {population_size} are random, "
            f"evolution needs as many again), got {trials}"
        )
    if extract < 0:
        raise ValueError(f"extract is a number of subnets, got {extract}")


def supernet_fingerprint(model) -> str:
    """A short hash of the sizes, the space and every weight of a supernet."""
    digest = hashlib.blake2b(digest_size=8)
    config = model.config
    sizes = {"architecture": config.architecture.to_dict(), "space": config.search_space, "conv": config.conv_stride}
    digest.update(json.dumps(sizes, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def latency_tables(
    model, costs: Iterable[Cost], folder: Path, progress: bool = True
) -> dict[tuple[float, int], LatencyTable]:
    """A table for every (seconds, batch) of a measured cost, from `folder` if it was measured before."""
    tables = {}
    for cost in costs:
        setting = (cost.seconds, cost.batch)
        if not cost.is_measured or setting in tables:
            continue
        path = folder / f"{Cost('latency', *setting)}.json"
        if not path.is_file():
            LatencyTable.measure(model.base_model, *setting, progress=progress).save(path)
        tables[setting] = LatencyTable.load(path)
        machine = describe_machine(model.device)
        if tables[setting].machine != machine:
            logger.warning(
                "latencies are of %s, not of %s; delete %s to measure", tables[setting].machine, machine, path
            )
    return tables


def _anchors(model) -> list[Subnet]:
    space = model.search_space
    default = Subnet.from_dict(model.config.default_subnet)
    anchors = [space.smallest(), default if default in space else space.default(), space.largest()]
    return list(dict.fromkeys(anchors))


def _result(
    studies,
    settings: dict[str, Any],
    functions: Mapping[Cost, Callable[[Subnet], float]],
    tables: Mapping[tuple[float, int], LatencyTable],
    objectives: Sequence[Cost],
) -> SearchResult:
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
            subnet in front,
        )
        for subnet in ordered
    )
    history = _hypervolumes({name: [s for s, _ in entries] for name, entries in found.items()}, points)
    labelled = {str(Cost("latency", *setting)): table for setting, table in tables.items()}
    return SearchResult(settings, subnets, history, labelled)


def _names(subnets: list[Subnet], parameters: Callable[[Subnet], float], front: set[Subnet]) -> dict[Subnet, str]:
    """`lighthubert-27M`; where several subnets would share it, the others get a part of their key."""
    names, taken = {}, set()
    for subnet in sorted(subnets, key=lambda subnet: subnet not in front):
        count = parameters(subnet)
        size, unit = (count / 1e6, "M") if count >= 1e6 else (count / 1e3, "k")
        name = f"lighthubert-{size:.{0 if size >= 10 else 1}f}{unit}"
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


def extract_front(model, result: SearchResult, folder: Path, count: int) -> SearchResult:
    """Save `count` subnets of the front, evenly spread over it from the smallest to the largest, as model folders."""
    from lighthubert_hf.hub.card import CardFacts
    from lighthubert_hf.hub.folder import save_model_folder

    front = result.front
    chosen = {front[round(i * (len(front) - 1) / max(1, count - 1))].name for i in range(min(count, len(front)))}
    subnets = []
    for scored in result.subnets:
        if scored.name in chosen:
            card = CardFacts(
                macs_per_second=scored.costs[str(Cost("macs"))],
                supernet=result.settings["supernet"] or None,
                revision=result.settings["revision"],
                subnet=scored.subnet,
            )
            save_model_folder(model.base_model.extract_subnet(scored.subnet), folder / scored.name, card=card)
            scored = replace(scored, folder=scored.name)
        subnets.append(scored)
    return replace(result, subnets=tuple(subnets))

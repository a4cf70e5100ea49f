"""Search for the subnets of a supernet that trade a score against costs best."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lighthubert_hf.costs.latency import LatencyTable
from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.extras import require
from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.model.search_space import Subnet

from .costs import Cost, Limit, Limits, cost_function
from .front_folders import extract_front
from .report import write_report
from .result import SearchResult, collect, doubt
from .sampler import Genome
from .score import Score
from .studies import FILE, Studies, check_study_folder, database_errors
from .workers import alone_in

logger = logging.getLogger(__name__)

EVOLUTIONARY, RANDOM = "evolutionary", "random"
MOST_TRIALS = 1_000_000
DEFAULT_COSTS = (Cost("parameters"), Cost("macs"))


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
    plot: Cost | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> SearchResult:
    """Find the subnets of a supernet that no other beats in score and costs, and report them in a folder.

    The search may be stopped at any time and goes on when called again with the same settings (`trials` may grow).
    Several processes called with the same folder share the work. A subnet is scored once, whichever algorithm or
    process asks.

    OUT/
      study.db                optuna's studies, one per algorithm; study.lock: held while a process draws a subnet
      latency@10s.json        measurements, if a latency or memory cost is asked for
      pareto.json, .csv       what was found, see `report`; .png: a plot
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
        overwrite: start over, where `out` holds a search. Its model folders stay.
        extract: how many subnets of the front to save as model folders, evenly spread over it.
        plot: the cost on the horizontal axis of the picture; by default the first objective.
        progress: show progress bars.

    Raises:
        ValueError: if the model is static, a setting is not allowed, no subnet can meet the limits, or `out` holds a
            search of another supernet or with other settings.
    """
    require("search", what="the search")
    score = score if isinstance(score, Score) else Score(score)
    check_settings(trials, population_size, algorithms, extract, seed)
    if model.search_space is None:
        raise ValueError("this model is static (its config has no search_space); a search needs its supernet")
    out = Path(out)
    asked = [*objectives, *(limit.cost for limit in limits), *costs, plot]
    priced = tuple(dict.fromkeys([*DEFAULT_COSTS, *filter(None, asked)]))
    settings = _settings(model, limits, population_size, seed, supernet, revision) | {
        "score": score.name,
        "maximize": score.maximize,
        "score_fingerprint": score.fingerprint,
        "objectives": [score.name, *map(str, objectives)],
    }
    check_study_folder(out, settings, overwrite)
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
            result = collect(studies, settings, functions, tables, objectives, score, model.config)
            write_report(result, out, plot)
        return result

    try:
        with database_errors(out):
            for algorithm in algorithms:
                studies.run(algorithm, algorithm == EVOLUTIONARY, trials, progress)
    except KeyboardInterrupt:
        report()
        raise
    finally:
        studies.close()
    result = report()
    if extract:
        with alone_in(out):  # or processes that share the search would write the same folders
            result = extract_front(model, result, out, extract, score, overwrite)
            write_report(result, out, plot)
    return result


def check_settings(
    trials: int,
    population_size: int,
    algorithms: Sequence[str] = (EVOLUTIONARY, RANDOM),
    extract: int = 0,
    seed: int = 0,
) -> None:
    """Raise a ValueError for settings that `search` would refuse, before anything is loaded."""
    unknown = set(algorithms) - {EVOLUTIONARY, RANDOM}
    if unknown or not algorithms:
        raise ValueError(f"algorithms must be of {EVOLUTIONARY!r} and {RANDOM!r}, got {list(algorithms)}")
    if population_size < 2:
        raise ValueError(f"population_size must be at least 2, got {population_size}")
    if population_size > MOST_TRIALS:
        raise ValueError(f"population_size must be at most {MOST_TRIALS:,}, got {population_size}")
    least = 2 * population_size if EVOLUTIONARY in algorithms else 1
    if trials < least:
        raise ValueError(
            f"trials must be at least {least} (the first population_size = {population_size} are random, "
            f"evolution needs as many again), got {trials}"
        )
    if trials > MOST_TRIALS:
        raise ValueError(f"trials must be at most {MOST_TRIALS:,}, got {trials}")
    if not 0 <= extract <= MOST_TRIALS:
        raise ValueError(f"extract is a number of subnets, got {extract}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {seed}")


def check_search_folder(
    model,
    out: str | Path,
    *,
    limits: Sequence[Limit] = (),
    population_size: int = 20,
    seed: int = 0,
    supernet: str = "",
    revision: str | None = None,
) -> None:
    """Raise what `search` would raise on account of `out`, as far as no score is needed to know it: before a teacher
    is loaded and run."""
    check_study_folder(Path(out), _settings(model, limits, population_size, seed, supernet, revision))


def _settings(
    model, limits: Sequence[Limit], population_size: int, seed: int, supernet: str, revision: str | None
) -> dict[str, Any]:
    """What determines a search beside its score and objectives."""
    return {
        "supernet": supernet or model.name_or_path,
        "revision": revision,
        "fingerprint": supernet_fingerprint(model),
        "limits": {str(limit.cost): limit.maximum for limit in limits},
        "population_size": population_size,
        "seed": seed,
    }


def supernet_fingerprint(model) -> str:
    """A short hash of the sizes, the space and every weight of a supernet."""
    config = model.config
    sizes = {"architecture": config.architecture.to_dict(), "space": config.search_space, "conv": config.conv_stride}
    return weights_fingerprint(model, sizes, digest_size=8)


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
        if not _is_usable(path):
            LatencyTable.measure(model.base_model, *setting, progress=progress).save(path)
        tables[setting] = LatencyTable.load(path)
        if warning := doubt(path.stem, tables[setting]):
            logger.warning("%s", warning)
        machine = describe_machine(model.device)
        if tables[setting].machine != machine:
            logger.warning(
                "latencies are of %s, not of %s; delete %s to measure", tables[setting].machine, machine, path
            )
    return tables


def _is_usable(path: Path) -> bool:
    """Whether a table was measured before. One that errs much stays only where subnets were already judged by it."""
    return path.is_file() and (LatencyTable.load(path).is_reliable or (path.parent / FILE).is_file())


def _anchors(model) -> list[Subnet]:
    space = model.search_space
    default = Subnet.from_dict(model.config.default_subnet)
    anchors = [space.smallest(), default if default in space else space.default(), space.largest()]
    return list(dict.fromkeys(anchors))

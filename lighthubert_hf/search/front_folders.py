"""Subnets of a search's front as model folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lighthubert_hf.hub.card import CardFacts, Latency
from lighthubert_hf.hub.derived import Parent, subnet_facts
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.output import check_not_source, check_output

from .costs import Cost
from .report import predicted_latency
from .result import ScoredSubnet, SearchResult
from .score import Score

_REMEDY = "move it elsewhere and search again: nothing is scored twice"


def extract_front(
    model: Any, result: SearchResult, folder: Path, count: int, score: Score, overwrite: bool = False
) -> SearchResult:
    """Save `count` subnets of the front, evenly spread over it from the smallest to the largest, as model folders.

    Their cards say what the search knows of them, and what the supernet's card says of its origin.

    Args:
        overwrite: replace folders that were changed, or are another supernet's.

    Raises:
        ValueError: if there is such a folder; then none is written.
    """
    front = result.front
    chosen = {front[round(i * (len(front) - 1) / max(1, count - 1))].name for i in range(min(count, len(front)))}
    name, revision = result.settings["supernet"], result.settings["revision"]
    parent = Parent.read(name, revision, required=False) if name else Parent()
    origin = f"supernet {result.settings['fingerprint']}"
    made: dict[str, Any] = {"source": origin, "by": "search", "overwrite": overwrite, "remedy": _REMEDY}
    for chosen_name in sorted(chosen):
        check_output(folder / chosen_name, **made)
        check_not_source(folder / chosen_name, name)
    subnets = []
    for scored in result.subnets:
        if scored.name in chosen:
            save_model_folder(
                model.base_model.extract_subnet(scored.subnet),
                folder / scored.name,
                card=_facts(parent, scored, result, score),
                processor=parent.processor,
                **made,
            )
            scored = replace(scored, folder=scored.name)
        subnets.append(scored)
    return replace(result, subnets=tuple(subnets))


def _facts(parent: Parent, scored: ScoredSubnet, result: SearchResult, score: Score) -> CardFacts:
    known: dict[str, Any] = {"macs_per_second": round(scored.costs[str(Cost("macs"))])}
    if score.name == "loss":
        known |= {"loss": scored.score, "loss_data": score.description}
    latency = predicted_latency(scored.subnet, result)
    return subnet_facts(parent, scored.subnet, latency=latency and Latency(**latency), **known)

"""Subnets of a search's front as model folders."""

from dataclasses import replace
from pathlib import Path

from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.hub.folder import save_model_folder

from .costs import Cost
from .result import SearchResult


def extract_front(model, result: SearchResult, folder: Path, count: int) -> SearchResult:
    """Save `count` subnets of the front, evenly spread over it from the smallest to the largest, as model folders."""
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

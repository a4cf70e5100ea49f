"""What the demo measures: the two stages, the search, and the picked subnets beside their teacher."""

import random
import time
from pathlib import Path
from typing import Any

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.measuring import alternate
from lighthubert_hf.profiling import count_macs, count_parameters

from .demo import DemoSettings

SHARES = {"small": 0.35, "medium": 0.6, "large": 0.85}  # of the largest subnet's parameters
LATENCY_SECONDS = 5.0


def compare_stages(stage1: str, stage2: str, score, settings: DemoSettings) -> dict[str, Any]:
    """Validation losses of the same subnets cut from both stages' supernets, untouched."""
    model = LightHubertForPreTraining.from_pretrained(stage2).eval()
    space: SearchSpace = model.search_space
    rng = random.Random(f"demo {settings.seed}")
    drawn = [space.sample(rng) for _ in range(settings.random_subnets)]
    named = {"smallest": space.smallest(), "default": model.active_subnet, "largest": space.largest()}
    losses = {
        name: [score.of(supernet, subnet) for subnet in (*drawn, *named.values())]
        for name, supernet in (("stage1", LightHubertForPreTraining.from_pretrained(stage1).eval()), ("stage2", model))
    }
    return {
        "predicting_the_mean": score.predicting_the_mean,
        "random_subnets": [subnet.to_dict() for subnet in drawn],
        **{stage: values[: len(drawn)] for stage, values in losses.items()},
        "named": {
            name: {stage: values[len(drawn) + index] for stage, values in losses.items()}
            for index, name in enumerate(named)
        },
    }


def pick_subnets(
    folder: Path, supernet: str, score, settings: DemoSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search the supernet and pick the best subnet under each share of its parameters."""
    from lighthubert_hf.search import search

    model = LightHubertForPreTraining.from_pretrained(supernet).eval()
    space, config = model.search_space, model.config
    started = time.monotonic()
    result = search(
        model,
        lambda subnet: score.of(model, subnet),
        folder,
        trials=settings.search_trials,
        population_size=max(2, min(20, settings.search_trials // 6)),
        seed=settings.seed,
        supernet=supernet,
    )
    seconds = time.monotonic() - started
    largest = count_parameters(config, space.largest())
    picks = {}
    for name, share in SHARES.items():
        best = min(
            (found for found in result.front if found.costs["parameters"] <= share * largest),
            key=lambda found: found.score,
            default=None,
        )
        if best is not None and best.subnet not in [pick["subnet"] for pick in picks.values()]:
            picks[name] = {"subnet": best.subnet, "parameters": int(best.costs["parameters"]), "loss": best.score}
    rng = random.Random(f"demo picks {settings.seed}")
    for pick in picks.values():
        alike = _random_subnets_of_its_size(space, config, pick["parameters"], settings.random_subnets, rng)
        pick["losses_of_random_subnets"] = [score.of(model, subnet) for subnet in alike]
    summary = {
        "evaluated": len(result.subnets),
        "subnets": space.count(),
        "seconds": round(seconds, 1),
        "scored": [[int(found.costs["parameters"]), found.score] for found in result.subnets],
        "front": [[int(found.costs["parameters"]), found.score] for found in result.front],
        "hypervolume": {name: values[-1] for name, values in result.hypervolume.items()},
    }
    return summary, [
        pick
        | {
            "name": name,
            "subnet": pick["subnet"].to_dict(),
            "description": str(pick["subnet"]),
            "macs_per_second": count_macs(config, pick["subnet"]),
        }
        for name, pick in picks.items()
    ]


def _random_subnets_of_its_size(
    space: SearchSpace, config, parameters: int, count: int, rng: random.Random
) -> list[Subnet]:
    """Random subnets with 85 to 100 % of `parameters`; fewer than `count` if they are rare."""
    found: dict[str, Subnet] = {}
    for _ in range(500 * count):
        subnet = space.sample(rng)
        if 0.85 * parameters <= count_parameters(config, subnet) <= parameters:
            found[subnet.key] = subnet
        if len(found) == count:
            break
    return list(found.values())


def save_subnets(
    folder: Path, supernet: str, picks: list[dict[str, Any]], teacher: str, settings: DemoSettings
) -> dict[str, Path]:
    """Extract every pick into a complete model folder and load it in a process that lacks this package."""
    from transformers import AutoFeatureExtractor

    from lighthubert_hf.model_card import CardFacts
    from lighthubert_hf.publishing import save_model_folder
    from lighthubert_hf.standalone import load_without_package

    model = LightHubertModel.from_pretrained(supernet).eval()
    extractor = AutoFeatureExtractor.from_pretrained(supernet)
    folders = {}
    for pick in picks:
        subnet = Subnet.from_dict(pick["subnet"])
        card = CardFacts(
            macs_per_second=pick["macs_per_second"],
            loss=pick["loss"],
            loss_data="held-out synthetic speech" if settings.dataset is None else f"{settings.dataset}, validation",
            teacher=settings.teacher or "a small HuBERT trained by `lighthubert demo`",
            supernet=Path(supernet).name,
            subnet=subnet,
        )
        folders[pick["name"]] = save_model_folder(
            model.extract_subnet(subnet), folder / pick["name"], card=card, processor=extractor
        )
        loaded = load_without_package(folders[pick["name"]])
        if loaded["shape"][-1] != subnet.hidden_size:
            raise ValueError(f"{folders[pick['name']]} loaded as another model: its output is {loaded['shape']}")
    return folders


def describe_models(teacher: str, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Parameters, MACs and measured time of the teacher and each saved subnet, timed in turn in one run."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    models = {name: AutoModel.from_pretrained(path).eval() for name, path in ({"teacher": teacher} | folders).items()}
    second, audio = torch.randn(1, 16_000), torch.randn(1, int(LATENCY_SECONDS * 16_000))
    macs = {}
    with torch.inference_mode():
        for name, model in models.items():
            with FlopCounterMode(display=False) as counter:
                model(second)
            macs[name] = counter.get_total_flops() // 2
        runs = {name: lambda model=model: model(audio) for name, model in models.items()}
        times = alternate(runs, torch.device("cpu"), repeats=9)
    return {
        name: {
            "parameters": model.num_parameters(),
            "macs_per_second": macs[name],
            "ms_per_second": times[name] / LATENCY_SECONDS,
        }
        for name, model in models.items()
    }

"""What the demo measures: the two stages, the search, and the picked subnets beside their teacher."""

import random
import time
from pathlib import Path
from typing import Any

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.costs.measuring import alternate
from lighthubert_hf.costs.profiling import count_parameters, macs_per_second
from lighthubert_hf.loading import load, load_encoder
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.subnets import named_subnets
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection
from lighthubert_hf.training.distillation.scoring import DistillationScore, distillation_score

from .settings import NUM_TARGET_LAYERS, DemoSettings

SHARES = {"small": 0.35, "medium": 0.6, "large": 0.85}  # of the largest subnet's parameters
LATENCY_SECONDS = 5.0


def score_stage(supernet: str, teacher: str, validation: dict[str, Any]) -> DistillationScore:
    """The distillation loss of the supernet's subnets on the validation split."""
    model = load(LightHubertForPreTraining, supernet).model
    objective = LightHubertObjectiveSection(num_target_layers=NUM_TARGET_LAYERS)
    return distillation_score(model, teacher, [AudioSource(**validation)], objective=objective)


def compare_stages(stage1: DistillationScore, stage2: DistillationScore, settings: DemoSettings) -> dict[str, Any]:
    """Validation losses of the same subnets cut from both stages' supernets, untouched."""
    space = stage2.model.search_space
    rng = random.Random(f"demo {settings.seed}")
    drawn = [space.sample(rng) for _ in range(settings.random_subnets)]
    stages = {"stage1": stage1, "stage2": stage2}
    return {
        "predicting_the_mean": stage2.predicting_the_mean,
        "random_subnets": [subnet.to_dict() for subnet in drawn],
        **{name: [score(subnet) for subnet in drawn] for name, score in stages.items()},
        "named": {
            subnet_name: {name: score(subnet) for name, score in stages.items()}
            for subnet_name, subnet in named_subnets(stage2.model.config).items()
        },
    }


def pick_subnets(
    folder: Path, score: DistillationScore, settings: DemoSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search the supernet and pick the best subnet under each share of its parameters."""
    from lighthubert_hf.search.run import search

    space, config = score.model.search_space, score.model.config
    started = time.monotonic()
    result = search(
        score.model,
        score.as_score(),
        folder,
        trials=settings.search_trials,
        population_size=max(2, min(20, settings.search_trials // 6)),
        seed=settings.seed,
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
        pick["losses_of_random_subnets"] = [score(subnet) for subnet in alike]
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
            "macs_per_second": macs_per_second(config, pick["subnet"]),
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
    """Extract every pick into a complete model folder and load them in a process that lacks this package."""
    from lighthubert_hf.hub.derived import Parent, subnet_facts
    from lighthubert_hf.hub.folder import save_model_folder
    from lighthubert_hf.hub.standalone import load_without_package

    model = load(LightHubertModel, supernet).model
    parent = Parent.read(supernet)
    folders = {}
    for pick in picks:
        subnet = Subnet.from_dict(pick["subnet"])
        card = subnet_facts(
            parent,
            subnet,
            macs_per_second=pick["macs_per_second"],
            loss=pick["loss"],
            loss_data="held-out synthetic speech" if settings.dataset is None else f"{settings.dataset}, validation",
            teacher=settings.teacher or "a small HuBERT trained by `lighthubert demo`",
        )
        folders[pick["name"]] = save_model_folder(
            model.extract_subnet(subnet), folder / pick["name"], card=card, processor=parent.processor
        )
    for pick, loaded in zip(picks, load_without_package(*folders.values())):
        if loaded["shape"][-1] != pick["subnet"]["hidden_size"]:
            raise ValueError(f"{folders[pick['name']]} loaded as another model: its output is {loaded['shape']}")
    return folders


def describe_models(teacher: str, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Parameters, MACs and measured time of the teacher and each saved subnet, timed in turn in one run."""
    import torch

    models = {name: load_encoder(path) for name, path in ({"teacher": teacher} | folders).items()}
    audio = torch.randn(1, int(LATENCY_SECONDS * SAMPLING_RATE))
    with torch.inference_mode():
        runs = {name: lambda model=model: model(audio) for name, model in models.items()}
        times = alternate(runs, torch.device("cpu"), repeats=9)
    return {
        name: {
            "parameters": model.num_parameters(),
            "macs_per_second": macs_per_second(model.config),
            "ms_per_second": times[name] / LATENCY_SECONDS,
        }
        for name, model in models.items()
    }

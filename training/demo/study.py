"""What the demo measures: the search, and the picked subnets beside their teacher."""

import random
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.costs.measuring import alternate
from lighthubert_hf.costs.profiling import macs_per_second
from lighthubert_hf.files import read_object, write_json
from lighthubert_hf.loading import load, load_encoder
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.subnets import named_subnets
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection
from lighthubert_hf.training.distillation.own_form import own_form
from lighthubert_hf.training.distillation.scoring import DistillationScore, distillation_score

from .settings import DemoSettings, num_target_layers

SHARES = {"small": 0.25, "medium": 0.4, "large": 0.6}  # of the teacher's multiply-accumulates
VALIDATION_CLIPS = 64
_LOADED = "loaded.json"  # beside the models: which ones another process has loaded
LATENCY_SECONDS = 5.0


def score_subnets(supernet: str, teacher: str, validation: dict[str, Any]) -> DistillationScore:
    """The distillation loss of the supernet's subnets on the validation split."""
    model = load(LightHubertForPreTraining, supernet).model
    config = AutoConfig.from_pretrained(teacher)
    objective = LightHubertObjectiveSection(num_target_layers=num_target_layers(config))
    return distillation_score(
        model, teacher, [AudioSource(**validation)], objective=objective, max_examples=VALIDATION_CLIPS
    )


def pick_subnets(
    folder: Path, score: DistillationScore, settings: DemoSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search the supernet and pick the best subnet under each share of the teacher's multiply-accumulates."""
    from lighthubert_hf.search.costs import Cost
    from lighthubert_hf.search.run import EVOLUTIONARY, search

    space, config = score.model.search_space, score.model.config
    macs = Cost("macs")
    result = search(
        score.model,
        score.as_score(),
        folder,
        objectives=(macs,),
        trials=settings.search_trials,
        population_size=max(2, min(20, settings.search_trials // 4)),
        algorithms=(EVOLUTIONARY,),
        seed=settings.seed,
    )
    whole = macs_per_second(config, space.largest())  # the teacher's own: it is the largest subnet
    picks = {}
    for name, share in SHARES.items():
        best = min(
            (found for found in result.front if found.costs[str(macs)] <= share * whole),
            key=lambda found: found.score,
            default=None,
        )
        if best is not None and best.subnet not in [pick["subnet"] for pick in picks.values()]:
            picks[name] = {"subnet": best.subnet, "macs_per_second": int(best.costs[str(macs)]), "loss": best.score}
    rng = random.Random(f"demo picks {settings.seed}")
    for pick in picks.values():
        alike = _random_subnets_of_its_cost(space, config, pick["macs_per_second"], settings.random_subnets, rng)
        pick["losses_of_random_subnets"] = [score(subnet) for subnet in alike]
    points = lambda subnets: [[int(found.costs[str(macs)]), found.score] for found in subnets]  # noqa: E731
    summary = {
        "evaluated": len(result.subnets),
        "subnets": space.count(),
        "predicting_the_mean": score.predicting_the_mean,
        "named": {name: score(subnet) for name, subnet in named_subnets(config).items()},
        "scored": points(result.subnets),
        "front": points(result.front),
    }
    return summary, [
        pick | {"name": name, "subnet": pick["subnet"].to_dict(), "description": str(pick["subnet"])}
        for name, pick in picks.items()
    ]


def _random_subnets_of_its_cost(space: SearchSpace, config, macs: int, count: int, rng: random.Random) -> list[Subnet]:
    """Random subnets with 85 to 100 % of `macs` a second; fewer than `count` if they are rare."""
    found: dict[str, Subnet] = {}
    for _ in range(500 * count):
        subnet = space.sample(rng)
        if 0.85 * macs <= macs_per_second(config, subnet) <= macs:
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

    folders = {pick["name"]: folder / pick["name"] for pick in picks}
    proof, wanted = folder / _LOADED, {"subnets": {pick["name"]: pick["subnet"] for pick in picks}}
    if proof.is_file() and read_object(proof, "start over with --overwrite") == wanted:
        return folders
    model = load(LightHubertModel, supernet).model
    parent = Parent.read(supernet)
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
        save_model_folder(model.extract_subnet(subnet), folders[pick["name"]], card=card, processor=parent.processor)
    for pick, loaded in zip(picks, load_without_package(*folders.values())):
        if loaded["shape"][-1] != pick["subnet"]["hidden_size"]:
            raise ValueError(f"{folders[pick['name']]} loaded as another model: its output is {loaded['shape']}")
    write_json(proof, wanted)
    return folders


def describe_models(teacher: str, folders: dict[str, Path], repeats: int) -> dict[str, dict[str, Any]]:
    """Parameters, MACs and measured time of the teacher and each saved subnet, timed in turn in one run.

    The teacher runs in the form that its subnets have, so that `speed` is what a smaller size gains; what it takes as
    a class of transformers is measured, too.
    """
    import torch

    plain = load_encoder(teacher)
    models = {"teacher": own_form(plain) or plain} | {name: load_encoder(path) for name, path in folders.items()}
    audio = torch.randn(1, int(LATENCY_SECONDS * SAMPLING_RATE))
    with torch.inference_mode():
        runs = {name: lambda model=model: model(audio) for name, model in (models | {"plain": plain}).items()}
        times = alternate(runs, torch.device("cpu"), repeats=repeats)
    described = {
        name: {
            "parameters": model.num_parameters(),
            "macs_per_second": macs_per_second(model.config),
            "ms_per_second": times[name] / LATENCY_SECONDS,
            "speed": times["teacher"] / times[name],
        }
        for name, model in models.items()
    }
    described["teacher"]["ms_per_second_in_transformers"] = times["plain"] / LATENCY_SECONDS
    return described

"""Validation: the objective's loss of the smallest, default, largest and a few random subnets."""

import random

import torch

from lighthubert_hf import LightHubertConfig, SearchSpace, Subnet
from lighthubert_hf.subnets import named_subnets
from lighthubert_hf.training.audio.batching import AudioLoader

from .step import DistillationModel


def validation_subnets(config: LightHubertConfig, num_random: int, seed: int) -> dict[str, Subnet]:
    """The subnets whose loss is followed through a run, the same at every evaluation."""
    rng = random.Random(f"validation subnets of seed {seed}")
    space = SearchSpace.from_dict(config.search_space)
    return named_subnets(config) | {f"random-{index}": space.sample(rng) for index in range(num_random)}


@torch.no_grad()
def evaluate(model: DistillationModel, loader: AudioLoader, subnets: dict[str, Subnet | None]) -> dict[str, float]:
    """Loss per valid frame of each subnet on unmasked audio, over all processes' shares of the validation data.

    The teacher runs once per batch, the front end once per choice of channels, the encoder once per subnet.
    Objectives that weigh masked frames differently weigh all alike here. Processes may have different numbers of
    batches.
    """
    student = model.student
    was_training = student.training
    active = student.active_subnet if student.search_space is not None else None
    student.eval()
    model.enter(None)
    sums = torch.zeros(len(subnets) + 1, device=model.accelerator.device)
    for batch, _ in loader:
        prepared = model.prepare(batch, masking=None, seed=0, step=0)
        weights = prepared.valid[:, : prepared.targets[0].shape[1]].float()
        losses = []
        for group in model.by_front_end(list(subnets.values())):
            features = model.features(prepared, group[0])
            for subnet in group:
                predictions = model.predictions(features, prepared, subnet)
                losses.append(model.learnt(predictions, prepared.targets, weights))
        sums += torch.stack([*(loss.sum for loss in losses), weights.sum()])
    *totals, count = model.accelerator.reduce(sums, "sum").tolist()
    student.train(was_training)
    if active is not None:
        student.set_active_subnet(active)
    if not count:
        raise ValueError("the validation sources hold no audio; check validation.sources")
    return {name: total / count for name, total in zip(subnets, totals, strict=True)}

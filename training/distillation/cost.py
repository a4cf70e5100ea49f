"""What a recipe costs, before it is run: audio heard, and floating-point operations per second of audio.

    lighthubert cost RECIPE [key=value …] [--tflops 100]

Operations are counted by torch's own counter on models without storage: nothing is computed. How fast a machine
does them is for a measurement to say (`audio_per_second` in `log.jsonl`).
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, HubertConfig, PreTrainedConfig

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.loading import load_config
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.streaming.chunks import ChunkContext

from .contexts import StepContexts
from .recipe import DistillationRecipe, TeacherSection
from .sampler import StepSubnets
from .student import extracted, fresh_config

_SECONDS = 10  # of the clip that is counted
_STEPS = 12  # looked at, over the whole run


@dataclass(frozen=True)
class TrainingCost:
    """Counted work of one process's step, per second of audio.

    Args:
        teacher: FLOP of the teacher's forward passes.
        front_end: FLOP of the student's front end, forward and backward; 0 if it is shared with the teacher.
        encoder: FLOP of the student's encoders and heads, forward and backward, of all subnets of a mean step.
    """

    teacher: float
    front_end: float
    encoder: float

    @property
    def total(self) -> float:
        return self.teacher + self.front_end + self.encoder


def count_cost(recipe: DistillationRecipe) -> TrainingCost:
    """Count a recipe whose student is new (`init: teacher` or `random`); a backward pass is twice a forward one.

    Heads of objectives other than `lighthubert` are left out: they are small.

    Raises:
        ValueError: The student would be loaded from somewhere.
    """
    if recipe.student.init not in ("teacher", "random"):
        raise ValueError(
            f"student.init is {recipe.student.init!r}; add student.init=random (the size counts, not the weights) and "
            "the sizes in student.config if they differ from the teacher's"
        )
    config = _teacher_config(recipe.teacher)
    with torch.device("meta"):
        teacher = AutoModel.from_config(config).eval()
        student = LightHubertForPreTraining(fresh_config(recipe.student, config)).eval()
    if recipe.student.subnet is not None:
        student = extracted(student, recipe.student)
    audio = torch.empty(1, _SECONDS * SAMPLING_RATE, device="meta")
    passes = 2 if recipe.objective.name == "armhubert" else 1
    runs_layers = recipe.objective.name != "front_end"
    teacher_flop = passes * _flop(lambda: teacher(audio) if runs_layers else teacher.feature_extractor(audio))
    contexts = StepContexts(recipe.streaming, student, recipe.seed) if recipe.streaming else None
    sampler = StepSubnets(student.search_space, recipe.sampler, recipe.seed) if student.search_space else None
    front_ends, encoders = 0.0, 0.0
    steps = range(0, recipe.training.steps, max(recipe.training.steps // _STEPS, 1))
    for step in steps:
        channels = None
        for subnet in sampler.subnets(step) if sampler else (None,):
            if subnet is not None:
                student.set_active_subnet(subnet)
            if channels != (channels := student.lighthubert.feature_extractor.active_channels):
                front_ends += _flop(lambda: student.lighthubert.extract_features(audio))
                features = student.lighthubert.extract_features(audio)
            context = contexts.at(step) if contexts else None
            encoders += _flop(lambda: _encode(student, features, runs_layers, context))  # noqa: B023 (called at once)
    passes = 3
    if recipe.student.freeze_front_end:  # without a choice of channels it is the teacher's, which runs anyway
        passes = 1 if student.config.has_elastic_front_end else 0
    return TrainingCost(
        teacher_flop / _SECONDS, passes * front_ends / len(steps) / _SECONDS, 3 * encoders / len(steps) / _SECONDS
    )


def _encode(
    student: LightHubertForPreTraining, features: torch.Tensor, runs_layers: bool, context: ChunkContext | None
) -> None:
    encoder = student.lighthubert
    if not runs_layers:
        encoder.feature_projection(features)
        return
    frames = features.shape[1]
    pieces = [(0, frames, 0, frames)] if context is None else context.pieces(frames)
    for length, count in Counter(end - first for first, end, _, _ in pieces).items():
        seen = features.detach()[:, :length].expand(count, -1, -1)
        student.prediction_head(encoder.encode(seen).last_hidden_state)


def _flop(run) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _teacher_config(settings: TeacherSection) -> PreTrainedConfig:
    if settings.random_config is not None:
        return HubertConfig(**settings.random_config)
    return load_config(settings.path, settings.revision)


@dataclass(frozen=True)
class TrainingPlan:
    """What a whole run takes.

    Args:
        name: the recipe's.
        steps: optimiser steps.
        processes: that take part.
        audio_seconds_per_step: heard by all processes together.
        cost: per second of audio.
    """

    name: str
    steps: int
    processes: int
    audio_seconds_per_step: float
    cost: TrainingCost

    @property
    def audio_seconds(self) -> float:
        return self.steps * self.audio_seconds_per_step

    @property
    def flop(self) -> float:
        return self.audio_seconds * self.cost.total

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self) | {"audio_seconds": self.audio_seconds, "flop": self.flop}

    def describe(self, tflops: float | None = None) -> str:
        """For people; with the sustained TFLOP/s of a process also how long it takes."""
        lines = [
            f"{self.name}: {self.steps:,} steps of {self.audio_seconds_per_step / 60:.1f} min on {self.processes} "
            f"processes, {self.audio_seconds / 3600:,.0f} h of audio",
            f"GFLOP per second of audio: teacher {self.cost.teacher / 1e9:.1f}, front end "
            f"{self.cost.front_end / 1e9:.1f}, encoders {self.cost.encoder / 1e9:.1f}; in all {self.flop:.3g} FLOP",
        ]
        if tflops:
            lines.append(f"at {tflops:g} TFLOP/s: {self.flop / tflops / 1e12 / 3600:,.0f} process-hours")
        return "\n".join(lines)


def plan(recipe: DistillationRecipe, processes: int = 8) -> TrainingPlan:
    """Count a whole run; see [`count_cost`].

    Raises:
        ValueError: for less than one process, or what cannot be counted.
    """
    if not 1 <= processes <= 1_000_000:
        raise ValueError(f"processes must be from 1 to 1,000,000, got {processes}")
    seconds = recipe.data.batch_seconds * recipe.training.accumulation * processes
    return TrainingPlan(recipe.name, recipe.training.steps, processes, seconds, count_cost(recipe))

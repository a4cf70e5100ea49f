"""Checkpoints from which a killed run goes on exactly, written so that a kill at any moment leaves a usable one.

```
step-00010000/
  pretrained_model/              what from_pretrained reads
    config.json  model.safetensors  preprocessor_config.json  README.md  …
  training_state/
    trainer.json                 step, counters, loss scale, where each process stands in the data
    optimizer.safetensors        "parameter/exp_avg", "parameter/exp_avg_sq", "parameter/step"
    objective.safetensors        the objective's own heads
    average.safetensors          with `averaging`, once it has begun: the averaged weights
  complete.json                  written last: sizes and checksums of all files
```

Where it lies is drawn in `runs/run_folder.py`. It is written beside its name and renamed when complete (see
`files`). Nothing in it is pickled.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.files import read_object, replacing_folder
from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.hub.folder import complete_folder
from lighthubert_hf.training.runs.checkpoints import mark_complete
from lighthubert_hf.weights import check_finite


@dataclass
class TrainingState:
    """What a run needs beside the model to go on.

    Args:
        step: Optimiser steps done, skipped ones included.
        num_processes: Processes of the run; each has its own place in the data.
        data: The loader's state of each process, JSON-able.
        audio_seconds: Audio seen so far.
        skipped_steps: Steps skipped so far because they were not finite.
        skipped_in_a_row: The latest of them without a good one between.
        pending_losses: Losses of the steps since the last line of the log.
        scaler: State of the fp16 loss scale; empty without one.
        optimizer: See `flatten_optimizer`.
        objective: State dict of the objective.
        average: See `WeightAverage.state`.
    """

    step: int
    num_processes: int
    data: list[dict[str, Any]]
    audio_seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    pending_losses: list[float] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)
    objective: dict[str, torch.Tensor] = field(default_factory=dict)
    average: dict[str, torch.Tensor] = field(default_factory=dict)


def save_model(folder: Path, student: LightHubertForPreTraining, card: CardFacts) -> None:
    """The model with all that belongs to a model folder (feature extractor, card), complete or not at all.

    Raises:
        WeightsError: A weight is NaN or infinite.
    """
    with replacing_folder(folder) as new:
        _write_model(new, student, card)


def _write_model(folder: Path, student: LightHubertForPreTraining, card: CardFacts) -> None:
    check_finite(student.state_dict(), "the trained model")
    with _without_progress_bars():  # they would tear the training's own line
        student.save_pretrained(folder)
    complete_folder(folder, card)


def save_checkpoint(folder: Path, student: LightHubertForPreTraining, state: TrainingState, card: CardFacts) -> None:
    """Write one checkpoint (see the module's drawing), complete or not at all. By the main process only."""
    with replacing_folder(folder) as new:  # there may be one of an earlier life of this run, resumed from before it
        _write_model(new / "pretrained_model", student, card)
        place = new / "training_state"
        place.mkdir()
        save_file(_owned(state.optimizer), place / "optimizer.safetensors")
        save_file(_owned(state.objective), place / "objective.safetensors")
        if state.average:
            save_file(_owned(state.average), place / "average.safetensors")
        plain = {key: value for key, value in vars(state).items() if key not in ("optimizer", "objective", "average")}
        (place / "trainer.json").write_text(json.dumps(plain), encoding="utf-8")
        mark_complete(new, state.num_processes)


def load_training_state(folder: Path) -> TrainingState:
    """What `save_checkpoint` was given; tensors on the CPU."""
    place = folder / "training_state"
    plain = read_object(place / "trainer.json", "start over with --overwrite")
    average = place / "average.safetensors"
    return TrainingState(
        **plain,
        optimizer=load_file(place / "optimizer.safetensors"),
        objective=load_file(place / "objective.safetensors"),
        average=load_file(average) if average.exists() else {},
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _owned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

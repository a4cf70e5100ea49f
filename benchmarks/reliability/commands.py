"""Tiny inputs for six commands, the commands, and what of their results is compared."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from transformers import HubertConfig, HubertModel

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.files import is_leftover
from lighthubert_hf.hub.folder import save_model_folder

SPACE = SearchSpace(hidden_size=(16, 32), num_attention_heads=(1, 2), ffn_ratio=(1.0, 2.0), num_hidden_layers=(1, 2))
# One frame in 20 samples, so that half a second is little work.
FRONT_END = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (10, 2), "num_feat_extract_layers": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
SECONDS, CLIPS = 0.4, 12
SCORE = "def score(subnet):\n    return sum(subnet.intermediate_size) / subnet.hidden_size\n"


def supernet() -> LightHubertModel:
    torch.manual_seed(0)
    config = LightHubertConfig(**SIZES, **FRONT_END, **POSITIONS, head_dim=16, search_space=SPACE.to_dict())
    return LightHubertModel(config)


@dataclass(frozen=True)
class Command:
    """A command, and what belongs to it.

    Args:
        arguments: After `lighthubert`.
        inputs: Files and folders that it reads.
        output: The folder that it writes.
        state: What an interrupted run leaves there to go on from, as patterns: its own files, all with checksums.
        result: Of a finished run, what a user would read of it.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    result: Callable[[], object]
    state: tuple[str, ...] = ()


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for leftovers and the record, which name nothing that a reader uses."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".made.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not any(is_leftover(part) for part in (path, *path.relative_to(folder).parents))
    }


def _found() -> object:
    data = json.loads(Path("found/pareto.json").read_text(encoding="utf-8"))
    kept = ("subnet", "parameters", "macs_per_second", "score", "on_front")
    return [{key: entry.get(key) for key in kept} for entry in data["scored"]]


def _tuned() -> object:
    metrics = json.loads(Path("tuned/metrics.json").read_text(encoding="utf-8"))
    metrics.pop("seconds")
    return metrics, Path("tuned/model/model.safetensors").read_bytes()


def _judged() -> object:
    results = json.loads(Path("judged/results.json").read_text(encoding="utf-8"))
    return {name: task["metrics"] for name, task in results["tasks"].items()}


_KS = ("--tasks", "ks", "--data", "ks=speech", "--preset", "tiny", "--steps", "2", "--device", "cpu")
COMMANDS = (
    Command(
        "extract", ("extract", "supernet", "out", "--overwrite"), ("supernet",), "out", lambda: contents(Path("out"))
    ),
    Command(
        "push --dry-run",
        ("push", "supernet", "me/x", "--dry-run", "dry", "--overwrite"),
        ("supernet",),
        "dry",
        lambda: contents(Path("dry")),
    ),
    Command(
        "search",
        ("search", "supernet", "found", "--score", "score.py:score", "--trials", "6", "--population-size", "2"),
        ("supernet",),
        "found",
        _found,
        ("study.db",),
    ),
    Command(
        "distill",
        ("distill", "distill.yaml"),
        ("distill.yaml", "supernet", "teacher", "speech"),
        "distilled",
        lambda: Path("distilled/model/model.safetensors").read_bytes(),
        ("checkpoints/**/*", "recipe.yaml"),
    ),
    Command(
        "finetune",
        ("finetune", "finetune.yaml"),
        ("finetune.yaml", "supernet", "speech"),
        "tuned",
        _tuned,
        ("checkpoints/**/*", "recipe.yaml"),
    ),
    Command(
        "evaluate",
        ("evaluate", "subnet", "--output", "judged", *_KS),
        ("subnet", "speech"),
        "judged",
        _judged,
        ("features/*/*", "tasks/*"),
    ),
)


def write_inputs() -> None:
    """Everything that the commands read, into the present folder."""
    model = supernet()
    save_model_folder(model, "supernet")
    save_model_folder(model.extract_subnet(SPACE.smallest()), "subnet")
    torch.manual_seed(1)
    teacher = HubertConfig(**SIZES, **FRONT_END, **POSITIONS, feat_extract_norm="layer", do_stable_layer_norm=False)
    HubertModel(teacher).save_pretrained("teacher")
    Path("score.py").write_text(SCORE, encoding="utf-8")
    _write_speech(Path("speech"))
    speech = {"path": "speech", "text_column": "text"}
    settings = {"optimizer": {"lr": 1e-3}, "checkpoint": {"every": 1}, "logging": {"every": 1}}
    distill = settings | {
        "name": "distill",
        "output_dir": "distilled",
        "teacher": {"path": "teacher"},
        "student": {"init": "supernet"},
        "objective": {"name": "lighthubert", "num_target_layers": 1},
        "masking": {"length": 2},
        "data": {
            "sources": [speech],
            "batch_seconds": 2,
            "crop_seconds": SECONDS,
            "min_seconds": 0.1,
            "num_workers": 0,
        },
        "training": {"steps": 3},
    }
    finetune = settings | {
        "name": "finetune",
        "task": "classification",
        "output_dir": "tuned",
        "model": {"path": "supernet", "subnet": "smallest"},
        "data": {
            "sources": [speech],
            "evaluation": {"held_out": [speech | {"split": "test"}]},
            "batch_seconds": 2,
            "max_seconds": 1,
        },
        "spec_augment": None,
        "training": {"steps": 3},
    }
    for recipe in (distill, finetune):
        Path(f"{recipe['name']}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def _write_speech(folder: Path) -> None:
    """Tones of two pitches, one a class, in three splits."""
    folder.mkdir()
    time = np.arange(round(SECONDS * 16_000)) / 16_000
    noise = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        lines = []
        for number in range(CLIPS):
            label = "low" if number % 2 else "high"
            wave = 0.3 * np.sin(2 * math.pi * (200 if number % 2 else 900) * time) + 0.05 * noise.standard_normal(
                len(time)
            )
            buffer = io.BytesIO()
            soundfile.write(buffer, wave, 16_000, format="FLAC")
            name = f"{split}-{number}.flac"
            (folder / name).write_bytes(buffer.getvalue())
            lines.append(json.dumps({"audio": name, "text": label, "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")

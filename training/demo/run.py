"""`lighthubert demo`: the whole job, small and offline, from nothing to published subnets.

DEMO/
  corpus/            synthetic speech with transcripts, parquet shards
  teacher/           a small HuBERT trained on it
  stage1/ stage2/    the two stages of distillation (runs of `distill`)
  search/            the study, its front and its plots
  subnets/NAME/      the picked subnets, each a complete model folder
  ctc/NAME-*/        short CTC trainings on few labels, distilled and from scratch
  results.json results.md pareto.png

Every part that takes long is skipped when it is there and made by the same settings, so an interrupted demo continues
where it was.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lighthubert_hf.files import read_object, write_json
from lighthubert_hf.hub.output import check_not_source
from lighthubert_hf.training.distillation.recipe import DistillationRecipe

from .report import write_results
from .settings import NUM_TARGET_LAYERS, SPACE, SUPERNET, DemoSettings

SETTINGS_FILE = "settings.json"
_MADE_HERE = (
    *("corpus", "teacher", "stage1", "stage2", "search", "subnets", "ctc"),
    *("results.json", "results.md", "pareto.png", SETTINGS_FILE),
)


def run_demo(
    output: str | os.PathLike,
    settings: DemoSettings | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run or continue the demo in `output` and return its results, which also stand there as JSON, table and picture.

    Args:
        output: the demo's folder.
        settings: sizes; a folder made with others is refused unless `overwrite`.
        overwrite: delete an earlier demo in `output` first.
        say: takes a line when a part begins, and the table at the end.

    Raises:
        ValueError: if `output` is something else, or a demo with other settings.
    """
    from lighthubert_hf.costs.measuring import describe_machine

    from .study import compare_stages, describe_models, pick_subnets, save_subnets, score_stage

    settings = settings or DemoSettings()
    folder = _prepare(Path(output), settings, overwrite)
    started = time.monotonic()
    say("1/6 speech: a corpus with transcripts, read by streaming from here on")
    speech = _speech(folder, settings)
    say("2/6 teacher: a small HuBERT")
    teacher, teacher_errors = _teacher(folder, settings, speech)
    say("3/6 distillation: stage 1 trains the largest subnet, stage 2 a new random subnet every step")
    stage1 = _distil(folder, settings, speech, teacher, "stage1")
    stage2 = _distil(folder, settings, speech, teacher, "stage2")
    score = score_stage(stage2, teacher, speech["validation"])
    distillation = compare_stages(score_stage(stage1, teacher, speech["validation"]), score, settings)
    say("4/6 search: which subnets are worth their parameters")
    search, picks = pick_subnets(folder / "search", score, settings)
    say("5/6 models: the picked subnets, saved, and loaded where this package is not installed")
    folders = save_subnets(folder / "subnets", stage2, picks, str(teacher), settings)
    described = describe_models(teacher, folders)
    say(f"6/6 use: speech recognition from {settings.labelled_minutes:g} labelled minutes, distilled and from scratch")
    subnets = [pick | described[pick["name"]] | _recognition(folder, settings, speech, pick["name"]) for pick in picks]
    results = {
        "settings": asdict(settings),
        "teacher": described["teacher"] | {"cer": teacher_errors},
        "distillation": distillation,
        "search": search,
        "subnets": subnets,
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started, 1),
    }
    say(write_results(folder, results))
    say(f"{folder}: results.md, results.json, pareto.png, and the models under subnets/ ({results['seconds']:.0f} s)")
    return results


def _prepare(folder: Path, settings: DemoSettings, overwrite: bool) -> Path:
    stored = folder / SETTINGS_FILE
    ours = stored.is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no demo (it has no {SETTINGS_FILE}); choose another --output")
    if overwrite and ours:
        for source in (settings.teacher, settings.dataset):
            check_not_source(folder, source)
        for name in _MADE_HERE:  # what is not the demo's stays
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    elif ours and read_object(stored, "start over with --overwrite") != json.loads(json.dumps(asdict(settings))):
        raise ValueError(
            f"{folder} holds a demo with other settings; choose another --output, or start over with "
            "--overwrite (overwrite=True)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(stored, asdict(settings))
    return folder


def _speech(folder: Path, settings: DemoSettings) -> dict[str, dict[str, Any]]:
    """Sources by split, as recipes write them."""
    if settings.dataset is None:
        from lighthubert_hf.training.synthetic.speech import synthesise_corpus

        path = str(folder / "corpus")
        synthesise_corpus(
            path, minutes=settings.corpus_minutes, held_out_minutes=settings.held_out_minutes, seed=settings.seed
        )
        splits, text_column = ("train", "validation", "test_sentences", "test_voice"), "text"
    else:
        path, splits, text_column = settings.dataset, ("train", "validation"), settings.text_column
    return {split: {"path": path, "split": split, "text_column": text_column} for split in splits}


def _teacher(folder: Path, settings: DemoSettings, speech: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Folder or Hub id of the teacher, and its character error rates where they are known."""
    if settings.teacher is not None:
        return settings.teacher, {}
    from .teacher import train_tiny_teacher

    report = train_tiny_teacher(
        speech["train"]["path"],
        folder / "teacher",
        pretrain_steps=settings.teacher_steps,
        ctc_steps=settings.teacher_ctc_steps,
        seed=settings.seed,
    )
    return str(folder / "teacher"), report


def _distil(folder: Path, settings: DemoSettings, speech: dict[str, Any], teacher: str, stage: str) -> str:
    """Run one stage, or what is left of it; the folder of the supernet it leaves."""
    from lighthubert_hf.training.distillation.run import distill
    from lighthubert_hf.training.recipes.loading import parse_recipe
    from lighthubert_hf.training.runs.run_folder import MODEL

    first = stage == "stage1"
    steps = settings.stage1_steps if first else settings.stage2_steps
    student = (
        {"init": "random", "search_space": SPACE, "config": SUPERNET}
        if first
        else {"init": str(folder / "stage1" / MODEL)}
    )
    recipe = {
        "name": f"demo-{stage}",
        "output_dir": str(folder / stage),
        "seed": settings.seed,
        "teacher": {"path": teacher},
        "student": student,
        "objective": {"name": "lighthubert", "num_target_layers": NUM_TARGET_LAYERS},
        "sampler": {"kind": "largest" if first else "random"},
        "data": {
            "sources": [speech["train"]],
            "batch_seconds": settings.batch_seconds,
            "crop_seconds": min(10.0, settings.batch_seconds),
            "num_workers": 0,
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"kind": "linear", "warmup": 0.05},
        "training": {"steps": steps},
        "checkpoint": {"every": max(steps // 4, 1), "keep": 1},
        "logging": {"every": 50},
    }
    return str(distill(parse_recipe(DistillationRecipe, recipe)))


def _recognition(folder: Path, settings: DemoSettings, speech: dict[str, Any], name: str) -> dict[str, float | None]:
    """Character error rates of the subnet and of its architecture from random weights, after the same few steps."""
    if speech["train"]["text_column"] is None:
        return {"cer_distilled": None, "cer_scratch": None}
    held_out = "test_sentences" if "test_sentences" in speech else "validation"
    return {
        f"cer_{kind}": _character_error_rate(folder, settings, speech["train"], speech[held_out], name, kind)
        for kind in ("distilled", "scratch")
    }


def _character_error_rate(folder: Path, settings: DemoSettings, train, held_out, name: str, kind: str) -> float:
    from lighthubert_hf.training.finetuning.run import finetune

    output = folder / "ctc" / f"{name}-{kind}"
    metrics = finetune(_ctc_recipe(output, folder / "subnets" / name, settings, train, held_out, kind))
    return metrics["evaluation"]["held_out"]["cer"]


def _ctc_recipe(output: Path, model: Path, settings: DemoSettings, train, held_out, kind: str):
    from lighthubert_hf.training.finetuning.recipe import CtcRecipe

    if kind == "distilled":  # what was learnt is left alone until the head can read it
        freezing = {"freeze": "front_end", "head_only_steps": settings.ctc_steps * 2 // 5}
    else:
        freezing = {"freeze": "none"}
    return CtcRecipe.model_validate(
        {
            "name": output.name,
            "output_dir": str(output),
            "seed": settings.seed,
            "model": {"path": str(model), "from_scratch": kind == "scratch"},
            "data": {
                "sources": [train],
                "evaluation": {"held_out": [held_out]},
                "labelled_minutes": settings.labelled_minutes,
                "max_eval_examples": 80,
                "batch_seconds": 16.0,
                "max_seconds": 16.0,
            },
            "freezing": freezing,
            "spec_augment": None,
            "optimizer": {"lr": 2e-3, "max_grad_norm": 1.0},
            "training": {"steps": settings.ctc_steps},
        }
    )

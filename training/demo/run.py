"""`lighthubert demo`: the whole job, small and offline, from nothing to recognisers of three sizes.

DEMO/
  corpus/            synthetic speech with transcripts, parquet shards
  teacher/           a small HuBERT trained on it, a recogniser
  front-end/         the first stage of distillation (runs of `distill`) …
  supernet/          … and the second, which leaves the supernet
  search/            the study, its front and its plots
  subnets/NAME/      the picked subnets, each a complete model folder
  recognisers/NAME/  a recogniser from each (runs of `finetune`)
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

from .report import write_results
from .settings import DemoSettings

SETTINGS_FILE = "settings.json"
_MADE_HERE = (
    *("corpus", "teacher", "front-end", "supernet", "search", "subnets", "recognisers"),
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
        FileNotFoundError: if there is no such teacher.
        ValueError: if `output` is something else, or a demo with other settings; if the teacher is of a family whose
            weights a supernet cannot start with.
    """
    from lighthubert_hf.costs.measuring import describe_machine

    from .study import describe_models, pick_subnets, save_subnets, score_subnets
    from .units import unit_agreement

    settings = settings or DemoSettings()
    if settings.teacher is not None:
        _check_teacher(settings.teacher)
    folder = _prepare(Path(output), settings, overwrite)
    clock = _Clock(say)
    clock.begin("speech", "a corpus with transcripts, read by streaming from here on")
    speech = _speech(folder, settings)
    clock.begin("teacher", "a small HuBERT")
    teacher, teacher_errors = _teacher(folder, settings, speech)
    clock.begin("distillation", "a supernet that starts as the teacher: its front end first, then all of it")
    supernet = _distil(folder, settings, speech, teacher)
    clock.begin("search", "which subnets are worth their arithmetic")
    score = score_subnets(supernet, teacher, speech["validation"])
    search, picks = pick_subnets(folder / "search", score, settings)
    clock.begin("models", "the picked subnets, saved, and loaded where this package is not installed")
    folders = save_subnets(folder / "subnets", supernet, picks, str(teacher), settings)
    clock.begin("recognisers", "each subnet trained on the teacher's labels")
    errors = _recognition(folder, settings, speech, folders)
    clock.begin("units", "how often each subnet says what its teacher says")
    units = unit_agreement(str(teacher), folders, speech["train"], _tests(speech)[0], settings)
    clock.begin("speed", "teacher and subnets in turn")
    described = describe_models(teacher, folders, settings.timing_repeats)
    results = {
        "settings": asdict(settings),
        "teacher": described["teacher"] | {"cer": teacher_errors},
        "search": search,
        "subnets": [
            pick | described[name] | {"cer": errors[name], "units": units[name]}
            for pick in picks
            for name in [pick["name"]]
        ],
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": clock.end(),
    }
    say(write_results(folder, results))
    made = "results.md, results.json, pareto.png, and the models under subnets/ and recognisers/"
    say(f"{folder}: {made} ({sum(results['seconds'].values()):.0f} s)")
    return results


class _Clock:
    """Says which part begins, and takes the time of each."""

    PARTS = ("speech", "teacher", "distillation", "search", "models", "recognisers", "units", "speed")

    def __init__(self, say: Callable[[str], None]):
        self.say, self.starts = say, {}

    def begin(self, part: str, what: str) -> None:
        self.starts[part] = time.monotonic()
        self.say(f"{len(self.starts)}/{len(self.PARTS)} {part}: {what}")

    def end(self) -> dict[str, float]:
        """Seconds of every part, of those that were there before what it took to see that."""
        times = [*self.starts.values(), time.monotonic()]
        return {part: round(end - start, 1) for part, start, end in zip(self.starts, times, times[1:], strict=False)}


def _check_teacher(name: str) -> None:
    from lighthubert_hf.loading import load_encoder
    from lighthubert_hf.training.distillation.student import TEACHER_INIT

    family = load_encoder(name).config.model_type
    if family not in TEACHER_INIT:
        raise ValueError(
            f"the demo's supernet starts as its teacher, and {name} is a {family}; give a model of one of "
            f"{', '.join(TEACHER_INIT)} as --teacher"
        )


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
            path,
            minutes=settings.corpus_minutes,
            held_out_minutes=settings.held_out_minutes,
            seed=settings.seed,
            num_shards=max(1, min(8, int(settings.corpus_minutes))),
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
        window_size=settings.window_size,
        learning_rate=1.5e-3,
        pretrain_rate=4e-3,
        seed=settings.seed,
    )
    return str(folder / "teacher"), report


def _distil(folder: Path, settings: DemoSettings, speech: dict[str, Any], teacher: str) -> str:
    """Run both stages, or what is left of them; the folder of the supernet they leave."""
    from transformers import AutoConfig

    from lighthubert_hf.training.distillation.stages import distill_stages

    from .stages import stages

    return str(distill_stages(stages(folder, settings, speech["train"], teacher, AutoConfig.from_pretrained(teacher))))


def _recognition(
    folder: Path, settings: DemoSettings, speech: dict[str, Any], models: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Character error rates by model and split; none where the speech has no transcripts."""
    from .recognisers import character_error_rates

    if speech["train"]["text_column"] is None:
        return {name: {} for name in models}
    held_out = {source["split"]: source for source in _tests(speech)}
    return {
        name: character_error_rates(model, folder / "recognisers" / name, settings, speech["train"], held_out)
        for name, model in models.items()
    }


def _tests(speech: dict[str, Any]) -> list[dict[str, Any]]:
    """What nothing is trained on or chosen by; of other speech than the demo's own the validation split."""
    return [speech[split] for split in speech if split.startswith("test_")] or [speech["validation"]]

"""Fine-tuning of a speech recogniser: from a recipe to a model folder with its scores."""

import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    Wav2Vec2Processor,
    set_seed,
)
from transformers.integrations import TensorBoardCallback

from .ctc_data import CtcCollator, build_processor, characters, load_processor, save_processor
from .ctc_model import Thawing, add_lora, build_ctc_model, freeze
from .ctc_recipe import CtcRecipe
from .ctc_trainer import CtcTrainer, last_complete_checkpoint, load_data_state
from .labelled_speech import (
    SAMPLING_RATE,
    DoesNotFit,
    MemoryBatches,
    SpeechExample,
    StreamedBatches,
    read_examples,
)
from .recipe import SourceSection
from .streaming import AudioSource

logger = logging.getLogger(__name__)

SYNTHETIC_HELD_OUT = ("validation", "test_sentences", "test_voice")


def finetune_ctc(recipe: CtcRecipe, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Fine-tune a speech recogniser and score it.

    ```
    output_dir/
      recipe.yaml    what was run
      model/         weights, config and processor, as `from_pretrained` and `pipeline` read them
      metrics.json   what is returned
      checkpoints/   with `checkpoint` or early stopping: to resume from
    ```

    Args:
        recipe: What to train on what.
        resume: Go on from the newest complete checkpoint in `output_dir`.
        quiet: Neither progress bars nor logs.

    Returns:
        `{"model": folder, "parameters": int, "steps": int, "seconds": float, "training_minutes": float,
        "dropped": int, "evaluation": {set: {"cer", "wer", "loss", "examples"}}}`; `dropped` counts training
        utterances whose transcript is too long for their frames.

    Raises:
        FileExistsError: if `output_dir` holds a finished model.
        ValueError: if the recipe does not fit the data or the model.
    """
    output = Path(recipe.output_dir)
    _prepare_output(output, recipe, resume)
    set_seed(recipe.seed)
    speech = _read_speech(recipe, progress=not quiet)
    processor = _processor(recipe, speech)
    model = build_ctc_model(
        recipe.model,
        config_changes=_config_changes(recipe, processor),
        keep_head=recipe.data.vocabulary is not None and recipe.data.vocabulary == recipe.model.path,
    )
    freeze(model, recipe.freezing)
    parameters = model.num_parameters()
    if recipe.lora is not None:
        model = add_lora(model, recipe.lora)
    trainer = _trainer(recipe, model, processor, speech, quiet)
    result = trainer.train(_continue(trainer, output / "checkpoints") if resume else None)
    if recipe.lora is not None:
        trainer.model = model = model.merge_and_unload()
    metrics = {
        "model": str(output / "model"),
        "parameters": parameters,
        "steps": trainer.state.global_step,
        "seconds": round(result.metrics["train_runtime"], 2),
        "training_minutes": None if speech.train is None else round(_minutes(speech.train), 2),
        "dropped": trainer.batches.num_refused,
        "evaluation": _score(trainer, recipe, speech.evaluation),
    }
    if trainer.is_world_process_zero():
        _save(output, model, processor, metrics)
    return metrics


@dataclass
class _Speech:
    """What a run reads: training examples (`None`: they are streamed), their sources, held-out sets."""

    train: list[SpeechExample] | None
    sources: list[AudioSource]
    evaluation: dict[str, list[SpeechExample]]


def _prepare_output(output: Path, recipe: CtcRecipe, resume: bool) -> None:
    if (output / "model").exists():
        raise FileExistsError(f"{output} holds a finished model; choose another output_dir or remove it")
    stored = output / "recipe.yaml"
    wanted = recipe.model_dump(mode="json")
    if resume:
        if not stored.is_file():
            raise FileNotFoundError(f"nothing to resume: {stored} does not exist")
        was = yaml.safe_load(stored.read_text())
        differing = sorted(key for key in wanted.keys() | was.keys() if wanted.get(key) != was.get(key))
        if differing:
            raise ValueError(f"cannot resume {output}: the recipe differs in {', '.join(differing)} from {stored}")
    elif (output / "checkpoints").exists():
        raise FileExistsError(f"{output} holds an unfinished run; resume it, remove it, or choose another output_dir")
    output.mkdir(parents=True, exist_ok=True)
    _write(stored, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _read_speech(recipe: CtcRecipe, progress: bool) -> _Speech:
    data = recipe.data
    train, evaluation = _sources(data.sources), {name: _sources(part) for name, part in data.evaluation.items()}
    if data.synthetic_minutes is not None:
        train, evaluation = _synthetic(Path(recipe.output_dir) / "synthetic_speech", data.synthetic_minutes)
    try:
        examples = read_examples(
            train,
            minutes=data.labelled_minutes,
            max_seconds=data.max_seconds,
            shuffle_seed=recipe.seed,
            max_gigabytes=data.memory_gb,
            description="reading training speech",
            progress=progress,
        )
    except DoesNotFit as error:
        if data.labelled_minutes is not None:
            raise ValueError(f"{error}: lower data.labelled_minutes or raise data.memory_gb") from None
        logger.info("%s; it is streamed", error)
        examples = None
    held_out = {
        name: read_examples(
            part,
            max_examples=data.max_eval_examples,
            max_gigabytes=data.memory_gb,
            description=f"reading {name}",
            progress=progress,
        )
        for name, part in evaluation.items()
    }
    return _Speech(examples, train, held_out)


def _sources(sections: list[SourceSection]) -> list[AudioSource]:
    return [AudioSource(**section.model_dump()) for section in sections]


def _synthetic(folder: Path, minutes: float) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
    from .synthetic_speech import synthesise_corpus

    synthesise_corpus(folder, minutes=minutes, held_out_minutes=max(1.0, minutes / 25))
    splits = {split: [AudioSource(str(folder), split, text_column="text")] for split in ("train", *SYNTHETIC_HELD_OUT)}
    return splits.pop("train"), splits


def _processor(recipe: CtcRecipe, speech: _Speech) -> Wav2Vec2Processor:
    if recipe.data.vocabulary is not None:
        return load_processor(recipe.data.vocabulary)
    if speech.train is None:
        raise ValueError(
            f"the training speech exceeds data.memory_gb ({recipe.data.memory_gb:g}) and is streamed, so its characters "
            "are not known beforehand: give data.vocabulary, a folder with a tokenizer"
        )
    return build_processor(characters(example.text for example in speech.train))


def _config_changes(recipe: CtcRecipe, processor: Wav2Vec2Processor) -> dict[str, Any]:
    changes = {
        "vocab_size": len(processor.tokenizer),
        "pad_token_id": processor.tokenizer.pad_token_id,
        "bos_token_id": processor.tokenizer.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "apply_spec_augment": recipe.spec_augment is not None,
    }
    return changes if recipe.spec_augment is None else changes | recipe.spec_augment.model_dump()


def _batches(recipe: CtcRecipe, collate: CtcCollator, speech: _Speech, rank: int, world_size: int):
    data = recipe.data
    shared = {"batch_seconds": data.batch_seconds, "seed": recipe.seed, "rank": rank, "world_size": world_size}
    if speech.train is None:
        return StreamedBatches(speech.sources, collate, collate.is_possible, max_seconds=data.max_seconds, **shared)
    return MemoryBatches(speech.train, collate, collate.is_possible, **shared)


def _trainer(
    recipe: CtcRecipe, model: PreTrainedModel, processor: Wav2Vec2Processor, speech: _Speech, quiet: bool
) -> CtcTrainer:
    arguments = _arguments(recipe, quiet)
    collate = CtcCollator(processor, model.config)
    trainer = CtcTrainer(
        model=model,
        args=arguments,
        eval_dataset=next(iter(speech.evaluation.values()), None),
        callbacks=_callbacks(recipe),
        batches=_batches(recipe, collate, speech, arguments.process_index, arguments.world_size),
        collate=collate,
        processor=processor,
        schedule=recipe.schedule,
        eval_batch_seconds=recipe.data.eval_batch_seconds,
    )
    if quiet:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(recipe: CtcRecipe, quiet: bool) -> TrainingArguments:
    training, optimizer, checkpoint = recipe.training, recipe.optimizer, recipe.checkpoint
    steered = training.early_stopping_patience is not None
    saving = {"save_strategy": "best" if steered else "no"}
    if checkpoint is not None:
        # The newest is complete only after the oldest is gone, so one more than a single one has to be there.
        saving = {
            "save_strategy": "steps",
            "save_steps": checkpoint.every,
            "save_total_limit": max(2, checkpoint.keep),
        }
    logged = not quiet or recipe.logging.trackers
    return TrainingArguments(
        output_dir=str(Path(recipe.output_dir) / "checkpoints"),
        max_steps=training.steps,
        gradient_accumulation_steps=training.accumulation,
        bf16=training.mixed_precision == "bf16",
        activation_checkpointing=training.gradient_checkpointing,
        learning_rate=optimizer.lr,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm or 0.0,
        seed=recipe.seed,
        eval_strategy="no" if training.evaluate_every is None else "steps",
        eval_steps=training.evaluate_every,
        load_best_model_at_end=steered,
        metric_for_best_model="cer" if steered else None,
        greater_is_better=False if steered else None,
        logging_strategy="steps" if logged else "no",
        logging_steps=recipe.logging.every,
        report_to=[tracker for tracker in recipe.logging.trackers if tracker != "tensorboard"],
        run_name=recipe.name,
        disable_tqdm=quiet,
        label_names=["labels"],
        # The batches resume from their own state.
        ignore_data_skip=True,
        ddp_find_unused_parameters=recipe.freezing.thaws or recipe.model.layerdrop > 0,
        **saving,
    )


def _callbacks(recipe: CtcRecipe) -> list[TrainerCallback]:
    callbacks = []
    if recipe.freezing.thaws:
        callbacks.append(Thawing(recipe.freezing))
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    if "tensorboard" in recipe.logging.trackers:
        tensorboard = TensorBoardCallback()
        tensorboard.logging_dir = str(Path(recipe.output_dir) / "logs")
        callbacks.append(tensorboard)
    return callbacks


def _continue(trainer: CtcTrainer, folder: Path) -> str | None:
    """The checkpoint to go on from, with the batches set to where they stood; `None` if none was completed."""
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is None:
        logger.warning("%s holds no complete checkpoint; training starts from the beginning", folder)
        return None
    trainer.batches.state = load_data_state(checkpoint, trainer.args.process_index)
    return str(checkpoint)


def _score(trainer: CtcTrainer, recipe: CtcRecipe, evaluation: dict[str, list[SpeechExample]]) -> dict[str, dict]:
    scores = {}
    for name, examples in evaluation.items():
        prefix = f"eval_{name}"
        metrics = trainer.evaluate(examples, metric_key_prefix=prefix)
        scores[name] = {key: metrics[f"{prefix}_{key}"] for key in ("cer", "wer", "loss")}
        scores[name]["examples"] = len(examples)
    return scores


def _save(folder: Path, model: PreTrainedModel, processor: Wav2Vec2Processor, metrics: dict[str, Any]) -> None:
    """Write the model beside, the scores, and then give the model its name."""
    temporary = Path(tempfile.mkdtemp(prefix=".model.", dir=folder))
    try:
        model.save_pretrained(temporary)
        save_processor(processor, temporary)
        temporary.chmod(0o755)  # mkdtemp makes private folders; a model is an ordinary one
        _write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        os.replace(temporary, folder / "model")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _minutes(examples: list[SpeechExample]) -> float:
    return sum(len(example.waveform) for example in examples) / SAMPLING_RATE / 60

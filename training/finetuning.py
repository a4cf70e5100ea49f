"""Fine-tuning of a speech recogniser: from a recipe to a model folder with its scores."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
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

from lighthubert_hf.publishing import push_folder

from .beam_search import BeamSearch
from .ctc_data import CtcCollator, build_processor, characters, load_processor
from .ctc_decoding import transcribe
from .ctc_model import Thawing, add_lora, build_ctc_model, freeze
from .ctc_recipe import CtcRecipe, DecodingSection
from .ctc_results import save_results, write_text
from .ctc_trainer import CtcTrainer, error_rates, last_complete_checkpoint, load_data_state
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
    with _progress_bars(not quiet):
        arguments = _arguments(recipe, quiet)
        with arguments.main_process_first(local=False):
            if arguments.process_index == 0:
                _prepare_output(recipe, resume)
            sources = _sources(recipe)
        set_seed(recipe.seed)
        speech = _read_speech(recipe, *sources, progress=not quiet)
        processor = _processor(recipe, speech)
        model = _model(recipe, processor)
        trainer = _trainer(recipe, arguments, model, processor, speech)
        result = trainer.train(_continue(trainer) if resume else None)
        if recipe.lora is not None:
            trainer.model = model = model.merge_and_unload()
        metrics = {
            "model": str(Path(recipe.output_dir) / "model"),
            "parameters": model.num_parameters(),
            "steps": trainer.state.global_step,
            "seconds": round(result.metrics["train_runtime"], 2),
            "training_minutes": None if speech.train is None else round(_minutes(speech.train), 2),
            "dropped": trainer.batches.num_refused,
            "evaluation": _score(trainer, recipe.decoding, speech.evaluation),
        }
        if arguments.process_index == 0:
            save_results(recipe, model, processor, metrics)
            if recipe.hub is not None:
                push_folder(metrics["model"], recipe.hub.repo_id, private=recipe.hub.private)
            if not any(Path(arguments.output_dir).iterdir()):
                Path(arguments.output_dir).rmdir()
    return metrics


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """With or without the bars that transformers draws for loading and saving."""
    before = transformers.logging.is_progress_bar_enabled()
    if not shown:
        transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers.logging.enable_progress_bar()


@dataclass
class _Speech:
    """What a run reads: training examples (`None`: they are streamed), their sources, held-out sets."""

    train: list[SpeechExample] | None
    sources: list[AudioSource]
    evaluation: dict[str, list[SpeechExample]]


def _prepare_output(recipe: CtcRecipe, resume: bool) -> None:
    """Refuse a folder in which something would be lost; note the recipe."""
    output = Path(recipe.output_dir)
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
    elif last_complete_checkpoint(output / "checkpoints") is not None:
        raise FileExistsError(f"{output} holds an unfinished run; resume it, remove it, or choose another output_dir")
    output.mkdir(parents=True, exist_ok=True)
    write_text(stored, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))


def _sources(recipe: CtcRecipe) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
    """Where training and held-out speech come from; synthetic speech is made here."""
    data = recipe.data
    if data.synthetic_minutes is None:
        return _audio_sources(data.sources), {name: _audio_sources(part) for name, part in data.evaluation.items()}
    from .synthetic_speech import synthesise_corpus

    folder, minutes = str(Path(recipe.output_dir) / "synthetic_speech"), data.synthetic_minutes
    synthesise_corpus(folder, minutes=minutes, held_out_minutes=min(3.0, minutes / 5))
    train, *held_out = ([AudioSource(folder, split, text_column="text")] for split in ("train", *SYNTHETIC_HELD_OUT))
    return train, dict(zip(SYNTHETIC_HELD_OUT, held_out, strict=True))


def _audio_sources(sections: list[SourceSection]) -> list[AudioSource]:
    return [AudioSource(**section.model_dump()) for section in sections]


def _read_speech(
    recipe: CtcRecipe, train: list[AudioSource], evaluation: dict[str, list[AudioSource]], progress: bool
) -> _Speech:
    data = recipe.data
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


def _processor(recipe: CtcRecipe, speech: _Speech) -> Wav2Vec2Processor:
    if recipe.data.vocabulary is not None:
        return load_processor(recipe.data.vocabulary)
    if speech.train is None:
        raise ValueError(
            f"the training speech exceeds data.memory_gb ({recipe.data.memory_gb:g}) and is streamed, so its "
            "characters are not known beforehand: give data.vocabulary, a folder with a tokenizer"
        )
    return build_processor(characters(example.text for example in speech.train))


def _model(recipe: CtcRecipe, processor: Wav2Vec2Processor) -> PreTrainedModel:
    """The model to train, with what is frozen for good frozen, or with adapters."""
    model = build_ctc_model(
        recipe.model,
        config_changes=_config_changes(recipe, processor),
        keep_head=recipe.data.vocabulary is not None and recipe.data.vocabulary == recipe.model.path,
    )
    if recipe.lora is not None:
        return add_lora(model, recipe.lora)
    freeze(model, recipe.freezing)
    return model


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
    recipe: CtcRecipe,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    processor: Wav2Vec2Processor,
    speech: _Speech,
) -> CtcTrainer:
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
        head_lr=recipe.training.head_lr,
    )
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(recipe: CtcRecipe, quiet: bool) -> TrainingArguments:
    training, optimizer, checkpoint = recipe.training, recipe.optimizer, recipe.checkpoint
    steered = training.early_stopping_patience is not None
    # The oldest checkpoint is deleted just before the newest is complete, so there have to be two.
    saving = {"save_strategy": "best" if steered else "no", "save_total_limit": 2}
    if checkpoint is not None:
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
        use_cpu=not torch.accelerator.is_available(),
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


def _continue(trainer: CtcTrainer) -> str | None:
    """The checkpoint to go on from, with the batches set to where they stood; `None` if none was completed."""
    checkpoint = last_complete_checkpoint(Path(trainer.args.output_dir))
    if checkpoint is None:
        logger.warning("%s holds no complete checkpoint; starting at the beginning", trainer.args.output_dir)
        return None
    trainer.batches.state = load_data_state(checkpoint, trainer.args.process_index, trainer.args.world_size)
    return str(checkpoint)


def _score(
    trainer: CtcTrainer, settings: DecodingSection, evaluation: dict[str, list[SpeechExample]]
) -> dict[str, dict[str, float]]:
    scores = {}
    for name, examples in evaluation.items():
        prefix = f"eval_{name}"
        metrics = trainer.evaluate(examples, metric_key_prefix=prefix)
        scores[name] = {key: metrics[f"{prefix}_{key}"] for key in ("cer", "wer", "loss")}
        scores[name]["examples"] = len(examples)
        if settings.kind == "beam":
            search = BeamSearch(
                trainer.processor,
                beam_width=settings.beam_width,
                language_model=settings.language_model,
                weight=settings.language_model_weight,
                word_bonus=settings.word_bonus,
            )
            texts = transcribe(trainer.model, trainer.processor, examples, decode=search)
            scores[name] |= error_rates(texts, [example.text for example in examples])
    return scores


def _minutes(examples: list[SpeechExample]) -> float:
    return sum(len(example.waveform) for example in examples) / SAMPLING_RATE / 60

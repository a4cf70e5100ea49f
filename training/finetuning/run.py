"""Fine-tuning: from a recipe to a model folder with its scores."""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput

from lighthubert_hf.absent import absent
from lighthubert_hf.extras import require, require_trackers
from lighthubert_hf.hub.publishing import push_folder
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.audio.example_batches import MemoryBatches, StreamedBatches
from lighthubert_hf.training.audio.examples import MemoryOverflow, SpeechExample, read_examples
from lighthubert_hf.training.audio.sources import AudioSource, random_generator
from lighthubert_hf.training.audio.streaming import DROPPED
from lighthubert_hf.training.recipes.sections import SourceSection
from lighthubert_hf.training.runs.checkpoints import checkpoint_folder, checkpoint_step
from lighthubert_hf.training.runs.hub_upload import make_repository
from lighthubert_hf.training.runs.run_folder import (
    CHECKPOINTS,
    CORPUS,
    LOGS,
    MODEL,
    claim_folder,
    holding_output_dir,
)
from lighthubert_hf.training.runs.start import say, start_line, stopped_line, warn_if_alone
from lighthubert_hf.training.runs.stopping import StopRequest
from lighthubert_hf.weights import check_finite

from .classification import ClassificationFineTuning
from .ctc import CtcFineTuning
from .diarization import DiarizationFineTuning
from .model import Thawing, add_lora, build_model, freeze
from .progress import ProgressLine
from .recipe import CtcRecipe, FineTuningRecipe
from .results import facts_of_encoder, read_results, save_results
from .skipping import NonFiniteSteps
from .task import FineTuningTask
from .trainer import Patience, SpeechTrainer, Stopping, has_ended, load_data_states
from .verification import VerificationFineTuning

logger = logging.getLogger(__name__)

TRAIN = "train"  # what reports call the training speech
ONE_FRAME = 400 / SAMPLING_RATE  # held-out speech is scored whole, down to what a model can hear

# The set that `data.held_out_share` makes.
HELD_OUT = "held_out"

TASKS: dict[str, type[FineTuningTask]] = {
    "ctc": CtcFineTuning,
    "classification": ClassificationFineTuning,
    "verification": VerificationFineTuning,
    "diarization": DiarizationFineTuning,
}


@holding_output_dir
def finetune(recipe: FineTuningRecipe, *, overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Fine-tune a model for the recipe's task and score it, from its latest checkpoint if there is one.

    What lies where in `recipe.output_dir`, and what calling again means, stands in `runs/run_folder.py`. On Ctrl-C and
    SIGTERM the run saves a checkpoint after the present step; then it ends by a `KeyboardInterrupt`, or by the signal.

    Args:
        recipe: What to train on what.
        overwrite: Start over, where `recipe.output_dir` holds a run.
        quiet: Neither progress bars nor logs.

    Returns:
        `{"model": folder, "task": str, "parameters": int, "steps": int, "seconds": float, "training_minutes": float,
        "dropped": int, "dropped_because": str, "left_out": {set: {reason: int}}, "skipped_steps": int,
        "evaluation": {set: {score: share, "loss", "examples"}}}`; the scores are `cer` and
        `wer`, `accuracy`, `eer` (without a loss: the speakers are new), or `der`. `dropped` counts training utterances
        that are not learnt from, `left_out` rows of each set that were not used at all (broken, unlabelled, too short,
        too long; of a set that is streamed as often as they were met), `skipped_steps` steps whose gradients were not
        finite. A recogniser's `vocabulary` says its size, how often each unit stands in the transcripts, and the share
        and kinds of characters it does not know. All this is also in `metrics.json`, from where a finished run has it.

    Raises:
        ValueError: if the recipe does not fit the data, the model, or the run that `output_dir` holds; if too many
            steps in a row, the weights in the end, or their scores are not finite.
    """
    _check_packages(recipe)
    task = TASKS[recipe.task](recipe)
    with _progress_bars(not quiet):
        arguments = _arguments(task, quiet)
        warn_if_alone(arguments.world_size)
        checkpoint = claim_folder(recipe, overwrite=overwrite)
        model_folder = Path(recipe.output_dir) / MODEL
        if model_folder.exists():
            if arguments.process_index == 0:
                say(f"{model_folder} is finished; there is nothing to do", not quiet)
            return read_results(model_folder.parent) | {"model": str(model_folder)}
        task.check_names()
        facts = facts_of_encoder(recipe.model)  # before the work: a card may be damaged
        if recipe.hub is not None and arguments.process_index == 0:
            make_repository(recipe.hub)
        with arguments.main_process_first(local=False):
            sources = _sources(task)
        set_seed(recipe.seed)
        speech = _read_speech(task, *sources, progress=not quiet)
        task.prepare(speech.train, speech.sources)
        for name, examples in speech.evaluation.items():
            task.check_held_out(name, examples)
        if (said := task.report()) and arguments.process_index == 0:
            say(said, not quiet)
        model = _model(task)
        trainer = _trainer(task, arguments, model, speech, quiet)
        result = _train(trainer, recipe, checkpoint, shown=not quiet)
        if recipe.lora is not None:
            trainer.model = model = model.merge_and_unload()
        check_finite(model.state_dict(), "the fine-tuned model")
        refused, left_out = _not_trained_on(trainer.batches, speech)
        metrics = {
            "model": str(model_folder),
            "task": recipe.task,
            "parameters": model.num_parameters(),
            "steps": trainer.state.global_step,
            "seconds": round(result.metrics["train_runtime"], 2),
            "training_minutes": None if speech.train is None else round(_minutes(speech.train), 2),
            "dropped": refused + sum(left_out.get(TRAIN, {}).values()),
            "dropped_because": ", or ".join(
                [task.refused, *(why.replace("_", " ") for why in left_out.get(TRAIN, {}))]
            ),
            "left_out": left_out,
            **task.facts,
            "skipped_steps": trainer.non_finite_steps.skipped,
            "evaluation": {
                name: {**task.final_scores(trainer, name, examples), "examples": len(examples)}
                for name, examples in speech.evaluation.items()
            },
        }
        _check_scores(metrics["evaluation"])
        if arguments.process_index == 0:
            save_results(task, model, metrics, facts)
            if recipe.hub is not None:
                push_folder(metrics["model"], recipe.hub.repo_id, private=recipe.hub.private)
            if not any(Path(arguments.output_dir).iterdir()):
                Path(arguments.output_dir).rmdir()
        trainer.accelerator.wait_for_everyone()  # or a process that ends has the launcher kill the one that saves
    return metrics


def _check_packages(recipe: FineTuningRecipe) -> None:
    """Before anything is read, see that what only this recipe needs is there."""
    require_trackers(recipe.logging.trackers)
    if recipe.data.synthetic is not None:
        require("demo", what="synthetic speech")
    if recipe.lora is not None:
        require("peft", what="lora")
    if isinstance(recipe, CtcRecipe) and (file := recipe.decoding.language_model) is not None:
        require("lm", what="a language model")
        if not Path(file).is_file():
            raise absent("language model", file)


def _check_scores(evaluation: dict[str, dict[str, float]]) -> None:
    for name, scores in evaluation.items():
        if wrong := [key for key, value in scores.items() if not math.isfinite(value)]:
            raise ValueError(
                f"the fine-tuned model does not work: its {', '.join(wrong)} on {name} is not finite; lower "
                "optimizer.lr"
            )


def _train(trainer: SpeechTrainer, recipe: FineTuningRecipe, checkpoint: Path | None, shown: bool) -> TrainOutput:
    """Train to the end, from a checkpoint if there is one, or end as Ctrl-C or SIGTERM ask for."""
    arguments, steps = trainer.args, recipe.training.steps
    start = 0
    if checkpoint is not None:
        start = checkpoint_step(checkpoint)
        trainer.batches.load_states(load_data_states(checkpoint))
    if arguments.process_index == 0:
        say(start_line(recipe.name, arguments.world_size, arguments.device, start, steps), shown)
    with StopRequest() as request:
        stopping = Stopping(request)
        trainer.add_callback(stopping)
        if checkpoint is not None and has_ended(checkpoint, steps, recipe.training.early_stopping_patience):
            result = trainer.go_on_from_the_end(checkpoint)
        else:
            result = trainer.train(None if checkpoint is None else str(checkpoint))
    trainer.remove_callback(Patience)  # what is scored from here on steers nothing
    if stopping.stopped:
        trainer.accelerator.wait_for_everyone()
        step = trainer.state.global_step
        request.follow(stopped_line(step, steps, checkpoint_folder(Path(arguments.output_dir), step)))
    return result


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
    """What a run reads: training examples (`None`: they are streamed), their sources, held-out sets, and of each how
    many rows were left out and why."""

    train: list[SpeechExample] | None
    sources: list[AudioSource]
    evaluation: dict[str, list[SpeechExample]]
    left_out: dict[str, dict[str, int]]


def _sources(task: FineTuningTask) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
    """Where training and held-out speech come from; synthetic speech is made here."""
    data = task.recipe.data
    if data.synthetic is not None:
        return task.synthesise(Path(task.recipe.output_dir) / CORPUS)
    evaluation = {name: _audio_sources(task, part) for name, part in data.evaluation.items()}
    return _audio_sources(task, data.sources), evaluation


def _audio_sources(task: FineTuningTask, sections: list[SourceSection]) -> list[AudioSource]:
    labels = {"text_column": None, "all_columns": True} if task.label_columns else {}
    return [AudioSource(**section.model_dump() | labels) for section in sections]


def _read_speech(
    task: FineTuningTask, train: list[AudioSource], evaluation: dict[str, list[AudioSource]], progress: bool
) -> _Speech:
    recipe = task.recipe
    data = recipe.data
    counts: dict[str, dict[str, int]] = {name: {} for name in (TRAIN, *evaluation)}
    try:
        examples = read_examples(
            train,
            counts=counts[TRAIN],
            label_columns=task.label_columns,
            minutes=data.labelled_minutes,
            max_seconds=data.max_seconds,
            shuffle_seed=recipe.seed,
            max_gigabytes=data.memory_gb,
            max_broken_share=data.max_broken_share,
            description="reading training speech",
            progress=progress,
        )
    except MemoryOverflow as error:
        if data.labelled_minutes is not None:
            raise ValueError(f"{error}: lower data.labelled_minutes or raise data.memory_gb") from None
        logger.info("%s; it is streamed", error)
        examples, counts[TRAIN] = None, {}
    if data.held_out_share is not None:
        if examples is None:
            raise ValueError(
                f"the training speech exceeds data.memory_gb ({data.memory_gb:g}) and is streamed, so no part of it "
                "can be held out: name held-out sets under data.evaluation, or raise data.memory_gb"
            )
        examples, part = _held_out(examples, data.held_out_share, recipe.seed)
        return _Speech(examples, train, {HELD_OUT: part}, _left_out(counts))
    held_out = {
        name: read_examples(
            part,
            counts=counts[name],
            min_seconds=ONE_FRAME,
            label_columns=task.label_columns,
            max_examples=data.max_eval_examples,
            max_gigabytes=data.memory_gb,
            max_broken_share=data.max_broken_share,
            description=f"reading {name}",
            progress=progress,
        )
        for name, part in evaluation.items()
    }
    return _Speech(examples, train, held_out, _left_out(counts))


def _left_out(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The reasons that occurred, of the sets where something was left out."""
    reasons = {name: {why: part[why] for why in DROPPED if part.get(why)} for name, part in counts.items()}
    return {name: part for name, part in reasons.items() if part}


def _not_trained_on(
    batches: MemoryBatches | StreamedBatches, speech: _Speech
) -> tuple[int, dict[str, dict[str, int]]]:
    """Utterances that cannot be learnt, and what was left out of each set; of a stream, of all processes together."""
    if isinstance(batches, MemoryBatches):
        return batches.num_refused, speech.left_out
    everywhere = gather_object([(batches.num_refused, dict(batches.counts))])
    counts = Counter()
    for _, own in everywhere:
        counts.update(own)
    return sum(refused for refused, _ in everywhere), _left_out({TRAIN: counts}) | speech.left_out


def _held_out(
    examples: list[SpeechExample], share: float, seed: int
) -> tuple[list[SpeechExample], list[SpeechExample]]:
    """The rest of the examples, and a random part of them, at least one of each."""
    if len(examples) < 2:
        raise ValueError("data.held_out_share cannot divide a single utterance; add recordings")
    order = random_generator("held out", seed).permutation(len(examples))
    chosen = set(order[: min(max(1, round(share * len(examples))), len(examples) - 1)].tolist())
    parts = ([], [])
    for index, example in enumerate(examples):
        parts[index in chosen].append(example)
    return parts


def _model(task: FineTuningTask) -> PreTrainedModel:
    """The model to train, with what is frozen for good frozen, or with adapters."""
    recipe, masks = task.recipe, task.recipe.spec_augment
    changes = task.config_changes() | {"apply_spec_augment": masks is not None}
    if masks is not None:
        changes |= masks.model_dump()
    model = build_model(recipe.model, task.auto_class, config_changes=changes, keep_head=task.keeps_head)
    if recipe.lora is not None:
        return add_lora(model, recipe.lora)
    freeze(model, recipe.freezing)
    return model


def _batches(task: FineTuningTask, collate, speech: _Speech, rank: int, world_size: int):
    data = task.recipe.data
    shared = {"batch_seconds": data.batch_seconds, "seed": task.recipe.seed, "rank": rank, "world_size": world_size}
    if speech.train is not None:
        return MemoryBatches(speech.train, collate, collate.is_possible, **shared)
    sources, label_column = speech.sources, None
    if task.label_columns:
        if len(task.label_columns) > 1:
            raise ValueError(
                f"the training speech exceeds data.memory_gb ({data.memory_gb:g}), and a stream carries one column of "
                f"labels, not the {len(task.label_columns)} of data.label_columns; raise data.memory_gb"
            )
        (label_column,) = task.label_columns
        sources = [replace(source, text_column=label_column, all_columns=False) for source in sources]
    return StreamedBatches(
        sources,
        collate,
        collate.is_possible,
        max_seconds=data.max_seconds,
        max_broken_share=data.max_broken_share,
        label_column=label_column,
        **shared,
    )


def _trainer(
    task: FineTuningTask, arguments: TrainingArguments, model: PreTrainedModel, speech: _Speech, quiet: bool
) -> SpeechTrainer:
    recipe, collate = task.recipe, task.collator(model)
    trainer = task.trainer_class(
        model=model,
        args=arguments,
        eval_dataset=next(iter(speech.evaluation.values()), None),
        callbacks=_callbacks(recipe),
        batches=_batches(task, collate, speech, arguments.process_index, arguments.world_size),
        collate=collate,
        processor=task.processor(),
        schedule=recipe.schedule,
        eval_batch_seconds=recipe.data.eval_batch_seconds,
        head_lr=recipe.training.head_lr,
        keep_checkpoints=2 if recipe.checkpoint is None else recipe.checkpoint.keep,
        **task.trainer_options,
    )
    trainer.remove_callback(PrinterCallback)  # it prints dicts to standard output
    if not quiet:
        trainer.add_callback(ProgressLine(recipe.name))
    return trainer


def _arguments(task: FineTuningTask, quiet: bool) -> TrainingArguments:
    recipe = task.recipe
    training, optimizer, checkpoint = recipe.training, recipe.optimizer, recipe.checkpoint
    steered = training.early_stopping_patience is not None
    saving = {"save_strategy": "best" if steered else "no"}
    if checkpoint is not None:
        saving = {"save_strategy": "steps", "save_steps": checkpoint.every}
    logged = not quiet or recipe.logging.trackers
    return TrainingArguments(
        output_dir=str(Path(recipe.output_dir) / CHECKPOINTS),
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
        metric_for_best_model=next(iter(task.scores)) if steered else None,
        greater_is_better=task.greater_is_better if steered else None,
        logging_strategy="steps" if logged else "no",
        logging_steps=recipe.logging.every,
        report_to=[tracker for tracker in recipe.logging.trackers if tracker != "tensorboard"],
        run_name=recipe.name,
        disable_tqdm=True,  # there is a line of our own
        label_names=["labels"],
        # The batches resume from their own state.
        ignore_data_skip=True,
        ddp_find_unused_parameters=recipe.freezing.thaws or recipe.model.layerdrop > 0,
        **saving,
    )


def _callbacks(recipe: FineTuningRecipe) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [NonFiniteSteps(recipe.training.max_skipped_in_a_row)]
    if recipe.freezing.thaws:
        callbacks.append(Thawing(recipe.freezing))
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(Patience(recipe.training.early_stopping_patience))
    if "tensorboard" in recipe.logging.trackers:
        tensorboard = TensorBoardCallback()
        tensorboard.logging_dir = str(Path(recipe.output_dir) / LOGS)
        callbacks.append(tensorboard)
    return callbacks


def _minutes(examples: list[SpeechExample]) -> float:
    return sum(len(example.waveform) for example in examples) / SAMPLING_RATE / 60

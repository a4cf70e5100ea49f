"""The distillation loop: a recipe in, a model folder out; resumable, on any number of processes."""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import ProjectConfiguration, gather_object

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.extras import require, require_trackers
from lighthubert_hf.hub.card import CardFacts, teacher_license
from lighthubert_hf.hub.folder import load_facts
from lighthubert_hf.loading import load
from lighthubert_hf.training.audio.batching import AudioLoader, Batch, training_loader, validation_loader
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.runs.checkpoints import checkpoint_folder, rotate
from lighthubert_hf.training.runs.hub_upload import HubUploader
from lighthubert_hf.training.runs.memory import trim_every_so_often
from lighthubert_hf.training.runs.run_folder import CHECKPOINTS, CORPUS, LOGS, MODEL, claim_folder, holding_output_dir
from lighthubert_hf.training.runs.schedule import make_scheduler
from lighthubert_hf.training.runs.start import say, start_line, stopped_line, warn_if_alone
from lighthubert_hf.training.runs.stopping import StopRequest

from .averaging import WeightAverage
from .checkpoint import TrainingState, load_training_state, save_checkpoint, save_model
from .gradients import broadcast_parameters
from .head import fit_head
from .objectives import make_objective
from .optimizer import flatten_optimizer, make_optimizer, restore_optimizer
from .progress import TrainingLog
from .recipe import DistillationRecipe
from .sampler import StepSubnets
from .start import first_batches, new_student
from .step import DistillationModel, StepResult, TrainingStep
from .teacher import DTYPES, Teacher, load_teacher
from .validation import evaluate, validation_subnets

logger = logging.getLogger(__name__)


@holding_output_dir
def distill(recipe: DistillationRecipe, *, overwrite: bool = False, show_progress: bool = True) -> Path:
    """Run one stage of distillation to its end, from its latest checkpoint if there is one.

    Called by every process of `accelerate launch`. Weights, losses and logs of a run that was killed and called again
    are those of an uninterrupted one, given the same number of processes. What lies where in `recipe.output_dir`, and
    what calling again means, stands in `runs/run_folder.py`.

    On Ctrl-C and SIGTERM the run saves a checkpoint after the present step; then it ends by a `KeyboardInterrupt`, or
    by the signal.

    Args:
        recipe: What to train on what.
        overwrite: Start over, where `recipe.output_dir` holds a run.
        show_progress: The line that a run begins with, and a progress bar.

    Returns:
        `recipe.output_dir/model`: a folder that `LightHubertForPreTraining.from_pretrained` and
        `LightHubertModel.from_pretrained` read.

    Raises:
        FileNotFoundError: Teacher, student or data do not exist.
        ValueError: The recipe does not fit what it names, or the run that `output_dir` holds; or too many steps in a
            row were not finite.
    """
    require_trackers(recipe.logging.trackers)
    if recipe.data.synthetic_minutes is not None:
        require("demo", what="synthetic speech")
    accelerator = _accelerator(recipe)
    warn_if_alone(accelerator.num_processes)
    model = Path(recipe.output_dir) / MODEL
    checkpoint = claim_folder(recipe, overwrite=overwrite)
    if model.exists():
        if accelerator.is_main_process:
            say(f"{model} is finished; there is nothing to do", show_progress)
        return model
    run = _Run(recipe, accelerator, checkpoint, show_progress)
    with StopRequest() as stop, contextlib.closing(run.log):
        stopped = run.train(stop)
    if stopped:
        accelerator.wait_for_everyone()  # nobody dies, and has the launcher kill the others, before the save is done
        stop.follow(run.where_it_stopped())
    return run.finish(model)


class _Run:
    """One life of a run: from the start or a checkpoint to the end or a wish to stop."""

    def __init__(
        self, recipe: DistillationRecipe, accelerator: Accelerator, checkpoint: Path | None, show_progress: bool
    ):
        self.recipe, self.accelerator = recipe, accelerator
        self.checkpoints = Path(recipe.output_dir) / CHECKPOINTS
        self.state = load_training_state(checkpoint) if checkpoint else None
        sources = _sources(recipe, accelerator)
        self._build(checkpoint, sources[0], show_progress)
        self.license = self._license(checkpoint) if accelerator.is_main_process else None
        start = self.state.step if self.state else 0
        self._build_data(*sources)
        self.scheduler = make_scheduler(self.optimizer, recipe.training.steps, recipe.schedule, start)
        self.state = self.state or TrainingState(step=0, num_processes=accelerator.num_processes, data=[])
        self.state.num_processes = accelerator.num_processes
        self.uploader = HubUploader(recipe.hub) if recipe.hub and accelerator.is_main_process else None
        if accelerator.is_main_process:
            processes, steps = accelerator.num_processes, recipe.training.steps
            say(start_line(recipe.name, processes, accelerator.device, start, steps), show_progress)
        self.log = TrainingLog(recipe, accelerator, start, self.state.pending_losses, show_progress)

    def _license(self, resumed: Path | None) -> str | None:
        """Of the teacher's weights; asked when a run begins, so that a Hub out of reach later changes no card."""
        if resumed:
            return load_facts(resumed / "pretrained_model").license
        path = self.recipe.teacher.path
        found = teacher_license(path) if path else None
        if path and found is None:
            logger.warning("found no licence in the card of the teacher %s; the student's card will name none", path)
        return found

    def _build(self, resumed: Path | None, audio: list[AudioSource], show_progress: bool) -> None:
        recipe, device = self.recipe, self.accelerator.device
        # In full precision as long as the student copies it.
        encoder = load_teacher(recipe.teacher.model_copy(update={"dtype": "float32"}), recipe.seed)
        order = self.state.objective.get("order") if self.state else None
        if resumed:
            student = load(LightHubertForPreTraining, resumed / "pretrained_model", dtype=torch.float32).model
            if recipe.student.freeze_front_end:
                student.freeze_feature_encoder()
        else:
            student, order = new_student(recipe, encoder, audio, self.accelerator, show_progress)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            objective = make_objective(
                recipe.objective, encoder.config, student.config, recipe.deep_targets, recipe.training.steps
            )
        if order is not None:
            objective.follow(order)
        if self.state:
            objective.load_state_dict(self.state.objective, strict=True)
        if recipe.training.gradient_checkpointing:
            student.activation_checkpointing_enable()
        teacher = Teacher(encoder.to(DTYPES[recipe.teacher.dtype]), objective.request).to(device)
        self.model = DistillationModel(teacher, student.to(device).train(), objective.to(device), self.accelerator)
        optimizer, self.parameter_names = make_optimizer(self.model, recipe)
        if self.state:
            restore_optimizer(optimizer, self.parameter_names, self.state.optimizer)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.step = TrainingStep(self.model, self.optimizer, recipe)
        broadcast_parameters(self.step.parameters)
        self.average = WeightAverage(recipe.averaging, recipe.training.steps) if recipe.averaging else None
        if self.average and self.state:
            self.average.restore(self.state.average, self.model)
        if self.state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)

    def _build_data(self, training: list[AudioSource], validation: list[AudioSource]) -> None:
        recipe = self.recipe
        equal_lengths = recipe.data.equal_lengths
        if equal_lengths is None:
            equal_lengths = not self.model.teacher.padding_invariant
        shared = {
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
            "equal_lengths": equal_lengths,
            "num_workers": recipe.data.num_workers,
        }
        options = recipe.data.model_dump(exclude={"sources", "synthetic_minutes", *shared})
        self.loader: AudioLoader = training_loader(training, seed=recipe.seed, **shared, **options)
        if not self.state and recipe.student.fit_head_on:
            if self.accelerator.is_main_process:
                enough = recipe.student.fit_head_on
                heard = first_batches(recipe, training, self.accelerator, enough, equal_lengths)
                fit_head(self.model, heard, seed=recipe.seed)
            broadcast_parameters(self.step.parameters)
        if self.state:
            self.loader.load_states(self.state.data)
        self.validation = None
        if recipe.validation:
            options = recipe.validation.model_dump(include={"batch_seconds", "crop_seconds"})
            if recipe.validation.max_examples is not None:  # of all processes together
                options["max_examples"] = -(-recipe.validation.max_examples // shared["world_size"])
            self.validation = validation_loader(validation, **shared, **options)

    def train(self, stop: StopRequest) -> bool:
        """Run the steps that are left; whether a wish to stop cut them short (a checkpoint is written then)."""
        recipe, state = self.recipe, self.state
        space = self.model.student.search_space
        sampler = StepSubnets(space, recipe.sampler, recipe.seed) if space else None
        batches = iter(self.loader)
        data_state = self.loader.start or {}
        while state.step < recipe.training.steps:
            micro_batches, data_state = _take(batches, recipe.training.accumulation, data_state)
            subnets = sampler.subnets(state.step) if sampler else (None,)
            result = self.step.run(state.step, micro_batches, subnets, lambda: bool(stop))
            if not result.num_with_data:
                logger.warning("the data ended after %d of %d steps", state.step, recipe.training.steps)
                break
            self._count(result)
            self._after_step(data_state, stopping=bool(result.num_stopping))
            if result.num_stopping and state.step < recipe.training.steps:
                return True
        return False

    def _count(self, result: StepResult) -> None:
        state, lr = self.state, self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        state.step += 1
        if self.average:
            self.average.after_step(state.step, self.model)
        state.audio_seconds += result.audio_seconds
        state.skipped_steps += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        self.log.step(state.step, result, lr, state.audio_seconds, state.skipped_steps)
        trim_every_so_often(state.step)
        training = self.recipe.training
        if state.skipped_in_a_row >= min(training.max_skipped_in_a_row, training.steps):
            raise ValueError(
                f"{state.skipped_in_a_row} steps in a row were not finite (up to step {state.step}); lower "
                "optimizer.lr, or use training.mixed_precision=bf16 instead of fp16"
            )

    def _after_step(self, data_state: dict[str, Any], stopping: bool) -> None:
        step, last = self.state.step, self.state.step == self.recipe.training.steps
        if self.validation is not None and (last or step % self.recipe.validation.every == 0):
            started = time.perf_counter()
            losses = evaluate(self._final() if last else self.model, self.validation, self._validation_subnets())
            self.log.validation(step, losses, time.perf_counter() - started)
        if stopping or last or step % self.recipe.checkpoint.every == 0:
            self._save(data_state)

    def _final(self) -> DistillationModel:
        """What the run is about to leave behind."""
        return self.average.model(self.model) if self.average else self.model

    def _validation_subnets(self) -> dict[str, Subnet | None]:
        student = self.model.student
        if student.search_space is None:
            return {"static": None}
        return validation_subnets(student.config, self.recipe.validation.num_random, self.recipe.seed)

    def _save(self, data_state: dict[str, Any]) -> None:
        state = self.state
        state.data = [json.loads(text) for text in gather_object([json.dumps(data_state)])]
        if not self.accelerator.is_main_process:
            return
        state.pending_losses = self.log.losses
        state.optimizer = flatten_optimizer(self.optimizer.optimizer, self.parameter_names)
        state.objective = self.model.objective.state_dict()
        state.average = self.average.state() if self.average else {}
        state.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        folder = checkpoint_folder(self.checkpoints, state.step)
        save_checkpoint(folder, self.model.student, state, self._card())
        if self.uploader:
            self.uploader.push(folder, state.step)
        rotate(self.checkpoints, self.recipe.checkpoint.keep, self.uploader.in_use if self.uploader else None)

    def _card(self) -> CardFacts:
        """What the model card can say."""
        recipe, student = self.recipe, self.model.student
        cut = student.search_space is None and recipe.student.subnet is not None
        return CardFacts(
            teacher=recipe.teacher.path,
            license=self.license,
            datasets=tuple(dict.fromkeys(source.path for source in recipe.data.sources)),
            supernet=recipe.student.init if cut else None,
            subnet=student.active_subnet if cut else None,
        )

    def where_it_stopped(self) -> str:
        folder = checkpoint_folder(self.checkpoints, self.state.step)
        return stopped_line(self.state.step, self.recipe.training.steps, folder)

    def finish(self, model: Path) -> Path:
        if self.accelerator.is_main_process:
            save_model(model, self._final().student, self._card())
            if self.uploader:
                self.uploader.finish(model)
        self.accelerator.wait_for_everyone()
        return model


def _accelerator(recipe: DistillationRecipe) -> Accelerator:
    trackers: list[str | TensorBoardTracker] = [
        TensorBoardTracker(LOGS, recipe.output_dir) if tracker == "tensorboard" else tracker
        for tracker in recipe.logging.trackers
    ]
    if recipe.training.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("training.mixed_precision=fp16 needs a GPU, which torch does not see here; use bf16 or 'no'")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or torchrun's processes without a GPU would not find each other
        mixed_precision=recipe.training.mixed_precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=recipe.output_dir),
    )


def _sources(recipe: DistillationRecipe, accelerator: Accelerator) -> tuple[list[AudioSource], list[AudioSource]]:
    """Training and validation sources; synthetic speech is made here if asked for."""
    validation = [AudioSource(**s.model_dump()) for s in recipe.validation.sources] if recipe.validation else []
    if recipe.data.synthetic_minutes is None:
        return [AudioSource(**source.model_dump()) for source in recipe.data.sources], validation
    from lighthubert_hf.training.synthetic.speech import synthesise_corpus

    folder, minutes = Path(recipe.output_dir) / CORPUS, recipe.data.synthetic_minutes
    if accelerator.is_main_process:
        synthesise_corpus(folder, minutes=minutes, held_out_minutes=max(minutes / 10, 0.2), seed=recipe.seed)
    accelerator.wait_for_everyone()
    return [AudioSource(str(folder))], validation or [AudioSource(str(folder), split="validation")]


def _take(batches, number: int, state: dict[str, Any]) -> tuple[list[Batch], dict[str, Any]]:
    """Up to `number` batches and the loader's state after them."""
    taken = []
    for _ in range(number):
        entry = next(batches, None)
        if entry is None:
            break
        batch, state = entry
        taken.append(batch)
    return taken, state

"""transformers' Trainer for labelled speech: batches by seconds, exact resume, scores that padding does not change."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, ProcessorMixin, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, SaveStrategy, TrainOutput

from lighthubert_hf.files import read_object, replacing_folder
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.padding import batches_of_similar_length, seconds_together
from lighthubert_hf.training.recipes.sections import ScheduleSection
from lighthubert_hf.training.runs.checkpoints import (
    check_complete,
    checkpoint_folder,
    checkpoint_step,
    mark_complete,
    num_processes_of,
    rotate,
)
from lighthubert_hf.training.runs.schedule import make_scheduler
from lighthubert_hf.training.runs.stopping import StopRequest

from .model import head_parameters
from .skipping import NonFiniteSteps

ScoredRow = tuple[Any, ...]


class EvaluationBatches:
    """Examples sorted by length in batches of at most `batch_seconds`, those of one rank."""

    def __init__(self, examples: list[SpeechExample], collate: Callable, batch_seconds: float, rank: int, world: int):
        self.examples, self.collate = examples, collate
        lengths = [len(example.waveform) for example in examples]
        self.indices = batches_of_similar_length(lengths, batch_seconds)[rank::world]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[list[SpeechExample], Batch]]:
        for indices in self.indices:
            rows = [self.examples[index] for index in indices]
            yield rows, self.collate(rows)


class SpeechTrainer(Trainer):
    """A kind of fine-tuning says how it predicts and scores, and how it trains where that is not the model's own loss.

    Args:
        batches: Endless training batches with a `state` to resume from.
        collate: Examples to a batch.
        processor: What is saved with the model.
        schedule: Learning rate over the steps.
        eval_batch_seconds: Audio per evaluation batch, padding included.
        head_lr: Learning rate of the head; `None`: that of all.
        keep_checkpoints: Of them, the newest so many are kept, and the best.
        others: As in `transformers.Trainer`; evaluation sets are lists of `SpeechExample`.
    """

    def __init__(
        self,
        *,
        batches: Iterable[Batch],
        collate: Callable,
        processor: ProcessorMixin,
        schedule: ScheduleSection,
        eval_batch_seconds: float,
        head_lr: float | None = None,
        keep_checkpoints: int = 2,
        **others,
    ):
        super().__init__(processing_class=processor, **others)
        self.batches, self.collate, self.processor = batches, collate, processor
        self.schedule, self.eval_batch_seconds, self.head_lr = schedule, eval_batch_seconds, head_lr
        # The loss is the mean over the batch, so accumulation has to divide it, whatever `forward` would swallow.
        self.model_accepts_loss_kwargs = False
        self.keep_checkpoints, self._saving = keep_checkpoints, None
        self.add_callback(_OwnBest())

    @property
    def non_finite_steps(self) -> NonFiniteSteps:
        return next(one for one in self.callback_handler.callbacks if isinstance(one, NonFiniteSteps))

    def go_on_from_the_end(self, checkpoint: Path) -> TrainOutput:
        """What `train` returns and leaves of a run that had nothing more to train when it was interrupted.

        `Trainer.train` would take one more step.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, _OwnBest | NonFiniteSteps):  # what they kept; others would begin to report
                callback.on_train_begin(self.args, self.state, self.control)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))
        return TrainOutput(self.state.global_step, 0.0, {"train_runtime": 0.0})

    def _load_best_model(self) -> None:
        if self.args.process_index == 0:
            check_complete(Path(self.state.best_model_checkpoint))
        super()._load_best_model()

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._saving is None else self._saving

    def _save_checkpoint(self, model, trial) -> None:
        """transformers' own checkpoint, and where the data stand, as `step-N`, complete or not at all."""
        step, rank = self.state.global_step, self.args.process_index
        folder = checkpoint_folder(Path(self.args.output_dir), step)
        with contextlib.ExitStack() as stack:
            place = [str(stack.enter_context(replacing_folder(folder))) if rank == 0 else None]
            broadcast_object_list(place)
            self._saving = place[0]
            written = Path(self._saving) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            super()._save_checkpoint(model, trial)
            _data_state_file(written, rank).write_text(json.dumps(self.batches.state), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            self._saving = None
            if self.state.best_global_step:
                best = checkpoint_folder(Path(self.args.output_dir), self.state.best_global_step)
                self.state.best_model_checkpoint = str(best)
            if rank == 0:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                for entry in list(written.iterdir()):
                    entry.rename(written.parent / entry.name)
                written.rmdir()
                mark_complete(written.parent, self.args.world_size)
        if rank == 0:
            best = self.state.best_model_checkpoint
            rotate(folder.parent, self.keep_checkpoints, in_use=Path(best) if best else None)
        self.accelerator.wait_for_everyone()

    def get_train_dataloader(self) -> Iterable[Batch]:
        return self.batches

    def create_optimizer(self, model=None):
        """The Trainer's own, with the head in groups of its own if it has a rate of its own."""
        if self.optimizer is None and self.head_lr is not None:
            super().create_optimizer(model)
            head = head_parameters(self.model)
            for group in list(self.optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in head]
                group["params"] = [p for p in group["params"] if id(p) not in head]
                self.optimizer.add_param_group({**group, "params": own, "lr": self.head_lr})
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = make_scheduler(optimizer or self.optimizer, num_training_steps, self.schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_eval_dataloader(self, eval_dataset: list[SpeechExample] | None = None) -> EvaluationBatches:
        return EvaluationBatches(
            self.eval_dataset if eval_dataset is None else eval_dataset,
            self.collate,
            seconds_together(self.model, self.eval_batch_seconds),
            self.args.process_index,
            self.args.world_size,
        )

    def evaluation_loop(
        self,
        dataloader: EvaluationBatches,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The scores of one held-out set. Rows of what little scoring needs are gathered from all processes."""
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        rows = []
        for examples, batch in dataloader:
            with torch.no_grad(), self.compute_loss_context_manager():
                rows += self.predict_rows(examples, self._prepare_inputs(batch))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.world_size > 1:
            from accelerate.utils import gather_object

            rows = gather_object(rows)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.score(rows).items()}
        return EvalLoopOutput(None, None, metrics, len(rows))

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[ScoredRow]:
        """A row for every example; depends on neither batch size nor padding."""
        raise NotImplementedError

    def score(self, rows: list[ScoredRow]) -> dict[str, float]:
        """The scores of all rows, in any order."""
        raise NotImplementedError


def _data_state_file(folder: Path, rank: int) -> Path:
    return folder / f"data_state-{rank}.json"


def load_data_states(checkpoint: Path) -> list[dict]:
    """Where the data of every process stood."""
    files = [_data_state_file(checkpoint, rank) for rank in range(num_processes_of(checkpoint))]
    return [read_object(file, "start over with --overwrite") for file in files]


class Stopping(TrainerCallback):
    """Follows a wish to stop, of whichever process: saves a checkpoint after the present step, and ends the training.

    Where a checkpoint is saved for a better score only, a step that is scored decides that; then the next one ends.
    """

    def __init__(self, request: StopRequest):
        self.request, self.stopped = request, False

    def on_step_end(self, args, state, control, **kwargs):
        wanted = torch.tensor(float(bool(self.request)), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(wanted)
        scored_now = control.should_evaluate and args.save_strategy == SaveStrategy.BEST
        if wanted and not scored_now and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True


class Patience(EarlyStoppingCallback):
    """Early stopping that goes on counting where a run is resumed."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = _scores_without_a_better_one(state)


def _scores_without_a_better_one(state: TrainerState) -> int:
    kept = state.stateful_callbacks.get(Patience.__name__)
    return kept["attributes"]["early_stopping_patience_counter"] if isinstance(kept, dict) else 0


def has_ended(checkpoint: Path, steps: int, patience: int | None) -> bool:
    """Whether nothing was left to train when a checkpoint was saved."""
    if checkpoint_step(checkpoint) >= steps:
        return True
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return patience is not None and _scores_without_a_better_one(state) >= patience


class _OwnBest(TrainerCallback):
    """The best checkpoint is the one of that step in this run's folder, also if the folder was moved or copied."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.best_global_step:
            best = checkpoint_folder(Path(args.output_dir), state.best_global_step)
            state.best_model_checkpoint = str(best) if best.is_dir() else None

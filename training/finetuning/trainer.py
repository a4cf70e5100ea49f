"""transformers' Trainer for labelled speech: batches by seconds, exact resume, scores that padding does not change."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from lighthubert_hf.files import write_json
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.padding import batches_of_similar_length, seconds_together
from lighthubert_hf.training.recipes.sections import ScheduleSection
from lighthubert_hf.training.runs.schedule import make_scheduler

from .model import head_parameters

DATA_STATE = "data_state.json"
Row = tuple[Any, ...]


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
        **others,
    ):
        super().__init__(processing_class=processor, **others)
        self.batches, self.collate, self.processor = batches, collate, processor
        self.schedule, self.eval_batch_seconds, self.head_lr = schedule, eval_batch_seconds, head_lr
        # The loss is the mean over the batch, so accumulation has to divide it, whatever `forward` would swallow.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_DataState(batches))

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

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[Row]:
        """A row for every example; depends on neither batch size nor padding."""
        raise NotImplementedError

    def score(self, rows: list[Row]) -> dict[str, float]:
        """The scores of all rows, in any order."""
        raise NotImplementedError


class _DataState(TrainerCallback):
    """Stores where the data of every rank stand in every checkpoint. Rank 0 writes last: that completes it."""

    def __init__(self, batches):
        self.batches = batches

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        state = {"world_size": args.world_size, "batches": self.batches.state}
        if args.process_index > 0:
            write_json(folder / _data_state_name(args.process_index), state, indent=None)
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.process_index == 0:
            write_json(folder / DATA_STATE, state, indent=None)


def _data_state_name(rank: int) -> str:
    return DATA_STATE if rank == 0 else DATA_STATE.replace(".", f"-{rank}.")


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a run killed while saving leaves one that was not."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{DATA_STATE}")]
    return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def load_data_state(checkpoint: Path, rank: int, world_size: int) -> dict:
    """Where the data of a rank stood.

    Raises:
        ValueError: if the checkpoint was written by another number of processes.
    """
    was = json.loads((checkpoint / DATA_STATE).read_text())["world_size"]
    if was != world_size:
        raise ValueError(f"{checkpoint} was written by {was} processes, this run has {world_size}; use as many")
    return json.loads((checkpoint / _data_state_name(rank)).read_text())["batches"]

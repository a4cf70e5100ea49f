"""What the tasks that train a head have in common."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lighthubert_hf.training.audio.streaming import is_empty

from .settings import HeadSizes, TaskData
from .splits import Utterance, in_chunks

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Metric:
    """A number a task is judged by, a fraction; published tables have it in percent (the MTWV, too)."""

    name: str
    title: str
    higher_is_better: bool


@dataclass(frozen=True)
class FeatureBatch:
    """`features` `(rows, frames, states, width)` float32, `lengths` `(rows,)`, and the utterances they are of."""

    features: torch.Tensor
    lengths: torch.Tensor
    utterances: list[Utterance]


def make_batch(utterances: list[Utterance], device: torch.device) -> FeatureBatch:
    """Pad with zeros; the features' own lengths count, which reduction may have changed."""
    lengths = [len(utterance.features) for utterance in utterances]
    shape = (len(utterances), max(lengths), *utterances[0].features.shape[1:])
    features = np.zeros(shape, utterances[0].features.dtype)
    for row, utterance in zip(features, utterances, strict=True):
        row[: len(utterance.features)] = utterance.features
    return FeatureBatch(
        torch.from_numpy(features).to(device).float(), torch.tensor(lengths, device=device), utterances
    )


class Task(ABC):
    """A task with a head that is trained.

    Args:
        data: Where its data are and what their columns are called.
        rows: Those of the training split, of which vocabularies and classes are made.
        sizes: Of the heads.
        frame: Samples from one frame of the features to the next, and samples a frame sees.

    Class attributes: `name`, `title`, `metrics` (the first one decides which head is kept), and `hub_task`, the Hub's
    name for the task.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub_task: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    # Whether the features' mean over frames is all that the head needs.
    pooled: ClassVar[bool] = False

    def __init__(self, data: TaskData, rows: list[dict[str, Any]], sizes: HeadSizes, frame: tuple[int, int]):
        self.data, self.sizes, self.frame = data, sizes, frame
        self.prepare([row for row in rows if self.is_labelled(row)])

    @abstractmethod
    def prepare(self, rows: list[dict[str, Any]]) -> None:
        """Learn classes or a vocabulary from the training rows."""

    @abstractmethod
    def make_head(self, num_states: int, width: int) -> nn.Module:
        """A new head with random weights."""

    @abstractmethod
    def loss(self, head: nn.Module, batch: FeatureBatch) -> torch.Tensor:
        """What training minimises."""

    @abstractmethod
    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        """The metrics, as fractions."""

    def test(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        """The metrics on the test split."""
        return self.evaluate(head, utterances)

    @property
    def labels_in(self) -> tuple[str, ...]:
        """The columns that say what is to be found, by their role."""
        return ()

    def is_labelled(self, row: dict[str, Any]) -> bool:
        """Whether none of these columns is empty in `row`. That one is missing altogether is for `column` to say."""
        names = [self.data.columns.get(role, role) for role in self.labels_in]
        return not any(name in row and is_empty(row[name]) for name in names)

    def labelled(self, utterances: Iterable[Utterance]) -> Iterator[Utterance]:
        """Those that can be scored; the others are counted in the log."""
        lacking = []
        for utterance in utterances:
            if self.is_labelled(utterance.row):
                yield utterance
            else:
                lacking.append(utterance.id)
        if lacking:
            said = f"{', '.join(lacking[:5])}{', …' if lacking[5:] else ''}"
            logger.warning("%s: %d utterances without a label are not scored: %s", self.name, len(lacking), said)

    def accepts(self, utterance: Utterance) -> bool:
        """Whether an utterance, which has its labels, can be trained on."""
        return True

    def column(self, row: dict[str, Any], role: str) -> Any:
        """What `row` says of `role`. ValueError if it has no such column."""
        name = self.data.columns.get(role, role)
        if row.get(name) is None:
            raise ValueError(
                f"{self.name}: {self.data.path} has no column {name!r}, or a row without it; it has {sorted(row)}. "
                f"Say what it is called: --data {self.name}.columns.{role}=NAME"
            )
        return row[name]


@torch.inference_mode()
def head_outputs(
    head: nn.Module, utterances: Iterable[Utterance], function: str = "forward"
) -> Iterator[tuple[FeatureBatch, torch.Tensor]]:
    """Batches and what the head makes of them, in evaluation mode, in order."""
    head.eval()
    device = next(head.parameters()).device
    for some in in_chunks(utterances, EVALUATION_BATCH):
        batch = make_batch(some, device)
        yield batch, getattr(head, function)(batch.features, batch.lengths)

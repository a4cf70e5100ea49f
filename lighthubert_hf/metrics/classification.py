"""Accuracy: of one class an utterance, and of several slots that all have to be right."""

from collections.abc import Sequence
from typing import ClassVar

from datasets import Sequence as ListOf
from datasets import Value

from .base import OfflineMetric


class Accuracy(OfflineMetric):
    """The share of class ids that are right.

    Accuracy().compute(predictions=[0, 2, 1], references=[0, 2, 2])   # {"accuracy": 0.666…}
    """

    description = "Accuracy: the share of predictions that equal their reference."
    inputs = "`predictions` and `references`: two lists of as many class ids."
    columns: ClassVar = {name: Value("int64") for name in ("predictions", "references")}

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": _share_equal(predictions, references)}


class AllSlotsAccuracy(OfflineMetric):
    """The share of utterances whose slots are all right, as SUPERB scores intents.

    AllSlotsAccuracy().compute(predictions=[[0, 1], [2, 1]], references=[[0, 1], [2, 2]])   # {"accuracy": 0.5}

    Raises:
        ValueError: if an utterance has another number of slots than its reference.
    """

    description = "Accuracy of utterances: the share whose slots all equal their reference."
    inputs = "`predictions` and `references`: for every utterance a list of class ids, one a slot."
    columns: ClassVar = {name: ListOf(Value("int64")) for name in ("predictions", "references")}

    def _compute(self, predictions: Sequence[list[int]], references: Sequence[list[int]]) -> dict[str, float]:
        for predicted, true in zip(predictions, references, strict=True):
            if len(predicted) != len(true):
                raise ValueError(f"{len(predicted)} predicted slots {predicted} for the {len(true)} slots {true}")
        return {"accuracy": _share_equal(predictions, references)}


def _share_equal(predictions: Sequence, references: Sequence) -> float:
    return sum(a == b for a, b in zip(predictions, references, strict=True)) / len(references)

"""One class, or one of each slot, for an utterance: keywords, intents, emotions, speakers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lighthubert_hf.metrics import AllSlotsAccuracy

from .heads import UtteranceClassifier
from .splits import Utterance
from .task import FeatureBatch, Metric, Task, head_outputs


class ClassificationTask(Task):
    """Cross-entropy, summed over slots; right is an utterance of which every slot is."""

    hub_task = "audio-classification"
    metrics = (Metric("accuracy", "accuracy", True),)
    pooled = True
    roles: tuple[str, ...] = ("label",)

    @property
    def labels_in(self) -> tuple[str, ...]:
        return self.roles

    def prepare(self, rows: list[dict[str, Any]]) -> None:
        self.classes = [sorted({self.column(row, role) for row in rows}, key=str) for role in self.roles]
        self._ids = [{value: index for index, value in enumerate(values)} for values in self.classes]

    def labels(self, row: dict[str, Any]) -> list[int]:
        """Class of each slot; −1 for one that training never saw, which no prediction can equal."""
        return [ids.get(self.column(row, role), -1) for ids, role in zip(self._ids, self.roles, strict=True)]

    def make_head(self, num_states: int, width: int) -> nn.Module:
        outputs = sum(map(len, self.classes))
        return UtteranceClassifier(num_states, width, outputs, projection=self.sizes.projection)

    def _slots(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return logits.split([len(values) for values in self.classes], dim=-1)

    def loss(self, head: nn.Module, batch: FeatureBatch) -> torch.Tensor:
        labels = torch.tensor([self.labels(utterance.row) for utterance in batch.utterances])
        slots = self._slots(head(batch.features, batch.lengths))
        columns = labels.to(batch.features.device).unbind(1)
        return torch.stack([F.cross_entropy(*pair) for pair in zip(slots, columns, strict=True)]).sum()

    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        predicted, true = [], []
        for batch, logits in head_outputs(head, utterances):
            predicted += torch.stack([slot.argmax(-1) for slot in self._slots(logits)], 1).tolist()
            true += [self.labels(utterance.row) for utterance in batch.utterances]
        return AllSlotsAccuracy().compute(predictions=predicted, references=true)


class KeywordSpotting(ClassificationTask):
    name, title = "ks", "keyword spotting"


class IntentClassification(ClassificationTask):
    name, title = "ic", "intent classification"
    roles = ("action", "object", "location")


class EmotionRecognition(ClassificationTask):
    name, title = "er", "emotion recognition"


class SpeakerIdentification(ClassificationTask):
    name, title = "sid", "speaker identification"

"""Do two utterances come from one speaker? Trained to tell the training speakers apart, tried on others."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from lighthubert_hf.metrics import EqualErrorRate
from lighthubert_hf.training.tasks.verification import am_softmax, read_trials

from .heads import XVector
from .splits import Utterance
from .task import FeatureBatch, Metric, Task, head_outputs

logger = logging.getLogger(__name__)


class SpeakerVerification(Task):
    """Trials are scored by the cosine of their embeddings."""

    name, title, hub_task = "asv", "speaker verification", "audio-classification"
    metrics = (Metric("eer", "EER", False),)

    @property
    def labels_in(self) -> tuple[str, ...]:
        return ("label",)

    def prepare(self, rows: list[dict[str, Any]]) -> None:
        speakers = sorted({self.column(row, "label") for row in rows}, key=str)
        if len(speakers) < 2:
            raise ValueError(f"asv: {self.data.path} has {len(speakers)} speakers to train on; it takes two or more")
        self._ids = {speaker: index for index, speaker in enumerate(speakers)}
        file = self.data.trials_file
        self._trials = None if file is None else read_trials(file)

    def make_head(self, num_states: int, width: int) -> nn.Module:
        size, pooled = self.sizes.xvector, self.sizes.xvector_pooled
        return XVector(num_states, width, len(self._ids), size=size, pooled=pooled)

    def loss(self, head: nn.Module, batch: FeatureBatch) -> torch.Tensor:
        labels = [self._ids[self.column(utterance.row, "label")] for utterance in batch.utterances]
        return am_softmax(head(batch.features, batch.lengths), torch.tensor(labels, device=batch.features.device))

    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        """On all pairs of the utterances."""
        utterances = list(utterances)
        speakers = np.array([str(self.column(utterance.row, "label")) for utterance in utterances])
        first, second = np.triu_indices(len(speakers), k=1)
        return self._score(head, utterances, first, second, speakers[first] == speakers[second])

    def test(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        """On the list of trials, if there is one."""
        if self._trials is None:
            return self.evaluate(head, utterances)
        utterances = list(utterances)
        place = {str(self.column(utterance.row, "id")): index for index, utterance in enumerate(utterances)}
        here = [trial for trial in self._trials if trial[1] in place and trial[2] in place]
        if not here:
            raise ValueError(
                f"no trial of {self.data.trials_file} is between utterances of the split {self.data.test!r}"
            )
        if len(here) < len(self._trials):
            logger.warning("asv: %d of %d trials are between utterances that were read", len(here), len(self._trials))
        same, first, second = zip(*((same, place[a], place[b]) for same, a, b in here), strict=True)
        return self._score(head, utterances, np.array(first), np.array(second), np.array(same))

    def _score(self, head, utterances: list[Utterance], first, second, same) -> dict[str, float]:
        embedded = [embeddings.cpu() for _, embeddings in head_outputs(head, utterances, "embed")]
        vectors = nn.functional.normalize(torch.cat(embedded)).numpy()
        scores = (vectors[first] * vectors[second]).sum(1)
        return EqualErrorRate().compute(predictions=scores.tolist(), references=same.astype(int).tolist())

"""Who speaks when, for every frame of a recording of several speakers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lighthubert_hf.metrics import DiarizationErrorRate
from lighthubert_hf.training.finetuning.classification_data import frame_activity

from .heads import Diarizer
from .losses import pit_bce
from .splits import Utterance
from .task import Batch, Metric, Task, head_outputs

# SUPERB tries thresholds of 0.3 to 0.7 and filters of 1 and 11 frames on the test set; here both are fixed beforehand.
THRESHOLD, MEDIAN_FRAMES = 0.5, 11


class SpeakerDiarization(Task):
    name, title, hub_task = "sd", "speaker diarisation", "voice-activity-detection"
    metrics = (Metric("der", "DER", False),)

    def prepare(self, rows: list[dict[str, Any]]) -> None:
        self.num_speakers = max(len(self._speakers(row)) for row in rows)

    def _speakers(self, row: dict[str, Any]) -> list[Any]:
        return sorted({segment["speaker"] for segment in self.column(row, "segments")})

    def make_head(self, num_states: int, width: int) -> nn.Module:
        return Diarizer(num_states, width, self.num_speakers, recurrent=self.sizes.diarization)

    def accepts(self, utterance: Utterance) -> bool:
        return utterance.length > 0

    def activity(self, row: dict[str, Any], frames: int) -> torch.LongTensor:
        """`(frames, speakers)` of 0 or 1: whether a speaker is active in the middle of the samples a frame sees."""
        return frame_activity(self.column(row, "segments"), frames, *self.frame, self.num_speakers)

    def loss(self, head: nn.Module, batch: Batch) -> torch.Tensor:
        rows = [self.activity(utterance.row, utterance.length) for utterance in batch.utterances]
        speaking = pad_sequence(rows, batch_first=True).to(batch.features.device)
        return pit_bce(head(batch.features, batch.lengths), speaking, batch.lengths)

    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        predicted, true = [], []
        for batch, logits in head_outputs(head, utterances):
            for row, utterance in zip(logits, batch.utterances, strict=True):
                speaking = (row[: utterance.length].sigmoid() > THRESHOLD).float()
                predicted.append(median_filter(speaking, MEDIAN_FRAMES).long().tolist())
                true.append(self.activity(utterance.row, utterance.length).tolist())
        return DiarizationErrorRate().compute(predictions=predicted, references=true)


def median_filter(activity: torch.Tensor, size: int) -> torch.Tensor:
    """Medians over `size` frames, an odd number, of `(frames, speakers)`; beyond the ends there are zeros."""
    padded = F.pad(activity.T, (size // 2, size // 2))
    return padded.unfold(1, size, 1).median(-1).values.T

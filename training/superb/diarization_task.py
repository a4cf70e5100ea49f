"""Who speaks when, for every frame of a recording of several speakers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lighthubert_hf.metrics import DiarizationErrorRate
from lighthubert_hf.training.tasks.diarization import (
    MEDIAN_FRAMES,
    MOST_SPEAKERS,
    THRESHOLD,
    frame_activity,
    median_filter,
    pit_bce,
)

from .heads import Diarizer
from .splits import Utterance
from .task import FeatureBatch, Metric, Task, head_outputs


class SpeakerDiarization(Task):
    name, title, hub_task = "sd", "speaker diarisation", "voice-activity-detection"
    metrics = (Metric("der", "DER", False),)

    @property
    def labels_in(self) -> tuple[str, ...]:
        return ("segments",)

    def prepare(self, rows: list[dict[str, Any]]) -> None:
        self.num_speakers = max(len(self._speakers(row)) for row in rows)
        if self.num_speakers > MOST_SPEAKERS:
            raise ValueError(
                f"a recording of {self.data.title} has {self.num_speakers} speakers, and at most {MOST_SPEAKERS} are "
                "told apart; leave it out of the data"
            )

    def _speakers(self, row: dict[str, Any]) -> list[Any]:
        return sorted({segment["speaker"] for segment in self.column(row, "segments")})

    def make_head(self, num_states: int, width: int) -> nn.Module:
        return Diarizer(num_states, width, self.num_speakers, recurrent=self.sizes.diarization)

    def accepts(self, utterance: Utterance) -> bool:
        return utterance.length > 0

    def activity(self, row: dict[str, Any], frames: int) -> torch.LongTensor:
        """`(frames, speakers)` of 0 or 1: whether a speaker is active in the middle of the samples a frame sees."""
        return frame_activity(self.column(row, "segments"), frames, *self.frame, self.num_speakers)

    def loss(self, head: nn.Module, batch: FeatureBatch) -> torch.Tensor:
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

"""Fine-tuning for who speaks when."""

import math
from typing import Any

import torch
from transformers import AutoModelForAudioFrameClassification, PretrainedConfig, PreTrainedModel

from lighthubert_hf.metrics import DiarizationErrorRate
from lighthubert_hf.model.front_end import conv_output_lengths, receptive_field
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.padding import pad_waveforms, shortest_input
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.tasks.diarization import MEDIAN_FRAMES, THRESHOLD, frame_activity, median_filter, pit_bce

from .task import LabelledFineTuning
from .trainer import ScoredRow, SpeechTrainer


class ActivityCollator:
    """Examples to a padded batch with `labels` `(rows, frames, speakers)` of 0 or 1: who speaks when.

    Args:
        column: Where the segments are.
        num_speakers: Outputs of the model.
        config: The model's.
    """

    def __init__(self, column: str, num_speakers: int, config: PretrainedConfig):
        self.column, self.num_speakers, self.config = column, num_speakers, config
        self.min_samples = shortest_input(config)

    def activity(self, example: SpeechExample) -> torch.Tensor:
        """Of all speakers of the recording, `(frames, speakers)`."""
        frames = conv_output_lengths(len(example.waveform), self.config)
        stride, field = math.prod(self.config.conv_stride), receptive_field(self.config)
        return frame_activity(example.columns[self.column], frames, stride, field)

    def is_possible(self, example: SpeechExample) -> bool:
        """Whether the recording has a frame, and no more speakers than the model has outputs."""
        speakers = {segment["speaker"] for segment in example.columns[self.column]}
        return conv_output_lengths(len(example.waveform), self.config) >= 1 and len(speakers) <= self.num_speakers

    def __call__(self, examples: list[SpeechExample]) -> Batch:
        batch = pad_waveforms([example.waveform for example in examples], self.min_samples)
        frames = conv_output_lengths(batch["input_values"].shape[1], self.config)
        labels = torch.zeros(len(examples), frames, self.num_speakers, dtype=torch.long)
        for row, example in zip(labels, examples, strict=True):
            activity = self.activity(example)[:, : self.num_speakers]
            row[: activity.shape[0], : activity.shape[1]] = activity
        return {**batch, "labels": labels}


class DiarizationTrainer(SpeechTrainer):
    """Binary cross-entropy under the best assignment of outputs to speakers; scores `der` and `loss`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = pit_bce(outputs.logits.float(), labels, self._frames(inputs["attention_mask"]))
        return (loss, outputs) if return_outputs else loss

    def _frames(self, attention_mask: torch.Tensor) -> torch.LongTensor:
        return self.model._get_feat_extract_output_lengths(attention_mask.sum(-1))

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[ScoredRow]:
        labels = batch.pop("labels")
        logits, rows = self.model(**batch).logits.float(), []
        for row, true, frames, example in zip(
            logits, labels, self._frames(batch["attention_mask"]).tolist(), examples, strict=True
        ):
            length = torch.tensor([frames], device=row.device)
            loss = pit_bce(row[None, :frames], true[None, :frames], length).item()
            speaking = median_filter((row[:frames].sigmoid() > THRESHOLD).float(), MEDIAN_FRAMES)
            rows.append((loss, speaking.long().tolist(), self.collate.activity(example).tolist()))
        return rows

    def score(self, rows: list[ScoredRow]) -> dict[str, float]:
        losses, predictions, references = zip(*rows, strict=True)
        rates = DiarizationErrorRate().compute(predictions=list(predictions), references=list(references))
        return {"loss": sum(losses) / len(losses), "der": rates["der"]}


class DiarizationFineTuning(LabelledFineTuning):
    auto_class, trainer_class = AutoModelForAudioFrameClassification, DiarizationTrainer
    scores = {"der": "diarisation error rate (%)"}  # noqa: RUF012
    hub_task, hub_task_name = "voice-activity-detection", "speaker diarisation"
    refused = "no frame, or more speakers than data.num_speakers"

    def prepare(self, train: list[SpeechExample] | None, sources: list[AudioSource]) -> None:
        """The number of speakers is given; there is nothing to look for."""

    def config_changes(self) -> dict[str, Any]:
        names = {index: f"speaker {index}" for index in range(self.recipe.data.num_speakers)}
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}

    def collator(self, model: PreTrainedModel) -> ActivityCollator:
        return ActivityCollator(self.label_columns[0], self.recipe.data.num_speakers, model.config)

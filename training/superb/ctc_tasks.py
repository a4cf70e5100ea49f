"""Phones, words, and slots: tasks whose heads are trained by CTC and decoded greedily, without a language model."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lighthubert_hf.metrics import (
    CharacterErrorRate,
    PhoneErrorRate,
    SlotCharacterErrorRate,
    SlotF1,
    WordErrorRate,
)
from lighthubert_hf.training.audio.examples import transcript
from lighthubert_hf.training.tasks.ctc import frames_needed

from .heads import FrameClassifier, RecurrentRecogniser
from .splits import Utterance
from .task import FeatureBatch, Metric, Task, head_outputs

_BLANK = 0
_MARK = re.compile(r"[BE]-\S+")


class CtcTask(Task):
    """A sequence of tokens for an utterance. Tokens that training never saw cannot be recognised: they are errors."""

    hub_task = "automatic-speech-recognition"
    role = "text"
    separator = ""

    @property
    def labels_in(self) -> tuple[str, ...]:
        return (self.role,)

    def said(self, row: dict[str, Any]) -> str:
        """What the column of the labels holds, as text."""
        return transcript(self.column(row, self.role), f"of {self.data.path}")

    def tokens(self, text: str) -> list[str]:
        """Single characters, of which runs of white space are one."""
        return list(" ".join(text.split()))

    def text(self, row: dict[str, Any]) -> str:
        """The text to recognise, its tokens put together as predictions are."""
        return self.separator.join(self.tokens(self.said(row)))

    def prepare(self, rows: list[dict[str, Any]]) -> None:
        found = {token for row in rows for token in self.tokens(self.said(row))}
        if not found:
            raise ValueError(
                f"{self.name}: the {self.role} of {self.data.path} is empty, so there is nothing to learn"
            )
        self.vocabulary = ["", *sorted(found)]
        self._ids = {token: index for index, token in enumerate(self.vocabulary)}

    def labels(self, row: dict[str, Any]) -> list[int]:
        return [self._ids[token] for token in self.tokens(self.said(row))]

    def accepts(self, utterance: Utterance) -> bool:
        labels = self.labels(utterance.row)
        return 0 < frames_needed(labels) <= utterance.length

    def loss(self, head: nn.Module, batch: FeatureBatch) -> torch.Tensor:
        labels = [self.labels(utterance.row) for utterance in batch.utterances]
        targets = torch.tensor([label for row in labels for label in row], device=batch.features.device)
        sizes = torch.tensor([len(row) for row in labels], device=batch.features.device)
        logits = head(batch.features, batch.lengths).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(logits, targets, batch.lengths, sizes, blank=_BLANK, zero_infinity=True)

    def decode(self, logits: torch.Tensor) -> str:
        """Text of one utterance's `(frames, tokens)`: best tokens, repeats merged, blanks left out."""
        best = logits.argmax(-1).unique_consecutive().tolist()
        return self.separator.join(self.vocabulary[index] for index in best if index != _BLANK)

    def transcripts(self, head: nn.Module, utterances: Iterable[Utterance]) -> tuple[list[str], list[str]]:
        """Predicted and true texts."""
        predicted, true = [], []
        for batch, logits in head_outputs(head, utterances):
            for row, length, utterance in zip(logits, batch.lengths.tolist(), batch.utterances, strict=True):
                predicted.append(self.decode(row[:length]))
                true.append(self.text(utterance.row))
        return predicted, true


class PhonemeRecognition(CtcTask):
    name, title = "pr", "phoneme recognition"
    metrics = (Metric("per", "PER", False),)
    role, separator = "phonemes", " "

    def tokens(self, text: str) -> list[str]:
        return text.split()

    def make_head(self, num_states: int, width: int) -> nn.Module:
        return FrameClassifier(num_states, width, len(self.vocabulary), projection=self.sizes.projection)

    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        predicted, true = self.transcripts(head, utterances)
        return PhoneErrorRate().compute(predictions=predicted, references=true)


class SpeechRecognition(CtcTask):
    name, title = "asr", "speech recognition"
    metrics = (Metric("wer", "WER", False), Metric("cer", "CER", False))

    def make_head(self, num_states: int, width: int) -> nn.Module:
        projection, recurrent = self.sizes.recurrent_projection, self.sizes.recurrent
        return RecurrentRecogniser(num_states, width, len(self.vocabulary), projection=projection, recurrent=recurrent)

    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        predicted, true = self.transcripts(head, utterances)
        scores = WordErrorRate().compute(predictions=predicted, references=true)
        return scores | CharacterErrorRate().compute(predictions=predicted, references=true)


class SlotFilling(SpeechRecognition):
    """The text with a token where each slot begins and ends, `B-city` and `E-city`."""

    name, title = "sf", "slot filling"
    metrics = (Metric("slot_f1", "slot F1", True), Metric("slot_cer", "slot CER", False))
    role = "slots"

    def tokens(self, text: str) -> list[str]:
        words = [[word] if _MARK.fullmatch(word) else list(word) for word in text.split()]
        return [token for word in words for token in [" ", *word]][1:]

    def evaluate(self, head: nn.Module, utterances: Iterable[Utterance]) -> dict[str, float]:
        predicted, true = self.transcripts(head, utterances)
        scores = SlotF1().compute(predictions=predicted, references=true)
        return scores | SlotCharacterErrorRate().compute(predictions=predicted, references=true)

"""How classifiers, speaker verifiers and diarisers are trained and scored."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from lighthubert_hf.metrics import Accuracy, AllSlotsAccuracy, DiarizationErrorRate, EqualErrorRate
from lighthubert_hf.training.audio.labelled import Batch, SpeechExample
from lighthubert_hf.training.superb.diarization_task import MEDIAN_FRAMES, THRESHOLD, median_filter
from lighthubert_hf.training.superb.losses import pit_bce

from .trainer import Row, SpeechTrainer


class ClassificationTrainer(SpeechTrainer):
    """Cross-entropy, summed over slots; scores `accuracy` (all slots right) and `loss`.

    Labels are `(rows, slots)`; the model's outputs are the classes of all slots, one slot after the other.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self._losses(outputs.logits, labels).mean()
        return (loss, outputs) if return_outputs else loss

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each row; a class that is not known costs nothing."""
        slots = zip(self._slots(logits), labels.unbind(1), strict=True)
        return sum(F.cross_entropy(slot.float(), true, reduction="none") for slot, true in slots)

    def _slots(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return logits.split(self.collate.classes.sizes, dim=-1)

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[Row]:
        labels = batch.pop("labels")
        logits = self.model(**batch).logits
        predicted = torch.stack([slot.argmax(-1) for slot in self._slots(logits)], dim=1)
        losses = self._losses(logits, labels)
        return list(zip(losses.tolist(), predicted.tolist(), labels.tolist(), strict=True))

    def score(self, rows: list[Row]) -> dict[str, float]:
        losses, predictions, references = zip(*rows, strict=True)
        if len(self.collate.classes.sizes) == 1:
            metric = Accuracy()
            predictions, references = ([row[0] for row in part] for part in (predictions, references))
        else:
            metric = AllSlotsAccuracy()
        return {
            "loss": sum(losses) / len(losses),
            **metric.compute(predictions=list(predictions), references=list(references)),
        }


class VerificationTrainer(SpeechTrainer):
    """The model's AM-softmax over the training speakers; scores `eer` of the cosine of embeddings.

    Args:
        trials: `(same, id, id)` by the held-out set's name, and under "eval" those of the set that training is steered
            by; a set without is tried on all pairs.
    """

    def __init__(self, *, trials: dict[str, list[tuple[int, str, str]]], **others):
        super().__init__(**others)
        self.trials, self._trials = trials, None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**{**inputs, "labels": inputs["labels"][:, 0]})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[Row]:
        del batch["labels"]
        embeddings = F.normalize(self.model(**batch).embeddings.float(), dim=-1).cpu().tolist()
        column = next(iter(self.collate.classes.names))
        names = [(str(e.columns.get("id", e.id)), str(e.columns[column])) for e in examples]
        return [(*name, vector) for name, vector in zip(names, embeddings, strict=True)]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        self._trials = self.trials.get(metric_key_prefix.removeprefix("eval_"))
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def score(self, rows: list[Row]) -> dict[str, float]:
        rows = sorted(rows)  # the order of arrival depends on batches and processes
        vectors = torch.tensor([vector for *_, vector in rows])
        if self._trials is None:
            speakers = np.array([speaker for _, speaker, _ in rows])
            first, second = np.triu_indices(len(rows), k=1)
            same = (speakers[first] == speakers[second]).astype(int).tolist()
        else:
            trials = _present([name for name, *_ in rows], self._trials)
            same, first, second = (list(part) for part in zip(*trials, strict=True))
        cosines = (vectors[first] * vectors[second]).sum(-1)
        return EqualErrorRate().compute(predictions=cosines.tolist(), references=same)


def _present(names: Sequence[str], trials: list[tuple[int, str, str]]) -> list[tuple[int, int, int]]:
    """The trials with places in `names`."""
    places = {name: place for place, name in enumerate(names)}
    missing = {name for _, *pair in trials for name in pair if name not in places}
    if missing:
        raise ValueError(
            f"the trials name {len(missing)} utterances that are not in the held-out set, such as {min(missing)!r}; "
            "they are matched with its column 'id'"
        )
    return [(same, places[one], places[other]) for same, one, other in trials]


class DiarizationTrainer(SpeechTrainer):
    """Binary cross-entropy under the best assignment of outputs to speakers; scores `der` and `loss`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = pit_bce(outputs.logits.float(), labels, self._frames(inputs["attention_mask"]))
        return (loss, outputs) if return_outputs else loss

    def _frames(self, attention_mask: torch.Tensor) -> torch.LongTensor:
        return self.model._get_feat_extract_output_lengths(attention_mask.sum(-1))

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[Row]:
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

    def score(self, rows: list[Row]) -> dict[str, float]:
        losses, predictions, references = zip(*rows, strict=True)
        rates = DiarizationErrorRate().compute(predictions=list(predictions), references=list(references))
        return {"loss": sum(losses) / len(losses), "der": rates["der"]}

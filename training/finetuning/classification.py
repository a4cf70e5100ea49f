"""Fine-tuning for classes of utterances, in one slot or several."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification, PretrainedConfig, PreTrainedModel

from lighthubert_hf.metrics import Accuracy, AllSlotsAccuracy
from lighthubert_hf.model.front_end import conv_output_lengths
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.padding import pad_waveforms, shortest_input
from lighthubert_hf.training.audio.sources import AudioSource

from .task import LabelledFineTuning
from .trainer import ScoredRow, SpeechTrainer

logger = logging.getLogger(__name__)

SLOT_SEPARATOR = ": "


class Classes:
    """The classes of one or several slots, and the model's outputs that stand for them: slot after slot.

    Args:
        names: Classes of every slot; slots are the columns the labels are read from.
        listed: Integers in the (only) column are places in its list of names, not names.
    """

    def __init__(self, names: dict[str, list[str]], listed: bool = False):
        self.names, self.listed = names, listed
        self._ids = {slot: {name: index for index, name in enumerate(part)} for slot, part in names.items()}

    @classmethod
    def of(cls, examples: Iterable[SpeechExample], slots: Sequence[str]) -> "Classes":
        """Those in the data, in alphabetical order. ValueError if there is only one."""
        examples = list(examples)
        names = {slot: sorted({str(example.columns[slot]) for example in examples}) for slot in slots}
        for slot, found in names.items():
            if len(found) < 2:
                raise ValueError(f"all training utterances have the {slot} {found[0]!r}: nothing to tell apart")
        return cls(names)

    @property
    def sizes(self) -> list[int]:
        return [len(part) for part in self.names.values()]

    @property
    def id2label(self) -> dict[int, str]:
        """What the outputs are called: the class, or `slot: class` where there are several slots."""
        if len(self.names) == 1:
            return dict(enumerate(next(iter(self.names.values()))))
        return dict(enumerate(f"{slot}{SLOT_SEPARATOR}{name}" for slot, part in self.names.items() for name in part))

    def ids(self, example: SpeechExample) -> list[int]:
        """A class id for each slot; -100 for a class that is not among them."""
        found = []
        for slot, ids in self._ids.items():
            value = example.columns[slot]
            if self.listed and str(value) not in ids and str(value).isdecimal():
                found.append(int(value) if int(value) < len(ids) else -100)
            else:
                found.append(ids.get(str(value), -100))
        return found


class ClassCollator:
    """Examples to a padded batch with `labels` `(rows, slots)`, -100 for classes that are not known."""

    def __init__(self, classes: Classes, config: PretrainedConfig):
        self.classes, self.config, self.min_samples = classes, config, shortest_input(config)

    def is_possible(self, example: SpeechExample) -> bool:
        """Whether the utterance has a frame, and classes that can be learnt."""
        return conv_output_lengths(len(example.waveform), self.config) >= 1 and -100 not in self.classes.ids(example)

    def __call__(self, examples: list[SpeechExample]) -> Batch:
        batch = pad_waveforms([example.waveform for example in examples], self.min_samples)
        return {**batch, "labels": torch.tensor([self.classes.ids(example) for example in examples])}


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

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[ScoredRow]:
        labels = batch.pop("labels")
        logits = self.model(**batch).logits
        predicted = torch.stack([slot.argmax(-1) for slot in self._slots(logits)], dim=1)
        losses = self._losses(logits, labels)
        return list(zip(losses.tolist(), predicted.tolist(), labels.tolist(), strict=True))

    def score(self, rows: list[ScoredRow]) -> dict[str, float]:
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


class ClassificationFineTuning(LabelledFineTuning):
    auto_class, trainer_class = AutoModelForAudioClassification, ClassificationTrainer
    scores = {"accuracy": "accuracy (%)"}  # noqa: RUF012
    greater_is_better = True
    hub_task_name = "classification of utterances"
    refused = "no frame, or a class that is not among the names given"

    def prepare(self, train: list[SpeechExample] | None, sources: list[AudioSource]) -> None:
        data = self.recipe.data
        if data.class_names is not None:
            self.classes = Classes({self.label_columns[0]: data.class_names}, listed=True)
        elif train is None:
            raise ValueError(
                f"the training speech exceeds data.memory_gb ({data.memory_gb:g}) and is streamed, so its classes are "
                "not known beforehand: give data.class_names, or raise data.memory_gb"
            )
        else:
            self.classes = Classes.of(train, self.label_columns)

    def check_held_out(self, name: str, examples: Sequence[SpeechExample]) -> None:
        unknown = [example for example in examples if -100 in self.classes.ids(example)]
        if not unknown:
            return
        found = sorted({str(unknown[0].columns[slot]) for slot in self.label_columns})
        said = f"{len(unknown)} of {len(examples)} utterances of {name} are of classes that are not learnt, as {found}"
        if len(unknown) == len(examples):
            raise ValueError(f"{said}; learnt are {list(self.classes.id2label.values())[:10]}")
        logger.warning("%s; they count as wrong", said)

    def config_changes(self) -> dict[str, Any]:
        names = self.classes.id2label
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}

    def collator(self, model: PreTrainedModel) -> ClassCollator:
        return ClassCollator(self.classes, model.config)

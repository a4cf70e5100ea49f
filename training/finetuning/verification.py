"""Fine-tuning for telling speakers apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForAudioXVector

from lighthubert_hf.metrics import EqualErrorRate
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.synthetic.tasks import TRIALS
from lighthubert_hf.training.tasks.verification import read_trials

from .classification import ClassificationFineTuning
from .trainer import ScoredRow, SpeechTrainer


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

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[ScoredRow]:
        del batch["labels"]
        embeddings = F.normalize(self.model(**batch).embeddings.float(), dim=-1).cpu().tolist()
        column = next(iter(self.collate.classes.names))
        names = [(str(e.columns.get("id", e.id)), str(e.columns[column])) for e in examples]
        return [(*name, vector) for name, vector in zip(names, embeddings, strict=True)]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        self._trials = self.trials.get(metric_key_prefix.removeprefix("eval_"))
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def score(self, rows: list[ScoredRow]) -> dict[str, float]:
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


class VerificationFineTuning(ClassificationFineTuning):
    auto_class, trainer_class = AutoModelForAudioXVector, VerificationTrainer
    scores = {"eer": "equal error rate (%)"}  # noqa: RUF012
    greater_is_better = False
    hub_task_name = "speaker verification"

    def trials(self) -> dict[str, list[tuple[int, str, str]]]:
        """Of the held-out sets that have a list of them."""
        files = {name: Path(file) for name, file in self.recipe.data.trials.items()}
        if self.recipe.data.synthetic_task is not None:
            files = {"test": self.synthetic_folder / TRIALS}
        return {name: read_trials(file) for name, file in files.items()}

    def synthesise(self, folder: Path) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
        self.synthetic_folder = folder
        return super().synthesise(folder)

    def check_held_out(self, name: str, examples: Sequence[SpeechExample]) -> None:
        """Its speakers may be new."""

    def prepare(self, train: list[SpeechExample] | None, sources: list[AudioSource]) -> None:
        super().prepare(train, sources)
        trials, steering = self.trials(), next(iter(self.recipe.data.evaluation), None)
        if steering in trials:
            trials["eval"] = trials[steering]
        self.trainer_options = {"trials": trials}

"""Fine-tuning for classes of utterances, for telling speakers apart, and for who speaks when."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)

from lighthubert_hf.training.audio.labelled import SpeechExample
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.superb.verification_task import read_trials
from lighthubert_hf.training.synthetic.tasks import TRIALS, synthesise_task

from .classification_data import ActivityCollator, ClassCollator, Classes
from .classification_trainer import ClassificationTrainer, DiarizationTrainer, VerificationTrainer
from .ctc_data import build_feature_extractor
from .task import FineTuningTask


class _LabelledTask(FineTuningTask):
    """Labels in columns; a feature extractor is all the processor there is."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.label_columns = recipe.label_columns

    def synthesise(self, folder: Path) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
        data = self.recipe.data
        sizes = {"examples": data.synthetic_examples, "held_out_examples": data.synthetic_held_out_examples}
        synthesise_task(data.synthetic_task, folder, seed=self.recipe.seed, **sizes)
        train, *held_out = (
            [AudioSource(str(folder), split, all_columns=True)] for split in ("train", "validation", "test")
        )
        return train, dict(zip(("validation", "test"), held_out, strict=True))

    def processor(self) -> Wav2Vec2FeatureExtractor:
        return build_feature_extractor()


class ClassificationTask(_LabelledTask):
    auto_class, trainer_class = AutoModelForAudioClassification, ClassificationTrainer
    scores = {"accuracy": "accuracy (%)"}  # noqa: RUF012
    greater_is_better = True
    hub_task_name = "classification of utterances"
    refused = "no frame, or a class that is not among the names given"

    def prepare(self, train: list[SpeechExample] | None) -> None:
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

    def config_changes(self) -> dict[str, Any]:
        names = self.classes.id2label
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}

    def collator(self, model: PreTrainedModel) -> ClassCollator:
        return ClassCollator(self.classes, model.config)


class VerificationTask(ClassificationTask):
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

    def prepare(self, train: list[SpeechExample] | None) -> None:
        super().prepare(train)
        trials, steering = self.trials(), next(iter(self.recipe.data.evaluation), None)
        if steering in trials:
            trials["eval"] = trials[steering]
        self.trainer_options = {"trials": trials}


class DiarizationTask(_LabelledTask):
    auto_class, trainer_class = AutoModelForAudioFrameClassification, DiarizationTrainer
    scores = {"der": "diarisation error rate (%)"}  # noqa: RUF012
    hub_task, hub_task_name = "voice-activity-detection", "speaker diarisation"
    refused = "no frame, or more speakers than data.num_speakers"

    def prepare(self, train: list[SpeechExample] | None) -> None:
        """The number of speakers is given; there is nothing to look for."""

    def config_changes(self) -> dict[str, Any]:
        names = {index: f"speaker {index}" for index in range(self.recipe.data.num_speakers)}
        return {"id2label": names, "label2id": {name: index for index, name in names.items()}}

    def collator(self, model: PreTrainedModel) -> ActivityCollator:
        return ActivityCollator(self.label_columns[0], self.recipe.data.num_speakers, model.config)

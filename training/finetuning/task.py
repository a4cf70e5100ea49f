"""What one kind of fine-tuning brings to the procedure that all share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from lighthubert_hf.loading import load_config
from lighthubert_hf.preprocessing import build_feature_extractor
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.synthetic.tasks import synthesise_task

from .recipe import FineTuningRecipe
from .trainer import SpeechTrainer


class FineTuningTask:
    """
    Attributes:
        auto_class: Which head the model gets.
        trainer_class: How it is trained and scored.
        scores: What a held-out set's scores are, with their names on the card; the first steers the training, lower
            is better unless `greater_is_better`. All are shares, given in percent.
        hub_task, hub_task_name: What the card calls the task.
        refused: Why training utterances are left out.
        label_columns: Where the labels are; none: transcripts are read.
        keeps_head: The head is loaded with the model; else it is new.
        trainer_options: What the trainer is told besides what all are told.
        facts: What `metrics.json` says besides what it says of all.
    """

    auto_class: ClassVar[type]
    trainer_class: ClassVar[type[SpeechTrainer]]
    scores: ClassVar[dict[str, str]]
    greater_is_better: ClassVar[bool] = False
    hub_task: ClassVar[str] = "audio-classification"
    hub_task_name: ClassVar[str]
    refused: ClassVar[str]
    label_columns: tuple[str, ...] = ()
    keeps_head: bool = False
    trainer_options: ClassVar[dict[str, Any]] = {}
    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, recipe: FineTuningRecipe):
        self.recipe = recipe

    def synthesise(self, folder: Path) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
        """Make the synthetic speech that the recipe asks for: training and held-out sources."""
        raise NotImplementedError

    def check_names(self) -> None:
        """Raise for what the recipe names and cannot be had: before the data are read, which may take long."""
        if self.recipe.model.path is not None:
            load_config(self.recipe.model.path, self.recipe.model.revision)

    def prepare(self, train: list[SpeechExample] | None, sources: list[AudioSource]) -> None:
        """Look at the training data (`None`: they are streamed from `sources`) before there is a model."""
        raise NotImplementedError

    def check_held_out(self, name: str, examples: Sequence[SpeechExample]) -> None:
        """See that the labels of a held-out set are among those that are learnt; after `prepare`."""

    def report(self) -> str | None:
        """What is worth saying of the labels, after `prepare`."""
        return None

    def processor(self) -> Any:
        """What turns audio into the model's input, saved beside the weights."""
        raise NotImplementedError

    def config_changes(self) -> dict[str, Any]:
        """Fields of the model's config that the labels decide."""
        raise NotImplementedError

    def collator(self, model: PreTrainedModel) -> Callable:
        """Makes batches of examples; its `is_possible` says which can be trained on."""
        raise NotImplementedError

    def final_scores(self, trainer: SpeechTrainer, name: str, examples: Sequence[SpeechExample]) -> dict[str, float]:
        """The scores of one held-out set with the finished model."""
        metrics = trainer.evaluate(examples, metric_key_prefix=f"eval_{name}")
        prefix = f"eval_{name}_"
        return {key: metrics[prefix + key] for key in (*self.scores, "loss") if prefix + key in metrics}


class LabelledFineTuning(FineTuningTask):
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

"""The recipe of fine-tuning for labels other than text: classes, speakers, who speaks when."""

from typing import Literal

from pydantic import Field, PositiveInt
from pydantic import model_validator as checked

from .recipe import FineTuningRecipe, LabelledDataSection, SpecAugmentSection

SyntheticTask = Literal["ks", "ic", "er", "sid", "asv", "sd"]


class ClassifiedDataSection(LabelledDataSection):
    """Speech with labels in columns. `text_column` of the sources is not used."""

    synthetic_task: SyntheticTask | None = Field(
        None, description="instead of sources and evaluation: one of the small synthetic tasks, made at the start"
    )
    synthetic_examples: PositiveInt = 120
    synthetic_held_out_examples: PositiveInt = 40
    label_columns: list[str] | None = Field(
        None,
        min_length=1,
        description="where the labels are; several are slots, each with classes of its own; None: 'label', or "
        "'segments' for diarization",
    )
    class_names: list[str] | None = Field(
        None,
        min_length=2,
        description="of a single column, those of the integers in it or the strings themselves; "
        "None: what the training data hold",
    )
    num_speakers: PositiveInt = Field(2, description="diarization: speakers told apart in a recording")
    trials: dict[str, str] = Field(
        {}, description="verification: held-out set to a file of lines '1 ID ID' or '0 ID ID'; without, all pairs"
    )

    @property
    def synthetic(self) -> str | None:
        return None if self.synthetic_task is None else "synthetic_task"


class ClassificationRecipe(FineTuningRecipe):
    """Fine-tuning of a classifier of utterances, a speaker verifier, or a diariser."""

    task: Literal["classification", "verification", "diarization"]
    data: ClassifiedDataSection
    spec_augment: SpecAugmentSection | None = None

    @checked(mode="after")
    def _labels_fit(self):
        columns = self.data.label_columns or []
        if self.task != "classification" and len(columns) > 1:
            raise ValueError(f"task={self.task} reads one column of labels, data.label_columns names {len(columns)}")
        if self.data.class_names is not None and (len(columns) > 1 or self.task == "diarization"):
            raise ValueError("data.class_names are those of one column of classes; leave them to the data")
        if unknown := set(self.data.trials) - set(self.data.evaluation):
            raise ValueError(f"data.trials names {min(unknown)!r}, which is no set of data.evaluation")
        return self

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Where the labels are."""
        if self.data.label_columns is not None:
            return tuple(self.data.label_columns)
        if self.data.synthetic_task == "ic":
            return ("action", "object", "location")
        return ("segments",) if self.task == "diarization" else ("label",)

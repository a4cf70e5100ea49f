"""The recipe of CTC fine-tuning."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import model_validator as checked

from lighthubert_hf.training.recipe import Section

from .recipe import FineTuningRecipe, LabelledDataSection


class TranscribedDataSection(LabelledDataSection):
    """Speech with transcripts; every source names its `text_column`."""

    synthetic_minutes: PositiveFloat | None = Field(
        None, description="instead of sources and evaluation: minutes of synthetic speech, made at the start"
    )
    vocabulary: str | None = Field(
        None,
        description="folder or Hub id whose tokenizer to use (equal to model.path: its head is kept as well); "
        "None: the characters of the transcripts",
    )

    @property
    def synthetic(self) -> str | None:
        return None if self.synthetic_minutes is None else "synthetic_minutes"


class DecodingSection(Section):
    """How the final scores are decoded: greedily, or by a prefix beam search with an optional KenLM."""

    kind: Literal["greedy", "beam"] = "greedy"
    beam_width: PositiveInt = 32
    language_model: str | None = Field(None, description="a KenLM file, .arpa or binary")
    language_model_weight: NonNegativeFloat = 0.5
    word_bonus: float = 1.0

    @checked(mode="after")
    def _language_model_is_used(self):
        if self.language_model is not None and self.kind == "greedy":
            raise ValueError("decoding.language_model needs decoding.kind=beam")
        return self


class CtcRecipe(FineTuningRecipe):
    """Fine-tuning of a speech recogniser with CTC."""

    task: Literal["ctc"] = "ctc"
    data: TranscribedDataSection
    decoding: DecodingSection = DecodingSection()

"""The sections that recipes of several kinds share, and the types of their values."""

import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, field_validator
from pydantic import model_validator as checked

# Strict, or `true` would be 1 and "3" a number; rates are not, because YAML reads 1e-4 as a string.
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Share
ChannelChoice = Literal["mean", "split"] | NonNegativeInt


class Section(BaseModel):
    """Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def variant(cls, data: dict[str, Any]) -> type["Section"]:
        """The class that `data` are to be read as, where there are several of a kind."""
        return cls


class Recipe(Section):
    """What every recipe has. A kind says in which folder of `training/recipes/` its shipped ones are."""

    shipped_in: ClassVar[str]

    name: str
    description: str = ""
    output_dir: str
    seed: NonNegativeInt = 0


class SourceSection(Section):
    """One source of audio, see `AudioSource`."""

    path: str = Field(description="a Hub id, a folder, a file, a glob or a URL")
    split: str = "train"
    config_name: str | None = None
    audio_column: str | None = Field(None, description="None: the only one; a.b is the field b of the column a")
    text_column: str | None = None
    channel: ChannelChoice = Field(
        "mean", description="of recordings with several: their mean, the number of one, or each as an example (split)"
    )
    allow_paths: tuple[str, ...] = Field(
        (), description="folders and URLs outside the data set that its rows may name files of"
    )
    weight: PositiveFloat = 1.0

    @field_validator("path", mode="before")
    @classmethod
    def _paths_are_text(cls, value):
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class SubnetSection(Section):
    """One architecture, see `Subnet`."""

    hidden_size: PositiveInt
    num_attention_heads: list[PositiveInt]
    intermediate_size: list[PositiveInt]
    conv_dim: list[PositiveInt] | None = None


class OptimizerSection(Section):
    """AdamW; biases and norms are not decayed."""

    lr: PositiveFloat = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat | None = 10.0


class ScheduleSection(Section):
    """Learning rate over the steps; shares of all steps, see `learning_rate_scale`."""

    kind: Literal["tri_stage", "linear", "cosine", "trapezoid", "inverse_sqrt"] = "tri_stage"
    warmup: Share = 0.03
    hold: Share = Field(
        0.9,
        description="share of steps between warm-up and the last decline; not of 'linear' and 'cosine', which decline "
        "from the warm-up on",
    )
    initial_scale: Share = 0.01
    final_scale: Share = 0.05

    @checked(mode="after")
    def _fits(self):
        if self.kind not in ("linear", "cosine") and self.warmup + self.hold > 1:
            raise ValueError(f"schedule.warmup + schedule.hold must be at most 1, got {self.warmup + self.hold:g}")
        if self.kind == "tri_stage" and not self.final_scale:
            raise ValueError("schedule.final_scale must be above 0 for 'tri_stage', which decays exponentially")
        return self


class CheckpointSection(Section):
    every: PositiveInt = 5000
    keep: PositiveInt = 2


class LoggingSection(Section):
    every: PositiveInt = 100
    trackers: list[Literal["tensorboard", "wandb"]] = []
    project: str = "lighthubert"


class HubSection(Section):
    """Push every checkpoint's model to a Hub repo while training goes on."""

    repo_id: str
    private: bool = True

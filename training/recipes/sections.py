"""The sections that recipes of several kinds share, and the types of their values."""

import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic import model_validator as checked

# Every number has an upper bound, far above what is of use: a mistyped one beyond would fill the memory or never end.
# Integers are strict, or `true` would be 1 and "3" a number; others are not, because YAML reads 1e-4 as a string.
PositiveInt = Annotated[int, Field(gt=0, le=10**9, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**9, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Share
Size = Annotated[int, Field(gt=0, le=65_536, strict=True)]  # of a layer
Depth = Annotated[int, Field(gt=0, le=1_000, strict=True)]
Small = Annotated[int, Field(gt=0, le=10_000, strict=True)]  # what is held at once, or repeated within a step
Few = Annotated[int, Field(ge=0, le=10_000, strict=True)]
Workers = Annotated[int, Field(ge=0, le=256, strict=True)]
Speakers = Annotated[int, Field(gt=0, le=6, strict=True)]  # the loss tries all their orders
Seed = Annotated[int, Field(ge=0, le=2**32 - 1, strict=True)]  # NumPy's largest
Seconds = Annotated[float, Field(gt=0, le=86_400)]  # of a clip, a batch: a day is 5.5 GB
Minutes = Annotated[float, Field(gt=0, le=10_000)]  # of synthetic speech: 20 GB


def _bounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a model's config, whatever they are called: numbers as large as sizes can be."""
    waiting = list(fields.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, (list, tuple)):
            waiting += [(name, item) for item in value]
        elif isinstance(value, (int, float)):
            largest = 1_000 if "layers" in str(name) else 2**20
            if not -(2**20) <= value <= largest:
                raise ValueError(f"{name} of a model's config must be at most {largest:,}, got {value!r}")
    return fields


ModelConfig = Annotated[dict[str, Any], AfterValidator(_bounded)]
ChannelChoice = Literal["mean", "split"] | Annotated[int, Field(ge=0, le=1_023, strict=True)]


def _path_text(value: Any) -> Any:
    """A path as text; `~` is the home folder, also where no shell replaced it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


# A folder, a file or what else has a name.
PathText = Annotated[str, BeforeValidator(_path_text)]


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
    output_dir: PathText
    seed: Seed = 0


class ReadingSection(Section):
    """How audio is found and read wherever a data set is named, see `AudioSource`."""

    config_name: str | None = None
    audio_column: str | None = Field(None, description="None: the only one; a.b is the field b of the column a")
    channel: ChannelChoice = Field(
        "mean", description="of recordings with several: their mean, the number of one, or each as an example (split)"
    )
    allow_paths: tuple[str, ...] = Field(
        (), description="folders and URLs outside the data set that its rows may name files of"
    )


class SourceSection(ReadingSection):
    """One source of audio, see `AudioSource`."""

    path: PathText = Field(description="a Hub id, a folder, a file, a glob or a URL")
    split: str = "train"
    text_column: str | None = None
    weight: PositiveFloat = 1.0


class SubnetSection(Section):
    """One architecture, see `Subnet`."""

    hidden_size: Size
    num_attention_heads: list[Size] = Field(max_length=1_000)
    intermediate_size: list[Size] = Field(max_length=1_000)
    conv_dim: list[Size] | None = Field(None, max_length=1_000)


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
    keep: Small = 2


class LoggingSection(Section):
    every: PositiveInt = 100
    trackers: list[Literal["tensorboard", "wandb"]] = []
    project: str = "lighthubert"


class HubSection(Section):
    """Push every checkpoint's model to a Hub repo while training goes on."""

    repo_id: str
    private: bool = True

    @field_validator("repo_id")
    @classmethod
    def _can_be_a_repository(cls, value):
        from lighthubert_hf.hub.card import is_repo_name  # imports transformers

        if not is_repo_name(value):
            raise ValueError(f"hub.repo_id must be OWNER/NAME, of letters, digits and -, _ or ., got {value!r}")
        return value

"""The recipe of one stage of distillation."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic import model_validator as checked

from lighthubert_hf.model.search_space import SearchSpace
from lighthubert_hf.training.distillation.objectives.armhubert import ArmHubertObjectiveSection
from lighthubert_hf.training.distillation.objectives.deep_targets import DeepTargetsSection
from lighthubert_hf.training.distillation.objectives.distilhubert import DistilHubertObjectiveSection
from lighthubert_hf.training.distillation.objectives.dphubert import DPHubertObjectiveSection
from lighthubert_hf.training.distillation.objectives.front_end import FrontEndObjectiveSection
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection
from lighthubert_hf.training.recipes.sections import (
    CheckpointSection,
    Depth,
    Few,
    HubSection,
    LoggingSection,
    Minutes,
    ModelConfig,
    NonNegativeFloat,
    NonNegativeInt,
    OptimizerSection,
    PathText,
    PositiveFloat,
    PositiveInt,
    Probability,
    Recipe,
    ScheduleSection,
    Seconds,
    Section,
    Share,
    Size,
    Small,
    SourceSection,
    SubnetSection,
    Workers,
)


class TeacherSection(Section):
    """The frozen model to learn from: any HuBERT, wav2vec2, WavLM or data2vec-audio."""

    path: PathText | None = Field(None, description="Hub id or folder")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    random_config: ModelConfig | None = Field(
        None,
        description="instead of `path`: HubertConfig fields of a randomly initialised teacher, to try a recipe out",
    )

    @checked(mode="after")
    def _one_source(self):
        if (self.path is None) == (self.random_config is None):
            raise ValueError("give exactly one of teacher.path and teacher.random_config")
        return self


class SpaceSection(Section):
    """The choices of a supernet, see `SearchSpace`."""

    hidden_size: list[Size] = Field(max_length=1_000)
    num_attention_heads: list[Size] = Field(max_length=1_000)
    ffn_ratio: list[Annotated[float, Field(gt=0, le=1_000)]] = Field(max_length=1_000)
    num_hidden_layers: list[Depth] = Field(max_length=1_000)
    conv_dim: list[Size | list[Size]] | None = Field(
        None,
        max_length=1_000,
        description="channels of every convolution of the front end, or a list of them for each; None: no choice",
    )

    @field_validator("conv_dim")
    @classmethod
    def _are_choices(cls, value):
        replace(SearchSpace.small(), conv_dim=value)
        return value


Part = Literal["heads", "ffn", "channels", "width"]


class OrderSection(Section):
    """Put first what matters most to the start's own predictions, measured on training audio.

    Narrow subnets take the first of everything. The whole network's function stays as it is.
    """

    seconds: Seconds = Field(60.0, description="of training audio to measure on")
    parts: list[Part] = Field(
        ["heads", "ffn", "channels"],
        min_length=1,
        description="attention heads, FFN units, channels of the front end (if there is a choice of them), and the "
        "width of the stream, as far as the groups of the positional convolution stay together",
    )
    probes: Small = Field(4, description="random directions in which the predictions' change is measured")


class StudentSection(Section):
    """What is trained: a supernet, or, with `subnet` or without any space, a static model."""

    init: PathText = Field(
        "teacher", description="'teacher' (its weights), 'random', or a LightHuBERT folder or Hub id"
    )
    revision: str | None = None
    search_space: Literal["small", "base", "small_elastic", "base_elastic", "teacher"] | SpaceSection | None = Field(
        "teacher",
        description="'teacher': choices that follow from the teacher's sizes (and `config`'s), or, of a folder as "
        "`init`, those stored with it; None: none but those stored with `init`",
    )
    config: ModelConfig = Field(
        default_factory=dict, description="LightHubertConfig fields that differ from the teacher's, or from `init`'s"
    )
    subnet: Literal["smallest", "default", "largest"] | SubnetSection | None = Field(
        None, description="train only this subnet, extracted from `init` beforehand"
    )
    freeze_front_end: bool = False
    fit_head_on: Seconds | None = Field(
        None,
        description="seconds of training audio on which the prediction head is fitted by least squares first, which a "
        "student that starts as its teacher needs: a random head undoes in the first steps what the weights know",
    )
    order_channels_on: Seconds | None = Field(
        None,
        description="seconds of training audio on which the front end's channels are ordered first, by what they do "
        "to the projected features",
    )
    order_on: OrderSection | None = Field(None, description="order heads, FFN units, channels by importance first")

    @checked(mode="after")
    def _nothing_random_is_frozen(self):
        if self.freeze_front_end and self.init == "random":
            raise ValueError("student.freeze_front_end would keep a random front end: set student.init=teacher")
        return self

    @checked(mode="after")
    def _order_of_something(self):
        if self.order_on and self.init == "random":
            raise ValueError("student.order_on would order random weights: set student.init=teacher")
        if self.order_on and self.order_channels_on and "channels" in self.order_on.parts:
            raise ValueError(
                "student.order_on and student.order_channels_on would both order the channels: take one away, or "
                "leave channels out of student.order_on.parts"
            )
        return self


ObjectiveSection = Annotated[
    LightHubertObjectiveSection
    | DPHubertObjectiveSection
    | ArmHubertObjectiveSection
    | DistilHubertObjectiveSection
    | FrontEndObjectiveSection,
    Field(discriminator="name"),
]


class MaskingSection(Section):
    """Time masks of the student's features, as in wav2vec 2.0."""

    probability: Probability = 0.65
    length: Small = 10
    min_masks: Few = 2


Knob = Literal["ffn_ratio", "num_attention_heads", "hidden_size", "num_hidden_layers", "conv_dim"]


class PhaseSection(Section):
    """From `from_step` on, the knobs in `open` vary; the others stay at their largest (progressive shrinking)."""

    from_step: NonNegativeInt
    open: list[Knob]


class SubspaceSection(Section):
    """Some of the choices of the search space, and how often it is drawn from; what is left out is not restricted."""

    hidden_size: list[Size] | None = None
    num_attention_heads: list[Size] | None = None
    ffn_ratio: list[PositiveFloat] | None = None
    num_hidden_layers: list[Depth] | None = None
    weight: PositiveFloat = 1.0


class SamplerSection(Section):
    """Which subnets a step trains."""

    kind: Literal["largest", "random", "sandwich"] = "random"
    num_random: Small = Field(1, description="random subnets per step (of 'random' and 'sandwich')")
    in_place_weight: Share = Field(
        0.0,
        description="share of a subnet's loss that is its distance to the largest subnet's prediction ('sandwich')",
    )
    phases: list[PhaseSection] = Field([])
    subspaces: list[SubspaceSection] = Field(
        [], description="draw random subnets from one of these, instead of from the whole space"
    )
    spread: PositiveFloat | None = Field(
        None,
        description="draw all knobs of a subnet near one share of the way from smallest to largest, this far off it "
        "(standard deviation; 0.15 keeps proportions, 1 hardly); None: each knob on its own",
    )
    width_exponent: Annotated[float, Field(ge=-100, le=100)] = Field(
        0.0,
        description="a subnet's loss counts as the share its width is of the largest, to this power: above 0 for the "
        "wide, below 0 for the narrow",
    )

    @checked(mode="after")
    def _consistent(self):
        if self.in_place_weight and self.kind != "sandwich":
            raise ValueError("sampler.in_place_weight needs sampler.kind=sandwich, which trains the largest subnet")
        starts = [phase.from_step for phase in self.phases]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError(f"sampler.phases must start at step 0 and ascend, got from_step {starts}")
        if self.phases and self.subspaces:
            raise ValueError("sampler.phases and sampler.subspaces both restrict the space: give one of them")
        return self


class StreamingSection(Section):
    """Some steps train what a `StreamingEncoder` computes: chunks that see so much on either side, and no more.

    One chunk length; left and right context are drawn anew in each such step. The other steps hear whole utterances.
    """

    share: Share = Field(0.5, description="of the steps")
    chunk_seconds: Seconds = 0.32
    left_seconds: list[NonNegativeFloat] = Field([1.28, 2.56], min_length=1, description="draw one of these")
    right_seconds: list[NonNegativeFloat] = Field([0.0, 0.08, 0.32], min_length=1, description="draw one of these")


def _holding_a_crop(section, name: str):
    if section.batch_seconds < section.crop_seconds:
        raise ValueError(
            f"{name}.batch_seconds ({section.batch_seconds:g}) must hold at least one crop of {name}.crop_seconds "
            f"({section.crop_seconds:g})"
        )
    return section


class DataSection(Section):
    """The training stream, see `training_loader`. `batch_seconds` is per process and forward."""

    sources: list[SourceSection] = Field([])
    synthetic_minutes: Minutes | None = Field(
        None, description="instead of `sources`: minutes of synthetic speech, made at the start, to try a recipe out"
    )
    batch_seconds: Seconds = 60.0
    crop_seconds: Seconds = 15.6
    min_seconds: Seconds = 0.5
    num_workers: Workers = 2
    window_size: Annotated[int, Field(gt=0, le=10**6, strict=True)] = 256
    shuffle_window: PositiveInt = 1000
    num_open_shards: Small = 4
    equal_lengths: bool | None = Field(
        None, description="crop a batch to its shortest row; None: if padding changes the teacher's features"
    )
    max_broken_share: Share = 0.05

    @checked(mode="after")
    def _one_kind(self):
        if bool(self.sources) == (self.synthetic_minutes is not None):
            raise ValueError("give exactly one of data.sources and data.synthetic_minutes")
        return _holding_a_crop(self, "data")


class ValidationSection(Section):
    """Loss of the smallest, default, largest and a few random subnets on held-out audio."""

    sources: list[SourceSection] = Field([], description="empty: the validation split of synthetic speech")
    every: PositiveInt = 5000
    batch_seconds: Seconds = 60.0
    crop_seconds: Seconds = 15.6
    max_examples: PositiveInt | None = 500
    num_random: Few = 3

    @checked(mode="after")
    def _holds_a_crop(self):
        return _holding_a_crop(self, "validation")


class TrainingSection(Section):
    steps: PositiveInt
    accumulation: Small = Field(1, description="batches per process and optimiser step")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    max_skipped_in_a_row: PositiveInt = Field(100, description="stop after this many non-finite steps in a row")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value):
        return "no" if value is False else value  # YAML reads a bare `no` as false


class AveragingSection(Section):
    """The finished model holds an average of the weights along the last steps, see `WeightAverage`."""

    kind: Literal["uniform", "ema"] = "uniform"
    share: Share = Field(0.2, gt=0, description="of all steps, at the end, in which weights count")
    every: PositiveInt = Field(1, description="steps from one that counts to the next")
    decay: Share = Field(0.99, lt=1, description="'ema' only: what is kept of the average when weights come in")


class DistillationRecipe(Recipe):
    """One stage of distillation."""

    shipped_in = "distillation"

    teacher: TeacherSection
    student: StudentSection = StudentSection()
    objective: ObjectiveSection = LightHubertObjectiveSection()
    deep_targets: DeepTargetsSection | None = None
    masking: MaskingSection | None = MaskingSection()
    sampler: SamplerSection = SamplerSection()
    streaming: StreamingSection | None = None
    data: DataSection
    validation: ValidationSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    averaging: AveragingSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    hub: HubSection | None = None

    @checked(mode="after")
    def _consistent(self):
        if self.objective.name == "armhubert" and self.masking is None:
            raise ValueError("objective armhubert learns from masked audio: give the section masking")
        if self.objective.name == "lighthubert" and self.masking is None and not self.objective.unmasked_weight:
            raise ValueError("without masking no frame counts: set objective.unmasked_weight above 0")
        if self.student.fit_head_on and self.objective.name != "lighthubert":
            raise ValueError(
                f"student.fit_head_on fits the head of objective lighthubert; leave it out for {self.objective.name}"
            )
        if self.objective.name == "front_end" and self.student.freeze_front_end:
            raise ValueError("objective front_end trains the front end: set student.freeze_front_end=false")
        if self.objective.name == "front_end" and self.masking is not None:
            raise ValueError("objective front_end learns from unmasked audio: set masking to null")
        if self.objective.name == "front_end" and self.streaming:
            raise ValueError("objective front_end runs no layer, which context could matter to: remove streaming")
        if self.deep_targets and self.objective.name != "lighthubert":
            raise ValueError(
                f"deep_targets go before objective lighthubert; {self.objective.name} has targets of its own: remove "
                "the section deep_targets"
            )
        order = self.student.order_on
        if order and "width" in order.parts and self.objective.name == "front_end" and self.student.init != "teacher":
            raise ValueError(
                "objective front_end knows an ordered stream of the teacher's weights only: leave width out of "
                "student.order_on.parts, or set student.init=teacher"
            )
        if order and "width" in order.parts and self.objective.name not in ("lighthubert", "front_end"):
            raise ValueError(
                f"objective {self.objective.name} compares the stream with the teacher's, in the teacher's order: "
                "leave width out of student.order_on.parts"
            )
        if self.validation and not self.validation.sources and self.data.synthetic_minutes is None:
            raise ValueError("validation.sources is empty; name held-out audio or remove the section validation")
        return self

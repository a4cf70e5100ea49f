"""Recipes: everything one stage of distillation needs to know, as validated YAML.

A recipe is a YAML file whose sections are the models below. `load_recipe` reads one (shipped or of the user's own),
applies `key=value` overrides, and turns any mistake into one line that names the key and the remedy.
"""

import difflib
import types
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, ValidationError, field_validator
from pydantic import model_validator as checked

# Strict, or `true` would be 1 and "3" a number; rates are not, because YAML reads 1e-4 as a string.
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Share


class Section(BaseModel):
    """Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TeacherSection(Section):
    """The frozen model to learn from: any HuBERT, wav2vec2, WavLM or data2vec-audio."""

    path: str | None = Field(None, description="Hub id or folder")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    random_config: dict[str, Any] | None = Field(
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

    hidden_size: list[PositiveInt]
    num_attention_heads: list[PositiveInt]
    ffn_ratio: list[PositiveFloat]
    num_hidden_layers: list[PositiveInt]


class SubnetSection(Section):
    """One architecture, see `Subnet`."""

    hidden_size: PositiveInt
    num_attention_heads: list[PositiveInt]
    intermediate_size: list[PositiveInt]


class StudentSection(Section):
    """What is trained: a supernet, or, with `subnet` or without any space, a static model."""

    init: str = Field("teacher", description="'teacher' (its weights), 'random', or a LightHuBERT folder or Hub id")
    revision: str | None = None
    search_space: Literal["small", "base"] | SpaceSection | None = Field(
        None, description="None: the space stored with `init`"
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="LightHubertConfig fields that differ from the teacher's, or from `init`'s"
    )
    subnet: Literal["smallest", "default", "largest"] | SubnetSection | None = Field(
        None, description="train only this subnet, extracted from `init` beforehand"
    )
    freeze_feature_encoder: bool = False

    @checked(mode="after")
    def _nothing_random_is_frozen(self):
        if self.freeze_feature_encoder and self.init == "random":
            raise ValueError("student.freeze_feature_encoder would keep a random front end: set student.init=teacher")
        return self


class LightHubertObjectiveSection(Section):
    name: Literal["lighthubert"] = "lighthubert"
    num_target_layers: PositiveInt = 8
    layer_norm: Literal["none", "instance", "layer"] = "none"
    masked_weight: NonNegativeFloat = 1.0
    unmasked_weight: NonNegativeFloat = 1.0

    @checked(mode="after")
    def _some_weight(self):
        if self.masked_weight == self.unmasked_weight == 0:
            raise ValueError("masked_weight and unmasked_weight cannot both be 0")
        return self


class DPHubertObjectiveSection(Section):
    name: Literal["dphubert"]
    layer_groups: list[list[NonNegativeInt]] = [[0], [4, 8, 12]]
    cosine_weight: NonNegativeFloat = 1.0


class ArmHubertObjectiveSection(Section):
    name: Literal["armhubert"]
    last_layer_weight: PositiveFloat = 1.0
    other_layers_weight: NonNegativeFloat = 0.1


class DistilHubertObjectiveSection(Section):
    name: Literal["distilhubert"]
    layers: list[PositiveInt] = [4, 8, 12]
    cosine_weight: NonNegativeFloat = 1.0


ObjectiveSection = Annotated[
    LightHubertObjectiveSection | DPHubertObjectiveSection | ArmHubertObjectiveSection | DistilHubertObjectiveSection,
    Field(discriminator="name"),
]


class MaskingSection(Section):
    """Time masks of the student's features, as in wav2vec 2.0."""

    probability: Probability = 0.65
    length: PositiveInt = 10
    min_masks: NonNegativeInt = 2


Knob = Literal["ffn_ratio", "num_attention_heads", "hidden_size", "num_hidden_layers"]


class PhaseSection(Section):
    """From `from_step` on, the knobs in `open` vary; the others stay at their largest (progressive shrinking)."""

    from_step: NonNegativeInt
    open: list[Knob]


class SamplerSection(Section):
    """Which subnets a step trains."""

    kind: Literal["largest", "random", "sandwich"] = "random"
    num_random: PositiveInt = Field(1, description="random subnets per step (of 'random' and 'sandwich')")
    in_place_weight: Share = Field(
        0.0,
        description="share of a subnet's loss that is its distance to the largest subnet's prediction ('sandwich')",
    )
    phases: list[PhaseSection] = []

    @checked(mode="after")
    def _consistent(self):
        if self.in_place_weight and self.kind != "sandwich":
            raise ValueError("sampler.in_place_weight needs sampler.kind=sandwich, which trains the largest subnet")
        starts = [phase.from_step for phase in self.phases]
        if starts and (starts[0] != 0 or starts != sorted(set(starts))):
            raise ValueError(f"sampler.phases must start at step 0 and ascend, got from_step {starts}")
        return self


class SourceSection(Section):
    """One source of audio, see `AudioSource`."""

    path: str
    split: str = "train"
    config_name: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    weight: PositiveFloat = 1.0


def _holding_a_crop(section, name: str):
    if section.batch_seconds < section.crop_seconds:
        raise ValueError(
            f"{name}.batch_seconds ({section.batch_seconds:g}) must hold at least one crop of {name}.crop_seconds "
            f"({section.crop_seconds:g})"
        )
    return section


class DataSection(Section):
    """The training stream, see `training_loader`. `batch_seconds` is per process and forward."""

    sources: list[SourceSection] = []
    synthetic_minutes: PositiveFloat | None = Field(
        None, description="instead of `sources`: minutes of synthetic speech, made at the start, to try a recipe out"
    )
    batch_seconds: PositiveFloat = 60.0
    crop_seconds: PositiveFloat = 15.6
    min_seconds: PositiveFloat = 0.5
    num_workers: NonNegativeInt = 2
    window_size: PositiveInt = 256
    shuffle_window: PositiveInt = 1000
    num_open_shards: PositiveInt = 4
    equal_lengths: bool | None = Field(
        None, description="crop a batch to its shortest row; None: if the teacher needs it"
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
    batch_seconds: PositiveFloat = 60.0
    crop_seconds: PositiveFloat = 15.6
    max_examples: PositiveInt | None = 500
    num_random: NonNegativeInt = 3

    @checked(mode="after")
    def _holds_a_crop(self):
        return _holding_a_crop(self, "validation")


class OptimizerSection(Section):
    """AdamW; biases and norms are not decayed."""

    lr: PositiveFloat = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat | None = 10.0


class ScheduleSection(Section):
    """Learning rate over the steps; shares of all steps."""

    kind: Literal["tri_stage", "linear"] = "tri_stage"
    warmup: Share = 0.03
    hold: Share = Field(0.9, description="'tri_stage' only: share of steps at the full rate")
    initial_scale: Share = 0.01
    final_scale: Share = 0.05

    @checked(mode="after")
    def _fits(self):
        if self.kind == "tri_stage" and self.warmup + self.hold > 1:
            raise ValueError(f"schedule.warmup + schedule.hold must be at most 1, got {self.warmup + self.hold:g}")
        if self.kind == "tri_stage" and not self.final_scale:
            raise ValueError("schedule.final_scale must be above 0 for 'tri_stage', which decays exponentially")
        return self


class TrainingSection(Section):
    steps: PositiveInt
    accumulation: PositiveInt = Field(1, description="batches per process and optimiser step")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    max_skipped_in_a_row: PositiveInt = Field(100, description="stop after this many non-finite steps in a row")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value):
        return "no" if value is False else value  # YAML reads a bare `no` as false


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


class Recipe(Section):
    """One stage of distillation."""

    name: str
    description: str = ""
    output_dir: str
    seed: NonNegativeInt = 0
    teacher: TeacherSection
    student: StudentSection = StudentSection()
    objective: ObjectiveSection = LightHubertObjectiveSection()
    masking: MaskingSection | None = MaskingSection()
    sampler: SamplerSection = SamplerSection()
    data: DataSection
    validation: ValidationSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    hub: HubSection | None = None

    @checked(mode="after")
    def _consistent(self):
        if self.objective.name == "armhubert" and self.masking is None:
            raise ValueError("objective armhubert learns from masked audio: give the section masking")
        if self.objective.name == "lighthubert" and self.masking is None and not self.objective.unmasked_weight:
            raise ValueError("without masking no frame counts: set objective.unmasked_weight above 0")
        if self.validation and not self.validation.sources and self.data.synthetic_minutes is None:
            raise ValueError("validation.sources is empty; name held-out audio or remove the section validation")
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=Section)


def shipped_recipes(model: type[Section] = Recipe) -> list[str]:
    """Names of the recipes of a kind that come with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _shipped(model).iterdir() if item.name.endswith(".yaml"))


def _shipped(model: type[Section]) -> Traversable:
    kind = "distillation" if model is Recipe else "finetuning"
    return resources.files("lighthubert_hf.training.recipes") / kind


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), model: type[AnyRecipe] = Recipe) -> AnyRecipe:
    """Read a recipe and apply overrides.

    Args:
        path_or_name: A YAML file, or the name of a shipped recipe.
        overrides: `key=value`, keys dotted (`optimizer.lr=1e-4`, `data.sources.0.path=/audio`), values in YAML.
        model: The kind of recipe.

    Raises:
        FileNotFoundError: Neither a file nor a shipped recipe.
        ValueError: Not YAML, an unknown key, a wrong value; the message is one line.
    """
    text, origin = _read(path_or_name, model)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {origin} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"recipe {origin} must be a mapping with the keys {list(model.model_fields)}")
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, model)


def parse_recipe(data: dict[str, Any], model: type[AnyRecipe] = Recipe) -> AnyRecipe:
    """A recipe from plain data; ValueError with one line for the first mistake."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError(_one_line(error, model)) from None


def _read(path_or_name: str | Path, model: type[Section]) -> tuple[str, str]:
    path = Path(path_or_name)
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    shipped = shipped_recipes(model)
    if str(path_or_name) in shipped:
        return (_shipped(model) / f"{path_or_name}.yaml").read_text(encoding="utf-8"), str(path_or_name)
    raise FileNotFoundError(
        f"no recipe {str(path_or_name)!r}: neither a file nor one of {', '.join(shipped)}"
        f"{_hint(str(path_or_name), shipped)}"
    )


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"an override is written key=value (for example optimizer.lr=1e-4), got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of override {key} is not valid YAML: {' '.join(str(error).split())}") from None
    *parents, last = key.split(".")
    place: Any = data
    for depth, part in enumerate([*parents, last]):
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                name = ".".join([*parents, last][:depth])
                raise ValueError(f"override {key}: {name} is a list of {len(place)}; index it from 0, got {part!r}")
            part = int(part)
        elif not isinstance(place, dict):
            name = ".".join([*parents, last][:depth])
            raise ValueError(f"override {key}: {name} is {place!r}, which has no keys; replace it whole")
        if depth == len(parents):
            place[part] = value
        else:
            if isinstance(place, dict) and place.get(part) is None:
                place[part] = {}
            place = place[part]


def _one_line(error: ValidationError, model: type[Section]) -> str:
    """The first mistake in one line: the key, what is allowed, the nearest thing that is."""
    errors = error.errors()
    first = next(
        (e for e in errors if e["type"] == "extra_forbidden"), errors[0]
    )  # a misspelt key is also a missing one
    if isinstance(first["input"], dict):  # of a union of plain values and a section, a mapping meant the section
        key, _ = _locate(first["loc"], model)
        first = max((e for e in errors if _locate(e["loc"], model)[0].startswith(key)), key=lambda e: len(e["loc"]))
    key, section = _locate(first["loc"], model)
    kind, context, message = first["type"], first.get("ctx", {}), first["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # our own checks: they name the keys themselves
        return message
    if kind == "extra_forbidden":
        *parents, last = key.split(".")
        where = f" in {'.'.join(parents)}" if parents else ""
        allowed = list(section.model_fields)
        return f"unknown recipe key {key!r}{_hint(last, allowed, parents)}; allowed{where}: {', '.join(allowed)}"
    if kind in ("missing", "union_tag_not_found"):
        key = key if kind == "missing" else f"{key}.name"
        return f"recipe key {key!r} is missing; give it a value in the file or as {key}=…"
    if kind == "union_tag_invalid":
        expected, value, key = context["expected_tags"], context["tag"], f"{key}.name"
    elif kind == "literal_error":
        expected, value = context["expected"], first["input"]
    else:
        return f"recipe key {key!r}: {message[0].lower()}{message[1:]}, got {first['input']!r}"
    return f"recipe key {key!r} must be one of {expected}, got {value!r}{_hint(str(value), expected.split(chr(39)))}"


def _locate(loc: tuple[str | int, ...], model: type[Section]) -> tuple[str, type[BaseModel]]:
    """Dotted key of an error's place, and the section it lies in.

    pydantic's places also hold tags for the members of unions it tried (`SpaceSection`, `dphubert`), left out here.
    """
    section, annotation, key = model, model, []
    for part in loc:
        members = _members(annotation)
        if len(members) > 1:
            tagged = [m for m in members if _is_section(m) and part in (m.__name__, *get_args(_annotation(m, "name")))]
            if not tagged:
                break
            annotation = tagged[0]
            continue
        key.append(str(part))
        if isinstance(part, int):
            annotation = get_args(members[0])[0]
            continue
        section = members[0] if _is_section(members[0]) else section
        annotation = _annotation(section, part)
        if annotation is None:
            break
    return ".".join(key), section


def _members(annotation: Any) -> list[Any]:
    """What an annotation allows, without None."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _annotation(section: type[BaseModel], name: str | int) -> Any:
    return section.model_fields[name].annotation if name in section.model_fields else None


def _hint(word: str, allowed: Sequence[str], parents: Sequence[str] = ()) -> str:
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {'.'.join([*parents, close[0]])!r}?" if close else ""

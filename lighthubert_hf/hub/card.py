"""Model cards: what is known about a model, as data, and the README that says exactly that.

A card is rendered from the model's `config.json` and a `CardFacts`; no live model is needed. What was not measured
is not mentioned. The facts travel with the model as `model_card.json`, so a card can be rendered again, for example
once the repository's name is known.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HubertConfig, PreTrainedConfig

from lighthubert_hf import __version__
from lighthubert_hf.costs.figures import human
from lighthubert_hf.costs.profiling import CLIP_SECONDS, shape
from lighthubert_hf.files import read_object
from lighthubert_hf.model.codebook import Codebook
from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.search_space import SearchSpace, Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .markdown import code, inline, one_line
from .picture import architecture_svg

FACTS_FILE = "model_card.json"
PICTURE_FILE = "architecture.svg"
TEMPLATE = Path(__file__).with_name("templates") / "model_card.md"
FAMILY_MARKS = ("<!-- subnets -->", "<!-- /subnets -->")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# How the Hub writes licences; https://huggingface.co/docs/hub/repositories-licenses lists them.
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")


@dataclasses.dataclass(frozen=True)
class Usage:
    """How a class of models is loaded and what its output is read from."""

    auto: str
    pipeline_tag: str
    output: str
    processor: str = "AutoFeatureExtractor"


_FEATURES = Usage("AutoModel", "feature-extraction", "model(**inputs).last_hidden_state  # (1, frames, channels)")
_USAGE = {
    "Model": _FEATURES,
    "ForPreTraining": _FEATURES,
    "ForCTC": Usage(
        "AutoModelForCTC",
        "automatic-speech-recognition",
        "processor.batch_decode(model(**inputs).logits.argmax(-1))",
        "AutoProcessor",
    ),
    "ForSequenceClassification": Usage(
        "AutoModelForAudioClassification",
        "audio-classification",
        "model.config.id2label[model(**inputs).logits.argmax(-1).item()]",
    ),
    "ForXVector": Usage("AutoModelForAudioXVector", "feature-extraction", "model(**inputs).embeddings"),
    "ForAudioFrameClassification": Usage(
        "AutoModelForAudioFrameClassification", "audio-classification", "model(**inputs).logits.sigmoid()"
    ),
}


def usage_of(config: PreTrainedConfig) -> Usage:
    """How the model that `config` belongs to is used, by the class it was saved from."""
    architecture = (config.architectures or ["LightHubertModel"])[0]
    head = architecture.removeprefix("Light").removeprefix("Hubert")
    if head not in _USAGE:
        raise ValueError(f"no card can be written for {architecture!r}; known heads: {sorted(_USAGE)}")
    return _USAGE[head]


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"{name} must be a finite number of at least 0 that was measured, got {value!r}; leave it out"
        )


def _check_text(name: str, value: Any, optional: bool = True) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise ValueError(f"{name} must be text, got {value!r}")


def _check_words(name: str, values: Any, printable: bool) -> None:
    """Several texts; `printable`: such as YAML and the Hub take as they are."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a list of texts, got {values!r}")
    for value in values:
        _check_text(f"each of {name}", value, optional=False)
        if printable and not (value.isprintable() and 0 < len(value) <= 100):
            raise ValueError(f"each of {name} must be one line of printable text, got {value[:100]!r}")


def _check_evaluations(results: Sequence[EvalResult]) -> None:
    """Numbers that are none, text that YAML alters, pairs that the Hub's `model-index` would merge under one name."""
    names = {}
    for result in results:
        for field, text in vars(result).items():
            if field not in ("metric_value", "dataset_args", "metric_args", "verified"):
                _check_text(f"{field} of an evaluation", text)
            if isinstance(text, str) and not text.isprintable():
                raise ValueError(f"{field} of an evaluation must be one line of printable text, got {text!r}")
        value = result.metric_value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"the {result.metric_type} of {result.dataset_name} is {value!r}; leave it out")
        name = (result.task_name, result.dataset_name)
        if names.setdefault(result.unique_identifier, name) != name:
            raise ValueError(
                f"{name[1]!r} and {names[result.unique_identifier][1]!r} are evaluations of the same task, data set, "
                "configuration, split and revision under two names; give them one"
            )


@dataclasses.dataclass(frozen=True)
class Latency:
    """A time, measured or predicted. The card says which, and never shows it without the machine and the command.

    Args:
        milliseconds_per_second: milliseconds of computing per second of audio.
        machine: where it was measured, for a reader who may have another one.
        command: how to measure it again.
        predicted: whether it was not measured but added up from times of the parts, as a search does.
    """

    milliseconds_per_second: float
    machine: str
    command: str
    predicted: bool = False

    def __post_init__(self):
        _check_number("milliseconds_per_second", self.milliseconds_per_second)
        for name in ("machine", "command"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"a latency needs its {name}, got {getattr(self, name)!r}; without it leave it out")


@dataclasses.dataclass(frozen=True)
class FamilyMember:
    """A published subnet, as its supernet's card lists it. `score_name` says what it was chosen by."""

    repo_id: str
    parameters: int
    macs_per_second: int
    score: float
    score_name: str = "distillation loss"

    def __post_init__(self):
        if not isinstance(self.repo_id, str) or not is_hub_id(self.repo_id):
            raise ValueError(f"a published subnet is called OWNER/NAME, got {self.repo_id!r}")
        _check_number("parameters", self.parameters)
        _check_number("macs_per_second", self.macs_per_second)
        if not isinstance(self.score, int | float) or not math.isfinite(self.score):
            raise ValueError(f"the score of {self.repo_id} must be a finite number, got {self.score!r}")
        _check_text("score_name", self.score_name, optional=False)


_TEXTS = ("loss_data", "teacher", "license", "supernet", "revision", "converted_from", "converted_revision",
          "package_version")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What is known about a model. Everything is optional, and what is missing is not in the card.

    Args:
        parameters: number of parameters.
        macs_per_second: multiply-accumulates per second of audio, as
            [`lighthubert_hf.costs.profiling.macs_per_second`] counts them.
        latency: measured time, or a predicted one.
        loss, loss_data: distillation loss, and what it was measured on, in words.
        teacher: the distilled model, a Hub id or a name.
        datasets: what it was distilled on, Hub ids or names.
        languages: ISO 639 codes of that speech.
        license: of the teacher's weights, carried on; an identifier the Hub knows, such as "apache-2.0", or a name.
        supernet, revision: what the subnet was cut from, a Hub id or a name, and the commit.
        converted_from, converted_revision: the checkpoint that the weights were converted from, a name or a Hub id,
            also as `owner/name:file`, and the commit.
        subnet: its architecture; by default what the config says.
        evaluations: results, which become the card's `model-index` metadata.
        family: subnets published from this supernet.
        tags: more tags for the Hub.
        package_version: version of this package that produced the model.

    Raises:
        ValueError: for a number that is negative, NaN or infinite, for what should be text and is none, and for
            evaluations that contradict each other.
    """

    parameters: int | None = None
    macs_per_second: int | None = None
    latency: Latency | None = None
    loss: float | None = None
    loss_data: str | None = None
    teacher: str | None = None
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    license: str | None = None
    supernet: str | None = None
    revision: str | None = None
    converted_from: str | None = None
    converted_revision: str | None = None
    subnet: Subnet | None = None
    evaluations: tuple[EvalResult, ...] = ()
    family: tuple[FamilyMember, ...] = ()
    tags: tuple[str, ...] = ()
    package_version: str = __version__

    def __post_init__(self):
        for name in ("parameters", "macs_per_second", "loss"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        for name in ("datasets", "languages", "tags"):
            _check_words(name, getattr(self, name), printable=name != "datasets")
        _check_evaluations(self.evaluations)
        for name in ("datasets", "languages", "evaluations", "family", "tags"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON, without what is not known."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, (), [])} | (
            {"subnet": self.subnet.to_dict()} if self.subnet else {}
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CardFacts":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: for keys or values that do not belong here.
        """
        data = dict(data)
        for name in ("evaluations", "family"):
            if not isinstance(data.get(name) or (), list | tuple) or any(
                not isinstance(item, Mapping) for item in data.get(name) or ()
            ):
                raise ValueError(f"{name} in these facts for a model card must be a list of objects")
        try:
            if data.get("latency") is not None:
                data["latency"] = Latency(**data["latency"])
            if data.get("subnet") is not None:
                data["subnet"] = Subnet.from_dict(data["subnet"])
            data["evaluations"] = tuple(_evaluation(item) for item in data.get("evaluations") or ())
            data["family"] = tuple(FamilyMember(**item) for item in data.get("family") or ())
            return cls(**data)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"these facts for a model card do not fit: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> "CardFacts":
        """Read a `model_card.json`."""
        remedy = "delete it or restore it"
        try:
            return cls.from_dict(read_object(path, remedy))
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}; {remedy}") from None


def _evaluation(data: Mapping[str, Any]) -> EvalResult:
    return EvalResult(**{key: value for key, value in data.items() if value is not None})


def is_hub_id(name: str | None) -> bool:
    """Whether `name` is one that a repository on the Hub can have (`owner/name`)."""
    if name is None or _HUB_ID.fullmatch(name) is None:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_repo_name(name: str | None) -> bool:
    """Whether it is one to publish under: `owner/name`, or a `name` of one's own."""
    return name is not None and is_hub_id(name if "/" in name else f"owner/{name}")


def read_config(data: Mapping[str, Any]) -> PreTrainedConfig:
    """The config that a `config.json` describes, if it is one that a card can be written for."""
    classes = {"lighthubert": LightHubertConfig, "hubert": HubertConfig}
    if data.get("model_type") not in classes:
        raise ValueError(
            f"model_type {data.get('model_type')!r} is not one of {sorted(classes)}; only these are published"
        )
    return classes[data["model_type"]].from_dict(dict(data))


def _layers(config: PreTrainedConfig) -> list[dict[str, int | None]]:
    """Heads, attention width, FFN units and window of every layer."""
    if isinstance(config, LightHubertConfig):
        shapes = [(*shape, config.head_dim) for shape in config.layer_shapes]
    else:
        head_dim = config.hidden_size // config.num_attention_heads
        shapes = [(config.num_attention_heads, config.intermediate_size, None, head_dim)] * config.num_hidden_layers
    return [
        {"heads": heads, "attention": heads * head_dim, "ffn": units, "window": window}
        for heads, units, window, head_dim in shapes
    ]


def plain_hubert(config: PreTrainedConfig) -> str:
    """How the model becomes a HuBERT of transformers: "direct" (one loads the folder as it is), "converted" (by
    `to_hubert()`, which pads and renames) or "impossible"."""
    if not isinstance(config, LightHubertConfig):
        return "direct"
    layers = _layers(config)
    convertible = usage_of(config).auto in ("AutoModel", "AutoModelForCTC", "AutoModelForAudioClassification")
    if config.search_space is not None or not convertible:
        return "impossible"
    if any(layer["window"] or layer["heads"] > config.num_plain_heads for layer in layers):
        return "impossible"
    same = not config.is_heterogeneous and layers[0]["attention"] == config.hidden_size
    return "direct" if same and config.architectures == ["LightHubertModel"] else "converted"


def metadata(config: PreTrainedConfig, facts: CardFacts, name: str) -> ModelCardData:
    """The card's YAML block. Only what has the form of a Hub id is listed as `base_model` or in `datasets`."""
    sources = (facts.supernet, _repository(facts.converted_from), facts.teacher)
    base = next((source for source in sources if is_hub_id(source)), None)
    datasets = [name for name in facts.datasets if is_hub_id(name)]
    kind = ["supernet"] if getattr(config, "search_space", None) else []
    known = facts.license is None or _is_license_id(facts.license)
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.license if known else "other",
        **({} if known else {"license_name": one_line(facts.license)}),
        library_name="transformers",
        pipeline_tag=usage_of(config).pipeline_tag,
        base_model=base,
        datasets=datasets or None,
        metrics=sorted({result.metric_type for result in facts.evaluations}) or None,
        tags=list(dict.fromkeys(["lighthubert", "hubert", "speech", *kind, *facts.tags])),
        model_name=name if facts.evaluations else None,
        eval_results=list(facts.evaluations) or None,
    )


def _is_license_id(text: str) -> bool:
    return _LICENSE_ID.fullmatch(text) is not None


def _source(name: str) -> str:
    """A model's name, or `owner/name:file`, linked if it is on the Hub."""
    repository = _repository(name)
    return f"[{inline(name)}](https://huggingface.co/{repository})" if is_hub_id(repository) else inline(name)


def _repository(source: str | None) -> str | None:
    """`owner/name` of `owner/name:file`; what is no such thing as it is."""
    return source and (source.partition(":")[0] if is_hub_id(source.partition(":")[0]) else source)


def _dataset(name: str) -> str:
    return f"[{inline(name)}](https://huggingface.co/datasets/{name})" if is_hub_id(name) else inline(name)


@cache
def _template() -> jinja2.Template:
    """Compiled once: that takes longer than writing a small model does, and every checkpoint has a card."""
    return jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))


def render_card(
    config: Mapping[str, Any], facts: CardFacts, repo_id: str | None = None, codebooks: Sequence[Codebook] = ()
) -> ModelCard:
    """The model card of a model.

    Args:
        config: the content of its `config.json`.
        facts: what else is known.
        repo_id: where it will be published; until that is known the examples say `PATH_OR_HUB_ID`.
        codebooks: of discrete units that lie beside it.

    Raises:
        ValueError: if the model is not a LightHuBERT or a HuBERT, or `repo_id` is no name of a repository.
    """
    model_config = read_config(config)
    if repo_id is not None and not is_repo_name(repo_id):
        raise ValueError(f"{repo_id!r} cannot be a repository; write OWNER/NAME")
    name = repo_id.split("/")[-1] if repo_id else "LightHuBERT"
    space = getattr(model_config, "search_space", None)
    subnet = facts.subnet
    if subnet is None and space is None and isinstance(model_config, LightHubertConfig):
        subnet = model_config.architecture
    strides = math.prod(model_config.conv_stride)
    data = metadata(model_config, facts, name)
    values = data.to_dict() | {
        "card_data": data.to_yaml(),
        "name": name,
        "repo_id": repo_id or "PATH_OR_HUB_ID",
        "facts": facts,
        "config": model_config,
        "layers": _layers(model_config),
        "space": SearchSpace.from_dict(space) if space else None,
        "is_custom": isinstance(model_config, LightHubertConfig),
        "frames_per_second": f"{SAMPLING_RATE / strides:g}",
        "family": family_section(facts.family),
        "plain": plain_hubert(model_config),
        "plain_class": (model_config.architectures or ["HubertModel"])[0].removeprefix("Light"),
        "usage": usage_of(model_config),
        "subnet_json": json.dumps(subnet.to_dict()) if subnet else None,
        "picture": PICTURE_FILE,
        "human": human,
        "clip_seconds": f"{CLIP_SECONDS:g}",
        "cell": inline,
        "code": code,
        "license": facts.license and (code if _is_license_id(facts.license) else inline)(facts.license),
        "source": _source,
        "dataset": _dataset,
        "codebooks": sorted(codebooks, key=lambda one: (one.layer, one.clusters)),
    }
    return ModelCard(_template().render(values))


def family_section(members: Sequence[FamilyMember]) -> str:
    """The table of a supernet's published subnets, between marks by which it can be found and replaced."""
    if not members:
        return ""
    rows = [
        f"| [{inline(member.repo_id)}](https://huggingface.co/{member.repo_id}) | {human(member.parameters)} "
        f"| {human(member.macs_per_second)} | {member.score:.4g} |"
        for member in members
    ]
    score = inline(members[0].score_name)
    head = [
        f"| model | parameters | multiply–accumulates per second of audio (clips of {CLIP_SECONDS:g} s) | {score} |",
        "|---|---|---|---|",
    ]
    return "\n".join([FAMILY_MARKS[0], "## Subnets", "", *head, *rows, FAMILY_MARKS[1]])


def with_family(text: str, members: Sequence[FamilyMember]) -> str:
    """A card with its table of subnets replaced, or put at its end if it has none."""
    start, end = (re.escape(mark) for mark in FAMILY_MARKS)
    section = family_section(members)
    found = re.search(f"{start}.*?{end}", text, re.DOTALL)
    if found:
        return text[: found.start()] + section + text[found.end() :]
    return f"{text.rstrip()}\n\n{section}\n"


def render_picture(config: Mapping[str, Any]) -> str:
    """The architecture as SVG."""
    return architecture_svg(**shape(read_config(config)))


def teacher_license(teacher: str, token: str | None = None) -> str | None:
    """The licence that a teacher's own card states, to be carried on; `None` if it has no card or states none.

    Args:
        teacher: a folder or a Hub id.
    """
    folder = Path(teacher)
    readme = folder / "README.md"
    if folder.is_dir():
        if not readme.is_file():
            return None
        try:
            card = ModelCard.load(readme, ignore_metadata_errors=True)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{readme} cannot be read ({reason}); restore it, or delete it") from None
    else:
        try:
            card = ModelCard.load(teacher, token=token, ignore_metadata_errors=True)
        except EntryNotFoundError:
            return None
    license, name = card.data.license, card.data.get("license_name")
    if license == "other" and name:
        license = name
    if isinstance(license, list):
        license = ", ".join(map(str, license))
    return one_line(license) if license else None

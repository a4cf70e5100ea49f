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
from huggingface_hub.errors import EntryNotFoundError
from transformers import HubertConfig, PreTrainedConfig

from lighthubert_hf import __version__
from lighthubert_hf.costs.figures import human
from lighthubert_hf.costs.profiling import CLIP_SECONDS
from lighthubert_hf.files import read_object
from lighthubert_hf.model.codebook import Codebook
from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.search_space import SearchSpace, Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .picture import architecture_svg

FACTS_FILE = "model_card.json"
PICTURE_FILE = "architecture.svg"
TEMPLATE = Path(__file__).with_name("templates") / "model_card.md"
FAMILY_MARKS = ("<!-- subnets -->", "<!-- /subnets -->")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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


def _check_evaluations(results: Sequence[EvalResult]) -> None:
    """Numbers that are none, text that YAML alters, pairs that the Hub's `model-index` would merge under one name."""
    names = {}
    for result in results:
        for field, text in vars(result).items():
            if isinstance(text, str) and not text.isprintable():
                raise ValueError(f"{field} of an evaluation must be one line of printable text, got {text!r}")
        if isinstance(result.metric_value, float) and not math.isfinite(result.metric_value):
            raise ValueError(
                f"the {result.metric_type} of {result.dataset_name} is {result.metric_value}; leave it out"
            )
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
        license: of the teacher's weights, carried on; an identifier the Hub knows, such as "apache-2.0".
        supernet, revision: what the subnet was cut from, a Hub id or a name, and the commit.
        converted_from, converted_revision: the checkpoint that the weights were converted from, a name or a Hub id,
            also as `owner/name:file`, and the commit.
        subnet: its architecture; by default what the config says.
        evaluations: results, which become the card's `model-index` metadata.
        family: subnets published from this supernet.
        tags: more tags for the Hub.
        package_version: version of this package that produced the model.

    Raises:
        ValueError: for a number that is negative, NaN or infinite, and for evaluations that contradict each other.
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
        try:
            if data.get("latency") is not None:
                data["latency"] = Latency(**data["latency"])
            if data.get("subnet") is not None:
                data["subnet"] = Subnet.from_dict(data["subnet"])
            data["evaluations"] = tuple(_evaluation(item) for item in data.get("evaluations", ()))
            data["family"] = tuple(FamilyMember(**item) for item in data.get("family", ()))
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"these facts for a model card do not fit: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> "CardFacts":
        """Read a `model_card.json`."""
        return cls.from_dict(read_object(path, "delete it or restore it"))


def _evaluation(data: Mapping[str, Any]) -> EvalResult:
    return EvalResult(**{key: value for key, value in data.items() if value is not None})


def is_hub_id(name: str | None) -> bool:
    """Whether `name` has the form of a repository on the Hub (`owner/name`)."""
    return name is not None and _HUB_ID.fullmatch(name) is not None


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
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.license,
        library_name="transformers",
        pipeline_tag=usage_of(config).pipeline_tag,
        base_model=base,
        datasets=datasets or None,
        metrics=sorted({result.metric_type for result in facts.evaluations}) or None,
        tags=list(dict.fromkeys(["lighthubert", "hubert", "speech", *kind, *facts.tags])),
        model_name=name if facts.evaluations else None,
        eval_results=list(facts.evaluations) or None,
    )


def _cell(text: Any) -> str:
    """Text that cannot break out of a table cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _source(name: str) -> str:
    """A model's name, or `owner/name:file`, linked if it is on the Hub."""
    repository = _repository(name)
    return f"[{name}](https://huggingface.co/{repository})" if is_hub_id(repository) else _cell(name)


def _repository(source: str | None) -> str | None:
    """`owner/name` of `owner/name:file`; what is no such thing as it is."""
    return source and (source.partition(":")[0] if is_hub_id(source.partition(":")[0]) else source)


def _dataset(name: str) -> str:
    return f"[{name}](https://huggingface.co/datasets/{name})" if is_hub_id(name) else _cell(name)


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
        ValueError: if the model is not a LightHuBERT or a HuBERT.
    """
    model_config = read_config(config)
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
        "cell": _cell,
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
        f"| [{member.repo_id}](https://huggingface.co/{member.repo_id}) | {human(member.parameters)} "
        f"| {human(member.macs_per_second)} | {member.score:.4g} |"
        for member in members
    ]
    score = _cell(members[0].score_name)
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
    model_config = read_config(config)
    return architecture_svg(
        hidden_size=model_config.hidden_size,
        layers=[(layer["attention"], layer["ffn"]) for layer in _layers(model_config)],
        convolutions=list(zip(model_config.conv_dim, model_config.conv_kernel, model_config.conv_stride, strict=True)),
    )


def teacher_license(teacher: str, token: str | None = None) -> str | None:
    """The licence that a teacher's own card states, to be carried on; `None` if it has no card or states none.

    Args:
        teacher: a folder or a Hub id.
    """
    folder = Path(teacher)
    if folder.is_dir():
        if not (folder / "README.md").is_file():
            return None
        card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    else:
        try:
            card = ModelCard.load(teacher, token=token, ignore_metadata_errors=True)
        except EntryNotFoundError:
            return None
    return card.data.license

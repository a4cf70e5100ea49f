"""Discrete units: k-means centroids of one layer's features, and the unit of every frame of 20 ms.

Codebooks travel with a model in one file, `units.safetensors`: a tensor for each, and in the metadata what is known of
it as JSON. `lighthubert units fit` makes them.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .extraction import extract_subnet
from .fingerprint import weights_fingerprint
from .front_end import receptive_field
from .search_space import Subnet

logger = logging.getLogger(__name__)

CODEBOOKS_FILE = "units.safetensors"
_ANEW = "make one with `lighthubert units fit`"
# What `cached_file` takes of the options of `from_pretrained`.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


@dataclass(frozen=True, eq=False)
class Codebook:
    """The centroids of one layer's units.

    Args:
        centroids: `(clusters, width)`, float32.
        layer: of `hidden_states`: 0 is the input of the first layer, N the output of the Nth.
        facts: what else is known, as JSON can say it: `encoder` (the fingerprint of the static encoder whose features
            these are), `subnet` (of a supernet), `normalised` (whether it hears waveforms of zero mean and unit
            variance), `source`, `data`, `frames`, `inertia`, `made`, `agreement`.

    Raises:
        ValueError: if the centroids are no matrix of finite numbers, or the layer no number from 0.
    """

    centroids: torch.Tensor
    layer: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        centroids = self.centroids
        if centroids.ndim != 2 or not centroids.is_floating_point() or not centroids.numel():
            raise ValueError(
                f"centroids must be a matrix (clusters, width) of floating point, got {tuple(centroids.shape)} of "
                f"{centroids.dtype}"
            )
        if not bool(centroids.isfinite().all()):
            raise ValueError(f"the centroids of layer {self.layer} are not all finite; {_ANEW}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise ValueError(f"the layer of a codebook must be a number from 0, got {self.layer!r}")
        object.__setattr__(self, "centroids", centroids.detach().to(torch.float32).contiguous())

    @property
    def name(self) -> str:
        """What tells it from others of the same model: `layer6-500`."""
        return f"layer{self.layer}-{self.clusters}"

    @property
    def clusters(self) -> int:
        """Number of units; they are called 0 to `clusters` - 1."""
        return self.centroids.shape[0]

    @property
    def width(self) -> int:
        """Size of the features."""
        return self.centroids.shape[1]

    @property
    def fingerprint(self) -> str:
        """What tells these centroids from any others."""
        return hashlib.blake2b(self.centroids.cpu().numpy().tobytes(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, as plain data for JSON; not the centroids."""
        own = {"name": self.name, "layer": self.layer, "clusters": self.clusters, "width": self.width}
        return {**own, "fingerprint": self.fingerprint, **self.facts}

    def with_facts(self, **known: Any) -> "Codebook":
        """The same with more known of it."""
        return replace(self, facts={**self.facts, **known})

    def check_width(self, width: int) -> None:
        """Raise a ValueError if the features of a model are of another size."""
        if width != self.width:
            raise ValueError(
                f"the codebook {self.name} is of features of width {self.width}, this model's have {width}: it is "
                "another model's; fit one on this model (`lighthubert units fit`), or map it (`lighthubert units map`)"
            )

    def assign(self, features: torch.Tensor) -> torch.Tensor:
        """The nearest centroid of every frame: `(…, width)` to `(…)`, int64.

        `argmin_k |x - c_k|²`, where `|x|²` is the same for all k and left out. Equal distances: the lower number.
        """
        self.check_width(features.shape[-1])
        centroids = self.centroids.to(features.device)
        return nearest(features, centroids.T, centroids.square().sum(-1) / 2)


def nearest(features: torch.Tensor, directions: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """`argmin_k offsets_k - x · directions_k`, in single precision at least."""
    precise = features.to(torch.promote_types(features.dtype, directions.dtype))
    return (offsets.to(precise.dtype) - precise @ directions.to(precise.dtype)).argmin(-1)


def without_repeats(units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each run of equal units as one, and how many frames it lasts: `(frames,)` to two of `(runs,)`."""
    return torch.unique_consecutive(units, return_counts=True)


def encode_units(
    model: PreTrainedModel,
    audio: Any,
    *,
    layer: int | None = None,
    clusters: int | None = None,
    durations: bool = False,
) -> Any:
    """See `LightHubertPreTrainedModel.encode_units`."""
    codebook = choose_codebook(model.codebooks.values(), layer, clusters)  # pyrefly: ignore[missing-attribute]
    _check_usable(model, codebook)
    if not isinstance(audio, torch.Tensor) and isinstance(audio, Sequence) and not _is_number(audio):
        options = {"layer": codebook.layer, "clusters": codebook.clusters, "durations": durations}
        return [encode_units(model, one, **options) for one in audio]
    waveform = _waveform(audio, receptive_field(model.config))
    if codebook.facts.get("normalised", True):
        waveform = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-7).sqrt()
    encoder = model.base_model
    with torch.no_grad():
        states = encoder(waveform[None].to(encoder.device), output_hidden_states=[codebook.layer]).hidden_states
        units = codebook.assign(states[codebook.layer][0]).cpu()
    return without_repeats(units) if durations else units


def choose_codebook(codebooks: Iterable[Codebook], layer: int | None = None, clusters: int | None = None) -> Codebook:
    """The one codebook of a layer and size, or the only one.

    Raises:
        ValueError: if there is none, or more than one to choose from; the message says which there are.
    """
    codebooks = list(codebooks)
    if not codebooks:
        raise ValueError(f"this model has no codebook, so it has no units; {_ANEW}")
    fitting = [one for one in codebooks if layer in (None, one.layer) and clusters in (None, one.clusters)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(sorted(f"layer {one.layer} with {one.clusters} units" for one in codebooks))
    asked = " ".join(
        text
        for text, value in ((f"of layer {layer}", layer), (f"with {clusters} units", clusters))
        if value is not None
    )
    if fitting:
        raise ValueError(f"there are {len(fitting)} codebooks to choose from ({there}); name the layer and clusters")
    raise ValueError(f"there is no codebook {asked}; there is {there}; choose one of these, or {_ANEW}")


def _check_usable(model: PreTrainedModel, codebook: Codebook) -> None:
    if model.training:
        raise ValueError("the model is in training mode, where features are random; call model.eval() first")
    subnet, supernet = codebook.facts.get("subnet"), getattr(model.config, "search_space", None) is not None
    if supernet and (subnet is None or model.active_subnet != _canonical(model, subnet)):  # pyrefly: ignore
        raise ValueError(
            f"the codebook {codebook.name} is of another subnet than the active one; activate it "
            "(model.set_active_subnet(codebook.facts['subnet'])), or extract a subnet and fit one on that"
        )
    last = len(model.base_model.encoder.active_layers)  # pyrefly: ignore[missing-attribute]
    if codebook.layer > last:
        raise ValueError(f"the codebook {codebook.name} is of layer {codebook.layer}, the model has {last}")


def _canonical(model: PreTrainedModel, subnet: Mapping[str, Any]) -> Subnet:
    return model.config.canonical(Subnet.of(subnet))


def _is_number(audio: Sequence) -> bool:
    return bool(len(audio)) and isinstance(audio[0], int | float)


def _waveform(audio: Any, field: int) -> torch.Tensor:
    waveform = torch.as_tensor(audio)
    if waveform.ndim != 1:
        raise ValueError(
            f"audio must be one waveform (samples,) at 16 kHz, or a list of such, got the shape "
            f"{tuple(waveform.shape)}; mix channels down"
        )
    if not waveform.is_floating_point():
        raise ValueError(f"audio must be floating point within ±1, got {waveform.dtype}; divide by its largest value")
    if len(waveform) < field:
        raise ValueError(f"the audio has {len(waveform)} samples, one frame needs {field}")
    return waveform.to(torch.float32)


def encoder_fingerprint(model: PreTrainedModel, subnet: Mapping[str, Any] | None = None) -> str:
    """What tells the features of one static encoder from another's; of a supernet, those of `subnet`."""
    encoder = model.base_model
    if subnet is not None and getattr(model.config, "search_space", None) is not None:
        encoder = extract_subnet(encoder, Subnet.of(subnet))
    return weights_fingerprint(encoder)


def carried(model: PreTrainedModel, subnet: Subnet) -> dict[str, Codebook]:
    """The codebooks of a supernet that are right for a subnet cut out of it; the log names what is left behind."""
    kept = {}
    for name, codebook in model.codebooks.items():  # pyrefly: ignore[missing-attribute]
        own = codebook.facts.get("subnet")
        if own is not None and _canonical(model, own) == model.config.canonical(subnet):
            kept[name] = codebook
        else:
            logger.warning(
                "the codebook %s is left behind: its units are of another subnet's features, which lie in another "
                "basis; fit one anew (`lighthubert units fit`), or map it (`lighthubert units map`)",
                name,
            )
    return kept


def say_left_behind(model: PreTrainedModel) -> None:
    """Say in the log that a plain HuBERT made of a model has no place for its codebooks."""
    if names := sorted(model.codebooks):  # pyrefly: ignore[missing-attribute]
        logger.warning(
            "the codebooks %s are left behind: a plain HuBERT has no units of its own; its features are the same, so "
            "give the file to `lighthubert units apply --codebook`",
            ", ".join(names),
        )


def still_right(model: PreTrainedModel) -> dict[str, Codebook]:
    """The codebooks of a model whose features are still those that they were made of; others are named in the log.

    In half precision weights are others, and features nearly the same, so that nothing can be told.
    """
    kept: dict[str, Codebook] = {}
    for name, codebook in model.codebooks.items():  # pyrefly: ignore[missing-attribute]
        own, unknown = codebook.facts.get("encoder"), model.dtype != torch.float32
        if own is None or unknown or own == encoder_fingerprint(model, codebook.facts.get("subnet")):
            kept[name] = codebook
        else:
            logger.warning(
                "the codebook %s is not saved with the model, whose weights were trained since it was made; fit one "
                "anew (`lighthubert units fit`)",
                name,
            )
    return kept


def save_codebooks(codebooks: Mapping[str, Codebook], folder: str | Path) -> None:
    """Write `units.safetensors` into a folder. Nothing is written beside first: see `lighthubert_hf.units.files`."""
    metadata = {name: json.dumps({"layer": one.layer, **one.facts}, sort_keys=True) for name, one in codebooks.items()}
    tensors = {name: one.centroids.cpu() for name, one in codebooks.items()}
    save_torch_state_dict(
        tensors,
        folder,
        filename_pattern=CODEBOOKS_FILE.replace(".", "{suffix}."),
        metadata=metadata,
        max_shard_size="1000GB",
    )


def read_codebooks(path: str | Path) -> dict[str, Codebook]:
    """The codebooks in a file that `save_codebooks` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or is damaged. One line, with its name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {_ANEW}")
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = load_state_dict_from_file(path, map_location="cpu")
        found = {}
        for name, tensor in tensors.items():
            facts = json.loads(header["__metadata__"][name])
            found[name] = Codebook(tensor, facts.pop("layer"), facts)
        return found
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header, JSON or tensor trips over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is no file of codebooks, or damaged ({reason}); fetch it again, or {_ANEW}"
        ) from None


def published_codebooks(name: Any, **options: Any) -> dict[str, Codebook]:
    """The codebooks beside a model, a folder or on the Hub; none if there are none.

    Args:
        options: of `from_pretrained`; those about the Hub are used.
    """
    known = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    path = cached_file(
        str(name),
        CODEBOOKS_FILE,
        **known,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return {} if path is None else read_codebooks(path)

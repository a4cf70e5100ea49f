"""Checkpoints of other programs, recognised by the words in them, so that a refusal can say what to do instead.

A pickle is not run for that: its strings, among them the names of settings and weights, are read off its operations.
"""

import pickletools
import zipfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import ConversionError

_SAVE = (
    "load it there, and write its encoder as a HubertModel of transformers with `save_pretrained`; convert that folder"
)
_PUBLISHED = "convert the transformers version of that model"


@dataclass(frozen=True)
class _Foreign:
    """A kind of checkpoint.

    Args:
        words: that all stand in it; with `*` in front at the end of a word.
        what: it is, to follow "is".
        remedy: what to do.
        without: words of which none stands in it.
    """

    words: tuple[str, ...]
    what: str
    remedy: str
    without: tuple[str, ...] = ()

    def describes(self, words: Set[str]) -> bool:
        return all(_stands_in(word, words) for word in self.words) and words.isdisjoint(self.without)


_PICKLES = (
    _Foreign(
        ("pytorch-lightning_version",), "a checkpoint of PyTorch Lightning, which only its program can use", _SAVE
    ),
    _Foreign(
        ("Downstream", "Optimizer"),
        "a checkpoint of s3prl's downstream training, a head without its encoder",
        "convert the upstream that it was trained on",
    ),
    _Foreign(
        ("Distiller",),
        "a DistilHuBERT as s3prl saves it",
        "convert its transformers version, which the Hub has as ntu-spml/distilhubert",
    ),
    _Foreign(
        ("model_cfg", "model_weight"),
        "a model of fairseq as s3prl stores it",
        "convert fairseq's own .pt or the transformers version of that model",
    ),
    _Foreign(
        ("Upstream_Config",), "an upstream that s3prl trained, which is no HuBERT", "convert a HuBERT or wav2vec 2.0"
    ),
    _Foreign(
        ("state_dict", "config", "extractor_conv_layer_config"),
        "a torchaudio encoder as DPHuBERT saves it, whose layers were pruned to sizes that transformers has not",
        "convert the HuBERT it was pruned from, and search or distil a subnet of its size",
    ),
    _Foreign(
        ("*encoder.transformer.layers.0.attention.k_proj.weight",),
        "the weights of a torchaudio encoder, which do not say its settings",
        _PUBLISHED,
    ),
    _Foreign(
        ("*frontend.upstream.upstream.model.mask_emb",), "a checkpoint of ESPnet, with an encoder inside", _PUBLISHED
    ),
    _Foreign(
        ("*encoder.layers.0.attention.k_proj.weight", "*feature_projection.projection.weight"),
        "the weights of a transformers model by themselves",
        "give the folder, with its config.json and preprocessor_config.json",
    ),
    _Foreign(
        ("dims", "model_state_dict"), "a Whisper of OpenAI, which is no HuBERT", "convert a HuBERT or wav2vec 2.0"
    ),
    _Foreign(
        ("cfg", "relative_position_embedding"),
        "Microsoft's WavLM, whose relative position bias no supernet computes",
        "use its transformers version as a teacher",
    ),
    _Foreign(
        ("*w2v_encoder.w2v_model.mask_emb",),
        "a model that fairseq fine-tuned for recognition",
        "convert the pre-trained .pt it began with, or the transformers version of that model",
    ),
    _Foreign(
        ("param_groups", "state"),
        "the state of an optimiser, not a model",
        "give the model saved beside it",
        without=("model", "model_state_dict", "state_dict"),
    ),
    _Foreign(("model_state_dict",), "a checkpoint of a training program of its own", _SAVE),
    _Foreign(("state_dict",), "a checkpoint of a training program of its own", _SAVE),
)

_MODEL_FOLDER = "give the folder it lies in, with its config.json and preprocessor_config.json"
_SUFFIXES = {
    ".safetensors": ("the weights of a transformers model by themselves", _MODEL_FOLDER),
    ".onnx": ("an ONNX file, whose weights are no longer a model's", "convert the model it was exported from"),
    ".nemo": ("an archive of NeMo", "convert a HuBERT or wav2vec 2.0"),
    ".json": ("a JSON file, not weights", _MODEL_FOLDER),
}


def refuse_foreign(path: Path) -> None:
    """Raise a ConversionError that says what `path` is and what to do, if it is a checkpoint of another program."""
    found = _SUFFIXES.get(path.suffix) or _recognised_pickle(path)
    if found:
        what, remedy = found
        raise ConversionError(f"{path} is {what}; {remedy}")


def refuse_foreign_folder(folder: Path) -> None:
    """The same of a folder that is no model of transformers."""
    inside = sorted(path.relative_to(folder) for path in folder.glob("*/config.json"))
    checkpoints = sorted(path.name for kind in ("*.pt", "*.pth", "*.ckpt") for path in folder.glob(kind))
    if (folder / "adapter_config.json").is_file():
        raise ConversionError(
            f"{folder} is an adapter (LoRA) without its model; merge it (`merge_and_unload()`) and save the model"
        )
    if inside:
        raise ConversionError(f"{folder} is no model folder, but holds one; give {folder / inside[0].parent}")
    if checkpoints:
        raise ConversionError(
            f"{folder} has no config.json, so it is no transformers model; of a checkpoint give the file: "
            f"{folder / checkpoints[0]}"
        )


def _recognised_pickle(path: Path) -> tuple[str, str] | None:
    try:
        words = _words(path)
    except Exception:  # of arbitrary bytes; what is wrong with them has been found out, or will be
        return None
    for kind in _PICKLES:
        if kind.describes(words):
            return kind.what, kind.remedy
    return None


def _stands_in(word: str, words: Set[str]) -> bool:
    return any(other.endswith(word[1:]) for other in words) if word.startswith("*") else word in words


def _words(path: Path) -> set[str]:
    """All strings in the pickle of a `.pt`, new or old format."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            # The old format: a magic number, its version and the machine's sizes, each a pickle, then the data.
            return set().union(*(_strings(file) for _ in range(4)))
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as file:
            return _strings(file)


def _strings(pickle: IO[bytes]) -> set[str]:
    return {value for _, value, _ in pickletools.genops(pickle) if isinstance(value, str)}

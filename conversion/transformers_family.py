"""Models of transformers' HuBERT family, laid out as supernets of their own shape."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import HubertConfig, PreTrainedConfig, Wav2Vec2Config, WavLMConfig

from lighthubert_hf import LightHubertConfig, SearchSpace

from .checkpoints.errors import ConversionError, first_line, listed
from .checkpoints.reading import MappedWeights, folder_weights, read_json
from .checkpoints.recognition import refuse_foreign_folder
from .layout.spaces import default_space
from .layout.supernet import Layout

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "hubert": HubertConfig,
    "wav2vec2": Wav2Vec2Config,
    "wavlm": WavLMConfig,
}

# What describes the encoder and its training, in all of these configs. Missing ones keep their defaults.
_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_layer_norm",
    "feat_proj_dropout",
    "layerdrop",
    "initializer_range",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_dim",
    "conv_stride",
    "conv_kernel",
    "conv_bias",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "conv_pos_batch_norm",
    "do_stable_layer_norm",
    "apply_spec_augment",
    "mask_time_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_feature_prob",
    "mask_feature_length",
    "mask_feature_min_masks",
)

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
)

# What an encoder consists of. All else in a folder rides along and takes no part in what its encoder computes: heads,
# quantisers, label embeddings, projections to them.
_ENCODER = ("feature_extractor", "feature_projection", "encoder", "masked_spec_embed")

# torch's two spellings of weight norm.
_WEIGHT_NORM = {
    "encoder.pos_conv_embed.conv.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    "encoder.pos_conv_embed.conv.weight_v": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
}

# WavLM's relative position bias (a table in the first layer) and its gates.
_BIAS_TABLE = "encoder.layers.0.attention.rel_attn_embed.weight"
_BIAS_GATE = re.compile(r"encoder\.layers\.\d+\.attention\.gru_rel_pos_(const|linear\.weight|linear\.bias)")


def layout_family(folder: Path, space: SearchSpace | None = None) -> Layout:
    """Lay out the conversion of a HuBERT, wav2vec 2.0 or (rarely) WavLM of transformers.

    Args:
        folder: what `save_pretrained` wrote, model and feature extractor.
        space: what subnets the supernet shall offer; by default up to the model's own size, which is active at first.

    Raises:
        FileNotFoundError, ConversionError: if the folder is incomplete or damaged, or the model cannot be a supernet.
    """
    source = _source_config(folder)
    weights = folder_weights(folder)
    names, dropped = _names(weights, source.model_type)
    if source.model_type == "wavlm":
        names, more = _without_position_bias(weights, names)
        dropped += more
    _check_layers(source, weights, names)
    made, notes = {}, ()
    if "masked_spec_embed" not in names:
        # transformers makes none where nothing is masked; drawn as it draws one.
        made["masked_spec_embed"] = torch.rand(source.hidden_size, generator=torch.Generator().manual_seed(0))
        notes = ("the model has no mask embedding; a new one was drawn",)
    audio = _audio(folder)
    return Layout(
        kind=f"transformers {type(source).__name__.removesuffix('Config')}",
        config=_config(source, space),
        weights=weights,
        names=names,
        dropped=dropped,
        do_normalize=audio["do_normalize"],
        sampling_rate=audio["sampling_rate"],
        made=made,
        notes=notes,
    )


def _source_config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        refuse_foreign_folder(folder)
    data = read_json(folder / "config.json")
    kind = data.get("model_type")
    if kind == "lighthubert":
        raise ConversionError(
            f"{folder} is a LightHuBERT already; `lighthubert extract` takes subnets out of a supernet, --to-original "
            "writes it in the original's format"
        )
    if kind not in CONFIGS:
        raise ConversionError(f"{folder} holds a {kind!r} model; supernets are made of {', '.join(CONFIGS)}")
    try:
        config = CONFIGS[kind].from_dict(data)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"{folder / 'config.json'}: {first_line(error)}") from None
    for name, allowed in (("add_adapter", False), ("adapter_attn_dim", None)):
        if getattr(config, name, allowed) != allowed:
            raise ConversionError(f"{folder} has adapters ({name}={getattr(config, name)}), which a supernet has not")
    return config


def _names(weights: MappedWeights, model_type: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The folder's names by ours, and those of what is not the encoder; every name is accounted for."""
    has_head = any(name.startswith(f"{model_type}.") for name in weights)
    prefix = f"{model_type}." if has_head else ""
    names, dropped = {}, []
    for name in weights:
        ours = name.removeprefix(prefix)
        if not name.startswith(prefix) or ours.split(".")[0] not in _ENCODER:
            dropped.append(name)
            continue
        ours = _WEIGHT_NORM.get(ours, ours)
        if ours in names:
            raise ConversionError(f"{weights.where} has one weight twice: {names[ours]} and {name}")
        names[ours] = name
    if not names:
        raise ConversionError(
            f"{weights.where} has no weights of a {model_type} encoder, but {listed(dropped)}; if it is inside "
            "another model, save it from there by itself with `save_pretrained`"
        )
    return names, tuple(dropped)


def _without_position_bias(weights: MappedWeights, names: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """WavLM adds a gated relative position bias to its attention scores. Only where it is zero can it be left out."""
    if _BIAS_TABLE not in names:
        raise ConversionError(f"{weights.where} lacks weights: {_BIAS_TABLE}")
    if weights[names[_BIAS_TABLE]].any():
        raise ConversionError(
            f"{weights.where}: WavLM's attention adds a gated relative position bias to its scores, which HuBERT's "
            "has not, and here it is not zero; no supernet can compute the same. Use it as a teacher instead"
        )
    bias = [ours for ours in names if ours == _BIAS_TABLE or _BIAS_GATE.fullmatch(ours)]
    return {ours: name for ours, name in names.items() if ours not in bias}, tuple(names[ours] for ours in bias)


def _check_layers(source: PreTrainedConfig, weights: MappedWeights, names: Mapping[str, str]) -> None:
    """The number of layers, before a model of so many is built to compare shapes with."""
    found = {name.split(".")[2] for name in names if name.startswith("encoder.layers.")}
    if len(found) != source.num_hidden_layers:
        raise ConversionError(
            f"{weights.where} has weights of {len(found)} layers, its config says {source.num_hidden_layers}"
        )


def _audio(folder: Path) -> dict:
    """How the model wants its audio: `do_normalize` and `sampling_rate` of its feature extractor."""
    data = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            data = read_json(folder / name)
            data = data.get("feature_extractor", data)
            break
    if type(data.get("do_normalize")) is not bool or type(data.get("sampling_rate")) is not int:
        raise ConversionError(
            f"{folder} does not say how its audio is prepared (do_normalize, sampling_rate); save the model's feature "
            "extractor there, as preprocessor_config.json"
        )
    return data


def _config(source: PreTrainedConfig, space: SearchSpace | None) -> LightHubertConfig:
    width, heads = source.hidden_size, source.num_attention_heads
    for name in _SIZES:
        if getattr(source, name) < 1:
            raise ConversionError(f"{name} must be at least 1, got {getattr(source, name)}")
    if width % heads:
        raise ConversionError(f"{heads} num_attention_heads do not divide the hidden_size {width}")
    if space is None:
        space = default_space(
            num_attention_heads=heads,
            head_dim=width // heads,
            intermediate_size=source.intermediate_size,
            num_hidden_layers=source.num_hidden_layers,
            groups=source.num_conv_pos_embedding_groups,
        )
    fields = {name: getattr(source, name) for name in _FIELDS if hasattr(source, name)}
    try:
        return LightHubertConfig(
            **fields,
            head_dim=width // heads,
            search_space=space,
            default_subnet=space.largest(),
            target_size=width,
        )
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"the model cannot be this supernet: {first_line(error)}") from None

"""From a supernet to a static subnet, and from a static subnet to a plain HuBERT of transformers."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch.nn import functional as F
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_lighthubert import LightHubertConfig
from .elastic import ElasticConv1d, ElasticGroupNorm, ElasticLayerNorm, ElasticLinear, ElasticWeightNormConv1d
from .search_space import Subnet, kept_layers

Model = TypeVar("Model", bound=PreTrainedModel)

ELASTIC = (ElasticConv1d, ElasticGroupNorm, ElasticLayerNorm, ElasticLinear, ElasticWeightNormConv1d)


def subnet_config(config: LightHubertConfig, subnet: Subnet) -> LightHubertConfig:
    """Config of the static model that `subnet` is. Layers that differ become `per_layer_config` entries."""
    subnet = Subnet.of(subnet)
    config.check_subnet(subnet)
    data = config.to_dict()
    data.pop("per_layer_config", None)
    kept = kept_layers(subnet.num_hidden_layers, config.num_hidden_layers)
    windows = [config.layer_shapes[index].attention_window for index in kept]
    data.update(
        search_space=None,
        default_subnet=None,
        hidden_size=subnet.hidden_size,
        num_hidden_layers=subnet.num_hidden_layers,
        num_attention_heads=max(subnet.num_attention_heads),
        intermediate_size=max(subnet.intermediate_size),
        conv_dim=list(config.conv_channels(subnet)),
        conv_norm_per_width=False,
        norm_per_width=False,
        head_per_width=False,
        num_conv_pos_embedding_groups=config.position_groups(subnet.hidden_size),
        whole_position_groups=False,
    )
    # What is the same in every layer stays global, where a user can still change it (a window, say).
    varying: dict[str, Sequence[Any]] = {
        "num_attention_heads": subnet.num_attention_heads,
        "intermediate_size": subnet.intermediate_size,
    }
    varying["attention_window"] = windows
    data["attention_window"] = windows[0]
    varying = {name: values for name, values in varying.items() if len(set(values)) > 1}
    if varying:
        data["per_layer_config"] = {
            index: {name: values[index] for name, values in varying.items()}
            for index in range(subnet.num_hidden_layers)
        }
    return type(config).from_dict(data)


def _active_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """State dict of the static twin of what is active in `model`, still sharing memory with it."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    new_index = {old: new for new, old in enumerate(model.base_model.encoder.active_layers)}
    state, elastic = {}, None
    for name, module in model.named_modules():
        if elastic is not None and name.startswith(elastic):
            continue  # inside an elastic module, which has spoken for its children
        parts = name.removeprefix(prefix).split(".")
        if parts[:2] == ["encoder", "layers"] and len(parts) > 2:
            if int(parts[2]) not in new_index:
                continue
            parts[2] = str(new_index[int(parts[2])])
            name_in_twin = prefix + ".".join(parts)
        else:
            name_in_twin = name
        if isinstance(module, ELASTIC):
            own, elastic = module.active_state(), f"{name}."
        else:
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            if hasattr(module, "active_state"):
                own |= module.active_state()
        state |= {f"{name_in_twin}.{key}" if name_in_twin else key: tensor for key, tensor in own.items()}
    return state


@torch.no_grad()
def extract_subnet(model: Model, subnet: Subnet) -> Model:
    """A static model of `model`'s class that computes what `subnet` computes, on copied weights.

    Raises:
        ValueError: if `model` is static or `subnet` does not fit it.
    """
    subnet = model._checked_subnet(subnet)
    config = subnet_config(model.config, subnet)
    # A twin on the same tensors, so that `model` runs what is active in it all the while, in other threads too.
    twin = _build(type(model), copy.deepcopy(model.config), model.state_dict(), like=model)
    twin.set_active_subnet(subnet)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in _active_state(twin).items()}
    return _build(type(model), config, state, like=model)


def _build(cls: type[Model], config: PreTrainedConfig, state: dict[str, torch.Tensor], like: PreTrainedModel) -> Model:
    """An instance of `cls` that owns exactly the tensors of `state`, in the mode and attention of `like`."""
    config._attn_implementation = like.config._attn_implementation
    with torch.device("meta"):  # no time spent on weights about to be replaced, and the random state is left alone
        built = cls(config)
    built.load_state_dict(state, strict=True, assign=True)
    built.generation_config = None if not hasattr(built, "generation_config") else built.generation_config
    return built.train(like.training)


def _plain_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Heads and FFN units of the plain HuBERT equal to `model`; ValueError if there is none."""
    config = model.config
    if config.search_space is not None:
        raise ValueError("a supernet is no plain HuBERT; extract_subnet one first")
    shapes = config.layer_shapes
    if any(shape.attention_window is not None for shape in shapes):
        raise ValueError("a sliding attention_window cannot be expressed as a plain HuBERT; keep LightHubertModel")
    num_heads = config.num_plain_heads
    if not num_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is less than head_dim {config.head_dim}, "
            "too narrow for a head of a plain HuBERT; keep LightHubertModel"
        )
    wide = {i: shape.num_attention_heads for i, shape in enumerate(shapes) if shape.num_attention_heads > num_heads}
    if wide:
        raise ValueError(
            f"a plain HuBERT of width {config.hidden_size} has {num_heads} heads of "
            f"{config.hidden_size // num_heads}; these layers have more (layer: heads): {wide}; "
            f"keep LightHubertModel, or choose a subnet with num_attention_heads <= {num_heads}"
        )
    return num_heads, max(shape.intermediate_size for shape in shapes)


def plain_config(model: PreTrainedModel) -> HubertConfig:
    """HubertConfig of the plain HuBERT equal to the static `model`."""
    num_heads, intermediate_size = _plain_sizes(model)
    data = model.config.to_dict()
    known = HubertConfig().to_dict().keys() | {"id2label", "label2id", "problem_type"}
    data = {key: value for key, value in data.items() if key in known and key not in ("model_type", "architectures")}
    return HubertConfig(**data | {"num_attention_heads": num_heads, "intermediate_size": intermediate_size})


@torch.no_grad()
def to_hubert(model: PreTrainedModel) -> HubertModel | HubertForCTC | HubertForSequenceClassification:
    """`model`, static, as the transformers HuBERT of its kind (bare, CTC or sequence classification).

    Heads and FFN units a layer lacks are zeros, which add nothing to its output: exact, at no gain in speed. So are
    the channels its heads lack where `head_dim` does not divide the width, which a plain HuBERT's heads must.

    Raises:
        ValueError: if a layer has more heads than fit into the width, attention slides, the model is a supernet, or
            transformers has no HuBERT with this head.
    """
    plain = {
        "LightHubertModel": HubertModel,
        "LightHubertForCTC": HubertForCTC,
        "LightHubertForSequenceClassification": HubertForSequenceClassification,
    }
    name = type(model).__name__
    if name not in plain:
        raise ValueError(
            f"transformers has no HuBERT like {name}; convert its `.lighthubert` or one of {sorted(plain)}"
        )
    if name == "LightHubertForCTC" and model.layer_weights is not None:
        raise ValueError("transformers' HubertForCTC has no use_weighted_layer_sum; keep LightHubertForCTC")
    config = plain_config(model)
    state = {}
    for key, tensor in model.state_dict().items():
        tensor = tensor.detach().clone()
        if ".layers." in key:
            if any(f".{p}_proj." in key for p in "qkv"):
                tensor = _pad_heads(tensor, 0, model.config.head_dim, config.num_attention_heads, config.hidden_size)
                if ".q_proj." in key:
                    # A plain HuBERT divides by the root of the width its padded heads have.
                    tensor *= (config.hidden_size / config.num_attention_heads / model.config.head_dim) ** 0.5
            elif key.endswith("out_proj.weight"):
                tensor = _pad_heads(tensor, 1, model.config.head_dim, config.num_attention_heads, config.hidden_size)
            elif ".intermediate_dense." in key:
                tensor = _pad(tensor, 0, config.intermediate_size)
            elif key.endswith("output_dense.weight"):
                tensor = _pad(tensor, 1, config.intermediate_size)
        state[key.replace("lighthubert.", "hubert.", 1)] = tensor
    if config.mask_time_prob == 0 and config.mask_feature_prob == 0:
        # transformers builds no mask embedding then; ours always has one.
        state = {key: tensor for key, tensor in state.items() if not key.endswith("masked_spec_embed")}
    return _build(plain[name], config, state, like=model)


def _pad(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    missing = size - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (0, missing)) if missing else tensor


def _pad_heads(tensor: torch.Tensor, dim: int, head_dim: int, num_heads: int, width: int) -> torch.Tensor:
    """Heads of `head_dim` channels along `dim` to `num_heads` of them, `width` channels in all."""
    heads = tensor.unflatten(dim, (-1, head_dim))
    return _pad(_pad(heads, dim + 1, width // num_heads), dim, num_heads).flatten(dim, dim + 1)

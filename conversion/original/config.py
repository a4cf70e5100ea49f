"""Settings of the original and of fairseq's HuBERT (`cfg` in a checkpoint) as a `LightHubertConfig`, and back."""

import ast
import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lighthubert_hf import LightHubertConfig, SearchSpace, Subnet
from lighthubert_hf.conversion.checkpoints.errors import ConversionError, first_line
from lighthubert_hf.conversion.layout.supernet import HEAD

# `cfg.model._name` of the checkpoints we know.
STAGE_1, STAGE_2, FAIRSEQ_HUBERT = "student_hubert", "hubert_pruner", "hubert"

# Settings of training that a checkpoint may leave out: ours, theirs, and their default (the same in fairseq). A share
# of something or, where the default is an integer, a length.
_TRAINING = (
    ("hidden_dropout", "dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.0),
    ("feat_proj_dropout", "dropout_input", 0.0),
    ("layerdrop", "encoder_layerdrop", 0.0),
    ("mask_time_prob", "mask_prob", 0.65),
    ("mask_time_length", "mask_length", 10),
    ("mask_feature_prob", "mask_channel_prob", 0.0),
    ("mask_feature_length", "mask_channel_length", 10),
)
_SIZES = (
    ("hidden_size", "encoder_embed_dim"),
    ("num_hidden_layers", "encoder_layers"),
    ("num_attention_heads", "encoder_attention_heads"),
    ("intermediate_size", "encoder_ffn_embed_dim"),
    ("num_conv_pos_embeddings", "conv_pos"),
    ("num_conv_pos_embedding_groups", "conv_pos_groups"),
)
_NORMS = {"layer_norm": "layer", "default": "group"}
_ACTIVATIONS = ("gelu", "relu")
_MAX_SIZE = 2**20


class Settings:
    """A section of `cfg`, read with checks."""

    def __init__(self, cfg: Any, section: str):
        self.section = f"cfg.{section}"
        values = cfg.get(section) if isinstance(cfg, Mapping) else None
        if not isinstance(values, Mapping):
            raise ConversionError(
                f"the checkpoint has no {self.section}, which says how its weights are used; it must hold "
                '{"cfg": {"model": …, "task": …}, "model": weights}'
            )
        self.values = values
        self.defaults: dict[str, Any] = {}  # what was asked for and is not there

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of `name`, of type `kind`; without a default it must be there. An integer will do for a float."""
        if name not in self.values and default is None:
            raise ConversionError(f"{self.section}.{name} is missing from the checkpoint")
        if name not in self.values:
            self.defaults[name] = default
        value = self.values.get(name, default)
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**53 else math.inf
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int) or value in (math.inf, -math.inf):
            raise ConversionError(f"{self.section}.{name} must be a {kind.__name__}, got {str(value)[:80]!r}")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        value = self.get(name, int, default)
        if not 1 <= value <= _MAX_SIZE:
            raise ConversionError(f"{self.section}.{name} must be 1 to {_MAX_SIZE}, got {str(value)[:80]}")
        return value

    def share(self, name: str, default: float) -> float:
        value = self.get(name, float, default)
        if not 0 <= value <= 1:
            raise ConversionError(f"{self.section}.{name} must be 0 to 1, got {value}")
        return value

    def choice(self, name: str, allowed, default: Any = None) -> Any:
        value = self.get(name, type(allowed[0]), default)
        if value not in allowed:
            supported = ", ".join(map(repr, allowed))
            raise ConversionError(f"{self.section}.{name} is {str(value)[:80]!r}; supported: {supported}")
        return value


def conv_layers(text: str) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of every convolution from `"[(512,10,5)] + [(512,3,2)] * 4"`, without `eval`."""

    def value(node: ast.expr) -> list:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.right, ast.Constant):
            times = node.right.value
            if type(times) is int and 1 <= times <= 64:
                return value(node.left) * times
        if isinstance(node, ast.List):
            return [ast.literal_eval(item) for item in node.elts]
        raise ValueError("neither a list nor a sum or multiple of lists")

    try:
        layers = value(ast.parse(text, mode="eval").body)
        if not 1 <= len(layers) <= 64:
            raise ValueError("1 to 64 layers are supported")
        for layer in layers:
            if len(layer) != 3 or not all(type(size) is int and 1 <= size <= _MAX_SIZE for size in layer):
                raise ValueError(f"{layer!r} is not (channels, kernel, stride)")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ConversionError(f"cfg.model.conv_feature_layers {text[:80]!r}: {first_line(error)}") from None
    return layers


def kind_of(model: Settings) -> str:
    """Which training the checkpoint comes from."""
    name = model.values.get("_name")
    if name not in (STAGE_1, STAGE_2, FAIRSEQ_HUBERT):
        raise ConversionError(
            f"cfg.model._name is {name!r}; supported: {STAGE_1!r} and {STAGE_2!r} (LightHuBERT), {FAIRSEQ_HUBERT!r} "
            "(fairseq's pre-trained HuBERT); of others convert the transformers version"
        )
    return name


def published_space(model: Settings, kind: str) -> SearchSpace:
    """The search space that an original checkpoint names: by its training, or by the file it was configured from."""
    if kind == STAGE_1:
        return SearchSpace.base()
    name = str(model.values.get("pruner_supernet", "")).rpartition("/")[2]
    for word, space in (("small", SearchSpace.small()), ("base", SearchSpace.base())):
        if word in name.lower():
            return space
    raise ConversionError(
        f"cfg.model.pruner_supernet is {name!r}, which names neither the small nor the base space; "
        "pass the checkpoint's own with --search-space FILE"
    )


def read_original_config(
    model: Settings,
    *,
    head_dim: int,
    attention_dropout: float,
    space: SearchSpace,
    default_subnet: Subnet,
    target_size: int,
) -> LightHubertConfig:
    """The supernet's config: sizes, front end and training settings from `cfg.model`, the rest as given.

    Raises:
        ConversionError: if a setting is missing, malformed or not supported, or the space does not fit the sizes.
    """
    layers = conv_layers(model.get("conv_feature_layers", str))
    model.choice("layer_type", ("transformer",), "transformer")
    model.choice("pos_conv_depth", (1,), 1)
    training = {
        ours: (model.size if isinstance(default, int) else model.share)(theirs, default)
        for ours, theirs, default in _TRAINING
    }
    sizes = {ours: model.size(theirs) for ours, theirs in _SIZES}
    act, norm = model.choice("activation_fn", _ACTIVATIONS), _NORMS[model.choice("extractor_mode", tuple(_NORMS))]
    conv_bias, norm_first = model.get("conv_bias", bool), model.get("layer_norm_first", bool)
    try:
        return LightHubertConfig(
            hidden_act=act,
            feat_extract_norm=norm,
            conv_dim=[channels for channels, _, _ in layers],
            conv_kernel=[kernel for _, kernel, _ in layers],
            conv_stride=[stride for _, _, stride in layers],
            conv_bias=conv_bias,
            conv_pos_batch_norm=bool(model.values.get("conv_pos_batch_norm")),  # only later fairseqs have it
            do_stable_layer_norm=norm_first,
            attention_dropout=attention_dropout,
            mask_time_min_masks=2,  # a constant there
            head_dim=head_dim,
            search_space=space,
            default_subnet=default_subnet,
            target_size=target_size,
            **sizes,
            **training,
        )
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"the checkpoint cannot be this supernet: {first_line(error)}") from None


def write_config(
    config: LightHubertConfig, *, do_normalize: bool, sampling_rate: int, names, where: str
) -> dict[str, dict]:
    """`cfg` of a file that the original loads. Settings that only mattered to its training get its defaults.

    Args:
        names: our names of the weights.
        where: what to call the model in messages.

    Raises:
        ConversionError: if the original cannot hold such a model.
    """
    _check_expressible(config, where)
    space = SearchSpace.from_dict(config.search_space)
    stage_1 = space == SearchSpace.base() and Subnet.from_dict(config.default_subnet) == space.largest()
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride)
    heads = ["0"] * (config.num_hidden_layers - 1) + ["1" if HEAD in names else "0"]
    model = {
        "_name": STAGE_1 if stage_1 else STAGE_2,
        "extractor_mode": {ours: theirs for theirs, ours in _NORMS.items()}[config.feat_extract_norm],
        "activation_fn": config.hidden_act,
        "attention_dropout": 0.0,
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": str([tuple(layer) for layer in layers]),
        "conv_bias": config.conv_bias,
        "teacher_embed_dim": config.target_size,
        "layer_pred_num": ",".join(heads),
    }
    model |= {theirs: getattr(config, ours) for ours, theirs, *_ in (*_SIZES, *_TRAINING)}
    for name, published in (("Small", SearchSpace.small()), ("Base", SearchSpace.base())):
        if space == published and not stage_1:
            model["pruner_supernet"] = f"config/supernet/Supernet-{name}.yaml"
    return {"model": model, "task": {"normalize": do_normalize, "sample_rate": sampling_rate}}


def _check_expressible(config: LightHubertConfig, where: str) -> None:
    reasons = {
        f"{config.num_hidden_layers} layers, not 12": config.num_hidden_layers != 12,
        f"heads of {config.head_dim} channels, not 64": config.head_dim != 64,
        "attention that is not as wide as the stream": config.num_attention_heads * 64 != config.hidden_size,
        "a front end as wide as the stream": config.conv_dim[-1] == config.hidden_size,
        "an FFN that is no multiple of the width": config.intermediate_size % config.hidden_size != 0,
        "a choice of channels in the front end (conv_dim of its search_space)": config.has_elastic_front_end,
        f"the activation {config.hidden_act!r}": config.hidden_act not in _ACTIVATIONS,
        "whole groups of the positional convolution in narrow subnets": config.whole_position_groups,
        "no norm before the projection": not config.feat_proj_layer_norm,
        f"the front end's activation {config.feat_extract_activation!r}": config.feat_extract_activation != "gelu",
        f"layer_norm_eps {config.layer_norm_eps}": config.layer_norm_eps != 1e-5,
        "a sliding attention window, which there belongs to the subnet": any(
            shape.attention_window is not None for shape in config.layer_shapes
        ),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ConversionError(f"{where}: the original cannot run a model with {'; '.join(found)}")

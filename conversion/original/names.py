"""The literal map between the names of weights in the original (and in fairseq's HuBERT) and ours, both ways.

`None`: dropped on purpose. Ours are those of `transformers.HubertModel`, with `prediction_head` beside them.
"""

import re

from lighthubert_hf.conversion.layout.supernet import HEAD

_POSITIONS = "encoder.pos_conv_embed.conv"

FIXED: dict[str, str | None] = {
    "mask_emb": "masked_spec_embed",
    "layer_norm.weight": "feature_projection.layer_norm.weight",
    "layer_norm.bias": "feature_projection.layer_norm.bias",
    "post_extract_proj.weight": "feature_projection.projection.weight",
    "post_extract_proj.bias": "feature_projection.projection.bias",
    "encoder.pos_conv.0.bias": f"{_POSITIONS}.bias",
    "encoder.pos_conv.0.weight_g": f"{_POSITIONS}.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": f"{_POSITIONS}.parametrizations.weight.original1",
    "encoder.pos_conv.0.parametrizations.weight.original0": f"{_POSITIONS}.parametrizations.weight.original0",
    "encoder.pos_conv.0.parametrizations.weight.original1": f"{_POSITIONS}.parametrizations.weight.original1",
    "encoder.layer_norm.weight": "encoder.layer_norm.weight",
    "encoder.layer_norm.bias": "encoder.layer_norm.bias",
    # HuBERT's own pre-training: the embeddings of its clusters and the projection to them.
    "label_embs_concat": None,
    "final_proj.weight": None,
    "final_proj.bias": None,
}

# What else fairseq's pre-training and heads may leave beside an encoder, by the first part of the name: quantisers,
# projections, codebooks, classifiers. The encoder is the same without.
RIDERS = ("quantizer", "project_q", "project_inp", "target_glu", "input_quantizer", "lm_head", "classifier", "proj")

# feature_extractor.conv_layers.N.… → feature_extractor.conv_layers.N.…, with the norm's names by feat_extract_norm
CONV_LAYER = {"0.weight": "conv.weight", "0.bias": "conv.bias"}
CONV_NORM = {
    "layer": {"2.1.weight": "layer_norm.weight", "2.1.bias": "layer_norm.bias"},
    "group": {"2.weight": "layer_norm.weight", "2.bias": "layer_norm.bias"},
}

# encoder.layers.N.… → encoder.layers.N.…
ENCODER_LAYER = {
    "self_attn.k_proj.weight": "attention.k_proj.weight",
    "self_attn.k_proj.bias": "attention.k_proj.bias",
    "self_attn.v_proj.weight": "attention.v_proj.weight",
    "self_attn.v_proj.bias": "attention.v_proj.bias",
    "self_attn.q_proj.weight": "attention.q_proj.weight",
    "self_attn.q_proj.bias": "attention.q_proj.bias",
    "self_attn.out_proj.weight": "attention.out_proj.weight",
    "self_attn.out_proj.bias": "attention.out_proj.bias",
    "self_attn_layer_norm.weight": "layer_norm.weight",
    "self_attn_layer_norm.bias": "layer_norm.bias",
    "fc1.weight": "feed_forward.intermediate_dense.weight",
    "fc1.bias": "feed_forward.intermediate_dense.bias",
    "fc2.weight": "feed_forward.output_dense.weight",
    "fc2.bias": "feed_forward.output_dense.bias",
    "final_layer_norm.weight": "final_layer_norm.weight",
    "final_layer_norm.bias": "final_layer_norm.bias",
}

_HEAD = re.compile(r"layer_pred_heads\.(\d+)\.weight")
_NUMBERED = re.compile(r"(feature_extractor\.conv_layers|encoder\.layers)\.(\d+)\.(.+)")


class UnknownNameError(KeyError):
    """A weight that the map does not have."""


def from_original(name: str) -> str | None:
    """Our name of the original's weight `name`; `None` if it is dropped on purpose.

    Raises:
        UnknownNameError: if the map does not have it.
    """
    if name in FIXED:
        return FIXED[name]
    if _HEAD.fullmatch(name):
        return HEAD
    if name.split(".")[0] in RIDERS:
        return None
    return _in_layer(name, CONV_LAYER | CONV_NORM["layer"] | CONV_NORM["group"], ENCODER_LAYER)


def to_original(name: str, *, num_hidden_layers: int, feat_extract_norm: str) -> str:
    """The original's name of our weight `name`.

    Raises:
        UnknownNameError: if the original has no such weight.
    """
    if name == HEAD:
        return f"layer_pred_heads.{num_hidden_layers - 1}.weight"
    for original, ours in FIXED.items():
        if ours == name:
            return original
    return _in_layer(name, _inverse(CONV_LAYER | CONV_NORM[feat_extract_norm]), _inverse(ENCODER_LAYER))


def _in_layer(name: str, conv_layer: dict[str, str], encoder_layer: dict[str, str]) -> str:
    match = _NUMBERED.fullmatch(name)
    names = conv_layer if match and match[1].startswith("feature_extractor") else encoder_layer
    if match is None or match[3] not in names:
        raise UnknownNameError(name)
    return f"{match[1]}.{match[2]}.{names[match[3]]}"


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}

"""Compares what a converted model computes with what its source computes.

The original implementation is no dependency. In its place stands [`original_forward`], a second, independent reading
of its checkpoints: plain functions on its own names and settings, without the model classes or the name map.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, Subnet
from lighthubert_hf.search_space import kept_layers

from .errors import ConversionError, listed
from .original_config import conv_layers

# Largest difference that passes, in units of the largest magnitude (at least 1). Single precision gives 1e-6 to 1e-5.
TOLERANCE = 1e-4

Read = Callable[[str], torch.Tensor]


class Outputs(NamedTuple):
    """Hidden states `(frames, channels)` between layers, the encoder's output, and the head's prediction if any."""

    hidden_states: tuple[torch.Tensor, ...]
    last: torch.Tensor
    prediction: torch.Tensor | None = None


def probe_waveform(seconds: float = 0.5, sampling_rate: int = 16000) -> torch.Tensor:
    """A rising tone with harmonics, a pause and noise, normalised: `(1, samples)`. The same on every call."""
    time = torch.arange(int(seconds * sampling_rate)) / sampling_rate
    phase = 2 * torch.pi * (120 * time + 200 * time**2)
    tone = sum(torch.sin(k * phase) / k for k in range(1, 6)) * (torch.sin(6 * torch.pi * time) > -0.3)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    wave = tone + 0.05 * noise
    return ((wave - wave.mean()) / wave.std())[None]


@torch.inference_mode()
def original_forward(read: Read, cfg: Mapping, subnet: Subnet, wave: torch.Tensor) -> Outputs:
    """What the original computes with `subnet`.

    Args:
        read: the checkpoint's weights by name.
        cfg: its `cfg.model`.
        subnet: the subnet.
        wave: `(1, samples)`.
    """
    width, full = subnet.hidden_size, cfg["encoder_embed_dim"]

    def linear(x, name, rows=slice(None), columns=slice(None)):
        return F.linear(x, read(f"{name}.weight")[rows][:, columns], read(f"{name}.bias")[rows])

    def norm(x, name):
        return F.layer_norm(
            x, x.shape[-1:], read(f"{name}.weight")[: x.shape[-1]], read(f"{name}.bias")[: x.shape[-1]]
        )

    x = wave[:, None]
    for i, (_, _, stride) in enumerate(conv_layers(cfg["conv_feature_layers"])):
        layer = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x, read(f"{layer}.0.weight"), read(f"{layer}.0.bias") if cfg["conv_bias"] else None, stride)
        if cfg["extractor_mode"] == "layer_norm":
            x = norm(x.transpose(1, 2), f"{layer}.2.1").transpose(1, 2)
        elif i == 0:
            x = F.group_norm(x, x.shape[1], read(f"{layer}.2.weight"), read(f"{layer}.2.bias"))
        x = F.gelu(x)
    x = linear(norm(x.transpose(1, 2), "layer_norm"), "post_extract_proj", slice(width))[0]

    kernel, groups = cfg["conv_pos"], cfg["conv_pos_groups"]
    position = "encoder.pos_conv.0"
    try:
        g, v = read(f"{position}.weight_g"), read(f"{position}.weight_v")
    except KeyError:
        g, v = (read(f"{position}.parametrizations.weight.original{i}") for i in (0, 1))
    weight = (v * (g / v.square().sum((0, 1), keepdim=True).sqrt()))[:width, : width // groups]
    positions = F.conv1d(x.T[None], weight, read(f"{position}.bias")[:width], padding=kernel // 2, groups=groups)
    x = x + F.gelu(positions[0, :, : len(x)]).T
    first, activation, states = cfg["layer_norm_first"], getattr(F, cfg["activation_fn"]), []
    if not first:
        x = norm(x, "encoder.layer_norm")

    head_dim = full // cfg["encoder_attention_heads"]
    kept = kept_layers(subnet.num_hidden_layers, cfg["encoder_layers"])
    for i, heads, size in zip(kept, subnet.num_attention_heads, subnet.intermediate_size):
        layer, inner, channels = f"encoder.layers.{i}", slice(heads * head_dim), slice(width)
        units = torch.tensor([u // width * full + u % width for u in range(size)])
        y = norm(x, f"{layer}.self_attn_layer_norm") if first else x
        q, k, v = (
            linear(y, f"{layer}.self_attn.{p}_proj", inner, channels).unflatten(1, (heads, head_dim)).transpose(0, 1)
            for p in "qkv"
        )
        y = ((q @ k.transpose(1, 2)) * head_dim**-0.5).softmax(-1) @ v
        x = x + linear(y.transpose(0, 1).flatten(1), f"{layer}.self_attn.out_proj", channels, inner)
        x = x if first else norm(x, f"{layer}.self_attn_layer_norm")
        y = norm(x, f"{layer}.final_layer_norm") if first else x
        x = x + linear(activation(linear(y, f"{layer}.fc1", units, channels)), f"{layer}.fc2", channels, units)
        x = x if first else norm(x, f"{layer}.final_layer_norm")
        states.append(x)
    last = norm(x, "encoder.layer_norm") if first else x
    try:
        head = read(f"layer_pred_heads.{cfg['encoder_layers'] - 1}.weight")
    except KeyError:
        return Outputs(tuple(states[:-1]), last)
    return Outputs(tuple(states[:-1]), last, last @ head[:, :width].T)


def stream_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Make `model` take each part's weights from `weights` when the part runs, and let go of them afterwards.

    So a supernet can be run that would not fit into memory beside its source.
    """
    model.to("meta")
    base = model.base_model
    parts = [base.feature_extractor, base.feature_projection, base.encoder.pos_conv_embed, base.encoder.layer_norm]
    parts += [*base.encoder.layers, getattr(model, "prediction_head", None)]
    names = {part: name for name, part in model.named_modules()}
    for part in filter(None, parts):

        def read(part, _):
            state = {name: weights[f"{names[part]}.{name}"].float() for name in part.state_dict()}
            part.load_state_dict(state, strict=True, assign=True)

        def release(part, *_):
            part.to("meta")

        part.register_forward_pre_hook(read)
        part.register_forward_hook(release)
    return model


@torch.inference_mode()
def supernet_outputs(folder: Path, subnets, weights: Mapping[str, torch.Tensor], wave: torch.Tensor) -> list[Outputs]:
    """What the supernet in `folder` computes with each of `subnets`.

    Raises:
        ConversionError: if `from_pretrained` misses weights or finds others than it expects.
    """
    head = "prediction_head.weight" in weights
    model, info = (LightHubertForPreTraining if head else LightHubertModel).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if stray := {*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]}:
        raise ConversionError(f"{folder} does not load as it was written: {listed(map(str, stray))}")
    model = stream_weights(model.eval(), weights)
    found = []
    for subnet in subnets:
        model.set_active_subnet(subnet)
        out = model(wave, output_hidden_states=True)
        prediction = out.predictions[0] if head else None
        states = tuple(state[0] for state in out.hidden_states[1:-1])
        found.append(Outputs(states, out.last_hidden_state[0], prediction))
    return found


def largest_difference(ours: Outputs, theirs: Outputs, what: str) -> float:
    """The largest absolute difference between two models' outputs.

    Raises:
        ConversionError: if it exceeds `TOLERANCE`, is NaN, or the outputs differ in number or shape.
    """
    pairs = [*zip(ours.hidden_states, theirs.hidden_states), (ours.last, theirs.last)]
    if theirs.prediction is not None and ours.prediction is not None:
        pairs.append((ours.prediction, theirs.prediction))
    same = len(ours.hidden_states) == len(theirs.hidden_states) and all(a.shape == b.shape for a, b in pairs)
    if not same or (ours.prediction is None) != (theirs.prediction is None):
        raise ConversionError(f"{what}: the converted model's outputs have other shapes than its source's")
    worst = 0.0
    for a, b in pairs:
        difference, scale = (a - b).abs().max().item(), max(1.0, b.abs().max().item())
        if not difference <= TOLERANCE * scale:  # also for NaN
            raise ConversionError(
                f"{what}: the converted model differs from its source by {difference:.2g} (values up to {scale:.2g}); "
                "nothing was written"
            )
        worst = max(worst, difference)
    return worst


@torch.inference_mode()
def family_outputs(folder: Path, wave: torch.Tensor) -> Outputs:
    """What the transformers model in `folder` computes, loaded by transformers.

    Raises:
        ConversionError: if transformers finds weights of the encoder missing.
    """
    model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := info["missing_keys"]:
        raise ConversionError(f"{folder}: transformers misses weights: {listed(map(str, missing))}")
    out = model.eval()(wave, output_hidden_states=True)
    return Outputs(tuple(state[0] for state in out.hidden_states[1:-1]), out.last_hidden_state[0])

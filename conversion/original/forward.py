"""A second, independent reading of the original's checkpoints, to verify conversions with.

The original implementation is no dependency. These are plain functions on its own names and settings, without the
model classes or the name map, written from what the original does: which rows and columns a subnet takes, in which
order things are normed. Slow, for one utterance without padding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from lighthubert_hf import Subnet
from lighthubert_hf.model.search_space import kept_layers

from .config import conv_layers

Read = Callable[[str], torch.Tensor]
ALL = slice(None)


class Outputs(NamedTuple):
    """Hidden states `(frames, channels)` between layers, the encoder's output, and the head's prediction if any."""

    hidden_states: tuple[torch.Tensor, ...]
    last: torch.Tensor
    prediction: torch.Tensor | None = None


@torch.inference_mode()
def original_forward(read: Read, cfg: Mapping, subnets: Sequence[Subnet], wave: torch.Tensor) -> list[Outputs]:
    """What the original computes with each of `subnets`, layer by layer, so that each weight is read once.

    Args:
        read: the checkpoint's weights by name; KeyError if there is none.
        cfg: its `cfg.model`.
        subnets: the subnets.
        wave: `(1, samples)`.
    """
    norm_first, depth = cfg["layer_norm_first"], cfg["encoder_layers"]
    features = _norm(read, _front_end(read, cfg, wave), "layer_norm")
    streams = [_linear(read, features, "post_extract_proj", slice(subnet.hidden_size)) for subnet in subnets]
    streams = [x + positions for x, positions in zip(streams, _positions(read, cfg, streams))]
    if not norm_first:
        streams = [_norm(read, x, "encoder.layer_norm") for x in streams]
    states = [[] for _ in subnets]
    for index in range(depth):
        for number, subnet in enumerate(subnets):
            kept = kept_layers(subnet.num_hidden_layers, depth)
            if index in kept:
                place = kept.index(index)
                heads, size = subnet.num_attention_heads[place], subnet.intermediate_size[place]
                streams[number] = _layer(read, cfg, streams[number], f"encoder.layers.{index}", heads, size)
                states[number].append(streams[number])
    if norm_first:
        streams = [_norm(read, x, "encoder.layer_norm") for x in streams]
    try:
        head = read(f"layer_pred_heads.{depth - 1}.weight")
    except KeyError:
        return [Outputs(tuple(inner[:-1]), x) for inner, x in zip(states, streams)]
    return [Outputs(tuple(inner[:-1]), x, x @ head[:, : x.shape[1]].T) for inner, x in zip(states, streams)]


def _linear(read: Read, x: torch.Tensor, name: str, rows=ALL, columns=ALL) -> torch.Tensor:
    return F.linear(x, read(f"{name}.weight")[rows][:, columns], read(f"{name}.bias")[rows])


def _norm(read: Read, x: torch.Tensor, name: str) -> torch.Tensor:
    size = x.shape[-1]
    return F.layer_norm(x, (size,), read(f"{name}.weight")[:size], read(f"{name}.bias")[:size])


def _front_end(read: Read, cfg: Mapping, wave: torch.Tensor) -> torch.Tensor:
    """`(1, samples)` to `(frames, channels)`."""
    x = wave[:, None]
    for index, (_, _, stride) in enumerate(conv_layers(cfg["conv_feature_layers"])):
        layer = f"feature_extractor.conv_layers.{index}"
        x = F.conv1d(x, read(f"{layer}.0.weight"), read(f"{layer}.0.bias") if cfg["conv_bias"] else None, stride)
        if cfg["extractor_mode"] == "layer_norm":
            x = _norm(read, x.transpose(1, 2), f"{layer}.2.1").transpose(1, 2)
        elif index == 0:
            x = F.group_norm(x, x.shape[1], read(f"{layer}.2.weight"), read(f"{layer}.2.bias"))
        x = F.gelu(x)
    return x[0].T


def _positions(read: Read, cfg: Mapping, streams: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The convolution over each `(frames, width)`: its weight is normed over the full width, then cut."""
    name = "encoder.pos_conv.0"
    try:
        magnitude, direction = read(f"{name}.weight_g"), read(f"{name}.weight_v")
    except KeyError:  # the newer spelling
        magnitude, direction = (read(f"{name}.parametrizations.weight.original{i}") for i in (0, 1))
    weight = direction * (magnitude / direction.square().sum((0, 1), keepdim=True).sqrt())
    bias, groups, padding = read(f"{name}.bias"), cfg["conv_pos_groups"], cfg["conv_pos"] // 2
    found = []
    for x in streams:
        frames, width = x.shape
        cut = weight[:width, : width // groups]
        made = F.conv1d(x.T[None], cut, bias[:width], padding=padding, groups=groups)
        found.append(F.gelu(made[0, :, :frames]).T)
    return found


def _layer(read: Read, cfg: Mapping, x: torch.Tensor, name: str, heads: int, size: int) -> torch.Tensor:
    """One encoder layer with so many heads and FFN units on `(frames, width)`."""
    full, norm_first = cfg["encoder_embed_dim"], cfg["layer_norm_first"]
    width, head_dim = x.shape[1], full // cfg["encoder_attention_heads"]
    stream, inner = slice(width), slice(heads * head_dim)
    # The full FFN's units come in blocks as large as the full width; of each the first `width` are taken.
    units = torch.tensor([unit // width * full + unit % width for unit in range(size)])

    y = _norm(read, x, f"{name}.self_attn_layer_norm") if norm_first else x
    query, key, value = (
        _linear(read, y, f"{name}.self_attn.{p}_proj", inner, stream).unflatten(1, (heads, head_dim)).transpose(0, 1)
        for p in "qkv"
    )
    attended = (query @ key.transpose(1, 2) * head_dim**-0.5).softmax(-1) @ value
    x = x + _linear(read, attended.transpose(0, 1).flatten(1), f"{name}.self_attn.out_proj", stream, inner)
    if not norm_first:
        x = _norm(read, x, f"{name}.self_attn_layer_norm")

    y = _norm(read, x, f"{name}.final_layer_norm") if norm_first else x
    activation = getattr(F, cfg["activation_fn"])
    hidden = activation(_linear(read, y, f"{name}.fc1", columns=stream))
    taken = torch.zeros_like(hidden)  # the other units are zero: cheaper than picking rows and columns
    taken[:, units] = hidden[:, units]
    x = x + _linear(read, taken, f"{name}.fc2", stream)
    return x if norm_first else _norm(read, x, f"{name}.final_layer_norm")

"""What matters most to a student's predictions: heads, FFN units, channels of the front end, channels of the stream.

Measured on audio, before narrower subnets are cut from the weights, and put where they look: first. DynaBERT calls
this network rewiring (Hou et al. 2020, https://huggingface.co/papers/2004.04037).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.rearrangement import kept_units, rearrange, rearrange_stream, rearranged_layers, stream_order

from .channel_order import rearrange_channels
from .recipe import OrderSection


@dataclass
class Importance:
    """Sums over all audio of squared changes, see `measure_importance`; float64, on the CPU.

    Args:
        heads, units: `(num_heads,)` and `(num_units,)` by layer, of those that the measured subnet has.
        channels: `(channels,)` by convolution.
        stream: `(hidden_size,)`.
    """

    heads: dict[int, torch.Tensor] = field(default_factory=dict)
    units: dict[int, torch.Tensor] = field(default_factory=dict)
    channels: list[torch.Tensor] = field(default_factory=list)
    stream: torch.Tensor | None = None


def order_student(
    student: LightHubertForPreTraining,
    waveforms: Iterable[torch.Tensor],
    settings: OrderSection,
    *,
    all_weights: bool,
    seed: int = 0,
) -> torch.Tensor | None:
    """Reorder a supernet in place, so that narrow subnets keep what matters most.

    Returns:
        Which channel of the stream each has become, `(hidden_size,)`, if its width was ordered.

    Args:
        waveforms: Normalised 16 kHz audio to measure on, `(samples,)` each.
        all_weights: Whether the network as a whole is what counts (weights of a teacher), or the largest subnet of the
            search space (weights of a first stage, of which the rest may never have been trained).

    Raises:
        ValueError: The student has no search space, or its width cannot be ordered.
    """
    if student.search_space is None:
        raise ValueError("student.order_on orders what subnets are cut from, but the student is static; remove it")
    config, largest = student.config, student.search_space.largest()
    whole = config.architecture if all_weights else config.canonical(replace(largest, conv_dim=None))
    by_width = "width" in settings.parts
    if by_width and whole.hidden_size != config.hidden_size:
        raise ValueError(
            f"the largest subnet is {whole.hidden_size} wide and its weights {config.hidden_size}: such a width "
            "cannot be ordered without changing what it computes; leave width out of student.order_on.parts"
        )
    parts = {*settings.parts} - (set() if config.has_elastic_front_end else {"channels"})
    importance = measure_importance(student, whole, waveforms, parts, seed=seed, probes=settings.probes)
    full = {}
    for index in range(config.num_hidden_layers):
        heads, units = torch.zeros(config.num_attention_heads), torch.zeros(config.intermediate_size)
        if index in importance.heads and "heads" in parts:
            heads[: len(importance.heads[index])] = importance.heads[index].float()
        if index in importance.units and "ffn" in parts:
            units[kept_units(config, whole.hidden_size, len(importance.units[index]))] = importance.units[
                index
            ].float()
        full[index] = heads, units
    moves = rearranged_layers(config, whole, full)
    kept = {"heads": ".attention.", "ffn": ".feed_forward."}
    moves = {name: move for name, move in moves.items() if any(kept[part] in name for part in kept if part in parts)}
    rearrange(student.lighthubert, moves)
    if "channels" in parts:
        rearrange_channels(student.lighthubert, importance.channels)
    if by_width:
        order = stream_order(importance.stream, config.num_conv_pos_embedding_groups)
        rearrange_stream(student, order)
        return order
    return None


def measure_importance(
    student: LightHubertForPreTraining,
    subnet: Subnet,
    waveforms: Iterable[torch.Tensor],
    parts: Iterable[str] = ("heads", "ffn"),
    *,
    seed: int = 0,
    probes: int = 4,
) -> Importance:
    r"""How much `subnet`'s predictions would change if a part were held at its mean over a clip.

    $$ I_c = \mathbb{E}_v \sum_t \Big( \sum_{d \in c} \big(a_{d,t} - \bar a_d\big)
             \frac{\partial \langle v, y \rangle}{\partial a_{d,t}} \Big)^2, \qquad v \sim \mathcal{N}(0, 1) $$

    where \(a_d\) are the activations that a head, an FFN unit or a channel hands on and \(y\) the output of the
    prediction head, which of a new student is a random projection of the last hidden state. To first order that is the
    expected squared change: the Gauss-Newton estimate of what leaving it out costs, as in Fisher pruning (Theis et al.
    2018, https://huggingface.co/papers/1801.05787), frame by frame. A channel of the stream counts at the input of
    every layer and of the prediction head.
    """
    generator = torch.Generator().manual_seed(seed)
    front_end = student.lighthubert.feature_extractor
    found, was_training = Importance(), student.training
    with student.eval().subnet_activated(subnet), _recording(student, {*parts}) as recorded, torch.enable_grad():
        for waveform in waveforms:
            recorded.clear()
            if "channels" in parts:
                features = waveform[None, None].detach()
                for index, layer in enumerate(front_end.conv_layers):
                    features = layer(features, None)
                    recorded["channels", index] = features = _with_gradient(features)
                features = features.transpose(1, 2)
            else:
                with torch.no_grad():
                    features = student.lighthubert.extract_features(waveform[None])
            predicted = student.prediction_head(student.lighthubert.encode(features).last_hidden_state)
            for _ in range(probes):
                direction = torch.randn(predicted.shape, generator=generator).to(predicted)
                gradients = torch.autograd.grad(predicted, list(recorded.values()), direction, retain_graph=True)
                for (part, index), gradient in zip(recorded, gradients, strict=True):
                    _add(found, part, index, recorded[part, index].detach(), gradient, student.config.head_dim)
    student.train(was_training)
    return found


def _add(
    found: Importance, part: str, index: int, states: torch.Tensor, gradient: torch.Tensor, head_dim: int
) -> None:
    """`states`, `gradient`: `(1, frames, channels)`, of the front end `(1, channels, frames)`."""
    if part == "channels":
        states, gradient = states.transpose(1, 2), gradient.transpose(1, 2)
    change = (states - states.mean(1, keepdim=True)) * gradient
    if part == "heads":
        change = change.unflatten(-1, (-1, head_dim)).sum(-1)
    change = change.square().sum((0, 1)).double().cpu()
    if part == "width":
        found.stream = change if found.stream is None else found.stream + change
    elif part == "channels":
        if index == len(found.channels):
            found.channels.append(torch.zeros_like(change))
        found.channels[index] += change
    else:
        by_layer = found.heads if part == "heads" else found.units
        by_layer[index] = by_layer.get(index, 0) + change


@contextmanager
def _recording(student: LightHubertForPreTraining, parts: set[str]) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    """What the modules of interest are given in each run, by part and layer."""
    recorded: dict[tuple[str, int], torch.Tensor] = {}
    encoder = student.lighthubert.encoder
    watched: list[tuple[nn.Module, str, int]] = []
    for index in encoder.active_layers:
        layer = encoder.layers[index]
        watched.append((layer.attention.out_proj, "heads", index))
        watched.append((layer.feed_forward.output_dense, "ffn", index))
        watched.append((layer, "width", index))
    watched.append((student.prediction_head, "width", len(encoder.layers)))

    def watch(module: nn.Module, part: str, index: int):
        def hook(_module, inputs):
            states = _with_gradient(inputs[0])
            recorded[part, index] = states
            return (states, *inputs[1:])

        return module.register_forward_pre_hook(hook)

    handles = [watch(*one) for one in watched if one[1] in parts]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _with_gradient(states: torch.Tensor) -> torch.Tensor:
    """Behind frozen layers the gradients begin here."""
    return states if states.requires_grad else states.requires_grad_(True)

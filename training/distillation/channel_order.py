"""Puts the channels of a front end that matter most first, before narrower ones are cut from it.

A narrow subnet takes the first channels of every convolution. Exchanging two of them, together with what the norm
knows of them and with the inputs of the next layer, leaves the function of the whole front end as it is: its norms are
over all channels, or of one channel each.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from lighthubert_hf import LightHubertModel
from lighthubert_hf.model.elastic import ElasticHead, ElasticLayerNorm

# Modules of which a width may have its own.
WITH_OWN = (ElasticHead, ElasticLayerNorm)


def order_channels(
    model: LightHubertModel, waveforms: Iterable[torch.Tensor], *, seed: int = 0, probes: int = 8
) -> None:
    """Reorder the channels of every convolution of `model`, in place, by `channel_importance`.

    Args:
        model: A supernet or a static model.
        waveforms: Normalised 16 kHz audio to measure on, `(samples,)` each; a minute does.
        seed: Of the random directions in which the change is measured.
        probes: How many of them.
    """
    with _whole(model):
        importance = channel_importance(model, waveforms, seed=seed, probes=probes)
    rearrange_channels(model, importance)


@torch.no_grad()
def rearrange_channels(model: LightHubertModel, importance: Sequence[torch.Tensor]) -> None:
    """Put the important channels of every convolution first, in place.

    Args:
        importance: `(channels,)` of each convolution.
    """
    layers = model.feature_extractor.conv_layers
    projection = model.feature_projection
    readers = [*(layer.conv for layer in layers[1:]), projection.projection]
    for layer, reader, scores in zip(layers, readers, importance, strict=True):
        order = scores.argsort(descending=True, stable=True)
        written = [*layer.conv.parameters(), *(layer.layer_norm.parameters() if layer.norm else ())]
        if reader is projection.projection:
            written += projection.layer_norm.parameters()
        for parameter in written:
            if len(parameter) == len(order):  # the norms of narrower widths begin anew, below
                _take(parameter, order, 0)
        _take(reader.weight, order, 1)
    for part in (model.feature_extractor, projection):
        share_with_widths(part)


def channel_importance(
    model: LightHubertModel, waveforms: Iterable[torch.Tensor], *, seed: int = 0, probes: int = 8
) -> list[torch.Tensor]:
    r"""How much the projected features would change if a channel were held at its mean: one `(channels,)` a layer.

    $$ I_c = \mathbb{E}_v \sum_t \Big( \big(a_{c,t} - \bar a_c\big)
             \frac{\partial \langle v, y \rangle}{\partial a_{c,t}} \Big)^2, \qquad v \sim \mathcal{N}(0, 1) $$

    where \(a_c\) is the channel's output and \(y\) the projected features: to first order the expected squared change,
    if frames change independently.
    """
    generator = torch.Generator().manual_seed(seed)
    convs = [layer.conv for layer in model.feature_extractor.conv_layers]
    totals = [torch.zeros(conv.out_channels, dtype=torch.float64) for conv in convs]
    for waveform in waveforms:
        activations, hidden_states = [], waveform[None, None].detach()
        with torch.enable_grad():
            for layer in model.feature_extractor.conv_layers:
                hidden_states = layer(hidden_states, None)
                if not hidden_states.requires_grad:
                    hidden_states.requires_grad_(True)
                activations.append(hidden_states)
            projected = model.feature_projection(hidden_states.transpose(1, 2))
            for _ in range(probes):
                direction = torch.randn(projected.shape, generator=generator).to(projected)
                gradients = torch.autograd.grad(projected, activations, direction, retain_graph=True)
                for total, states, gradient in zip(totals, activations, gradients, strict=True):
                    centred = states.detach() - states.detach().mean(-1, keepdim=True)
                    total += (centred * gradient).square().sum((0, 2)).double().cpu()
    return totals


def _whole(model: LightHubertModel) -> AbstractContextManager:
    """Run all channels of a supernet."""
    if model.search_space is None:
        return nullcontext()
    return model.subnet_activated(replace(model.search_space.largest(), conv_dim=tuple(model.config.conv_dim)))


def share_with_widths(model: nn.Module) -> None:
    """Start what a width has of its own (scales, shifts, heads) at the whole's."""
    for module in model.modules():
        if isinstance(module, WITH_OWN):
            module.share_with_widths()


def _take(parameter: torch.Tensor, order: torch.Tensor, dim: int) -> None:
    parameter.copy_(parameter.index_select(dim, order.to(parameter.device)))

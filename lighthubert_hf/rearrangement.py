"""Exchanges heads, FFN units and channels of the stream in a supernet's weights: narrow subnets keep the first.

Which heads and units come first is free: exchanging two heads together with the output projection's columns, or two
units together with the second linear layer's, leaves the whole network's function as it is. So it is with the channels
of the stream, as far as the groups of the positional convolution stay together: the norms are over all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.elastic import ElasticHead, ElasticLayerNorm
from lighthubert_hf.model.search_space import SearchSpace, Subnet, ffn_ranges


@dataclass(frozen=True)
class Rearrangement:
    """Takes the entries of a tensor along `dim` in another order."""

    dim: int
    order: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(self.dim, self.order.to(tensor.device))


def ffn_use(config: LightHubertConfig, space: SearchSpace) -> torch.Tensor:
    """In how many of the space's widths and ratios each FFN unit of a layer takes part: `(intermediate_size,)`."""
    use = torch.zeros(config.intermediate_size, dtype=torch.long)
    for width in space.hidden_size:
        for ratio in space.ffn_ratio:
            use[kept_units(config, width, int(ratio * width))] += 1
    return use


def kept_units(config: LightHubertConfig, width: int, num_units: int) -> torch.Tensor:
    """Which FFN units of the weights a subnet has: their indices, ascending."""
    ranges = ffn_ranges(width, num_units, config.hidden_size)
    return torch.cat([torch.arange(start, stop) for start, stop in ranges])


def rearranged_layers(
    config: LightHubertConfig, whole: Subnet, importance: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, Rearrangement]:
    """How to put the important heads and FFN units first, by the names of the encoder's weights.

    Only heads and units that `whole` uses change places, and only with one another: its function stays as it is.

    Args:
        config: the supernet's.
        importance: by layer, of its heads, `(num_attention_heads,)`, and FFN units, `(intermediate_size,)`.
    """
    heads, dim = torch.arange(config.num_attention_heads), config.head_dim
    free_units = torch.zeros(config.intermediate_size, dtype=torch.bool)
    free_units[kept_units(config, whole.hidden_size, max(whole.intermediate_size))] = True
    use, found = ffn_use(config, SearchSpace.from_dict(config.search_space)), {}
    for index, (of_heads, of_units) in importance.items():
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.feed_forward"
        order = _order(of_heads, -heads, heads < max(whole.num_attention_heads))
        channels = (order[:, None] * dim + torch.arange(dim)).flatten()
        found |= _rearrange(attention, ("q_proj", "k_proj", "v_proj"), "out_proj", channels)
        found |= _rearrange(ffn, ("intermediate_dense",), "output_dense", _order(of_units, use, free_units))
    return found


def _order(importance: torch.Tensor, use: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Which entry goes to each place: among the `free` places the most used one gets the most important entry."""
    order = torch.arange(len(use))
    places = order[free][use[free].argsort(descending=True, stable=True)]
    order[places] = order[free][importance.cpu()[free].argsort(descending=True, stable=True)]
    return order


def _rearrange(layer: str, first: tuple[str, ...], second: str, order: torch.Tensor) -> dict[str, Rearrangement]:
    """Outputs of the linear layers `first` and inputs of `second`, in the same new order."""
    rows = {f"{layer}.{name}.{part}": Rearrangement(0, order) for name in first for part in ("weight", "bias")}
    return rows | {f"{layer}.{second}.weight": Rearrangement(1, order)}


@torch.no_grad()
def rearrange(model: nn.Module, moves: Mapping[str, Rearrangement]) -> None:
    """Apply `moves` to the parameters of those names, in place."""
    parameters = dict(model.named_parameters())
    for name, move in moves.items():
        parameters[name].copy_(move(parameters[name]))


def stream_order(importance: torch.Tensor, groups: int) -> torch.Tensor:
    """Channels of the stream by importance, `(hidden_size,)`, as far as the positional convolution allows it.

    Its groups are ordered by the sum of their channels, and the channels within each: an arbitrary order would need
    weights that it does not have.
    """
    grouped = importance.cpu().view(groups, -1)
    inner = grouped.argsort(dim=1, descending=True, stable=True)
    outer = grouped.sum(1).argsort(descending=True, stable=True)
    return (torch.arange(groups)[:, None] * grouped.shape[1] + inner)[outer].flatten()


@torch.no_grad()
def rearrange_stream(model: nn.Module, order: torch.Tensor) -> None:
    """Take the channels of the stream in another order, in place; the function stays as it is.

    Args:
        model: a `LightHubertForPreTraining`, a supernet.
        order: as `stream_order` makes it: groups of the positional convolution stay together.
    """
    encoder, projection = model.lighthubert.encoder, model.lighthubert.feature_projection.projection
    conv, direction = encoder.pos_conv_embed.conv, encoder.pos_conv_embed.conv.parametrizations["weight"].original1
    rows = [projection.weight, projection.bias, model.lighthubert.masked_spec_embed, conv.bias, direction]
    columns, norms = [model.prediction_head.weight], [encoder.layer_norm]
    for layer in encoder.layers:
        attention, ffn = layer.attention, layer.feed_forward
        columns += [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        columns.append(ffn.intermediate_dense.weight)
        rows += [*attention.out_proj.parameters(), *ffn.output_dense.parameters()]
        norms += [layer.layer_norm, layer.final_layer_norm]
    rows += [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    for dim, parameters in ((0, rows), (1, columns)):
        for parameter in parameters:
            parameter.copy_(Rearrangement(dim, order)(parameter))
    # A kernel reads the channels of its own group, whose order is another now.
    size = direction.shape[1]
    inner = (order.view(conv.groups, size) % size).repeat_interleave(size, 0).to(direction.device)
    direction.copy_(direction.gather(1, inner[..., None].expand_as(direction)))
    for module in (model.prediction_head, *norms):  # what a width has of its own begins anew
        if isinstance(module, ElasticHead | ElasticLayerNorm):
            module.share_with_widths()

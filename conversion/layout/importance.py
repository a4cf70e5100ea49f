"""Orders attention heads and FFN units by importance, before subnets are trained.

A subnet takes the first heads of a layer, and FFN units in the order of the slices (`ffn_ranges`). Which heads and
units come first is free as long as nothing is trained on it: exchanging two heads together with the output
projection's columns, or two units together with the second linear layer's, leaves the full network's function as it
is. So the important ones are put where most subnets look. The residual stream is left alone: its channels are tied to
the groups of the positional convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lighthubert_hf import LightHubertConfig, SearchSpace
from lighthubert_hf.model.search_space import ffn_ranges


@dataclass(frozen=True)
class Rearrangement:
    """Takes the entries of a tensor along `dim` in another order."""

    dim: int
    order: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(self.dim, self.order)


def head_importance(value: torch.Tensor, output: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Frobenius norm of each head's map from the stream through its values back to the stream: `(heads,)`.

    Args:
        value: weight of the value projection, `(heads * head_dim, hidden_size)`.
        output: weight of the output projection, `(hidden_size, heads * head_dim)`.
    """
    values = value.float().unflatten(0, (-1, head_dim))
    outputs = output.float().unflatten(1, (-1, head_dim)).transpose(0, 1)
    # |O V|² = <OᵀO, VVᵀ>, which needs head_dim × head_dim numbers instead of hidden_size × hidden_size.
    inner = (outputs.transpose(1, 2) @ outputs) * (values @ values.transpose(1, 2))
    return inner.sum((1, 2)).clamp(min=0).sqrt()


def ffn_importance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What each FFN unit can add to the stream, `(units,)`: the norm of its inputs' weights times its outputs'.

    Args:
        first: weight of the first linear layer, `(units, hidden_size)`.
        second: weight of the second, `(hidden_size, units)`.
    """
    return first.float().norm(dim=1) * second.float().norm(dim=0)


def ffn_use(config: LightHubertConfig, space: SearchSpace) -> torch.Tensor:
    """In how many of the space's widths and ratios each FFN unit of a layer takes part: `(intermediate_size,)`."""
    use = torch.zeros(config.intermediate_size, dtype=torch.long)
    for width in space.hidden_size:
        for ratio in space.ffn_ratio:
            for start, stop in ffn_ranges(width, int(ratio * width), config.hidden_size):
                use[start:stop] += 1
    return use


def _order(importance: torch.Tensor, use: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Which entry goes to each place: among the `free` places the most used one gets the most important entry."""
    order = torch.arange(len(use))
    places = order[free][use[free].argsort(descending=True, stable=True)]
    order[places] = order[free][importance[free].argsort(descending=True, stable=True)]
    return order


def _rearrange(layer: str, first: tuple[str, ...], second: str, order: torch.Tensor) -> dict[str, Rearrangement]:
    """Outputs of the linear layers `first` and inputs of `second`, in the same new order."""
    rows = {f"{layer}.{name}.{part}": Rearrangement(0, order) for name in first for part in ("weight", "bias")}
    return rows | {f"{layer}.{second}.weight": Rearrangement(1, order)}


def rearrangements(config: LightHubertConfig, read: Callable[[str], torch.Tensor]) -> dict[str, Rearrangement]:
    """How to order a supernet's weights by importance, by name; the largest subnet's function stays as it is.

    Only heads and units that the largest subnet of the space uses change places, and only with one another.

    Args:
        config: the supernet's.
        read: its weights by name, those of the encoder layers.
    """
    space = SearchSpace.from_dict(config.search_space)
    largest, dim = space.largest(), config.head_dim
    width, heads = largest.hidden_size, torch.arange(config.num_attention_heads)
    free_units = torch.zeros(config.intermediate_size, dtype=torch.bool)
    for start, stop in ffn_ranges(width, max(largest.intermediate_size), config.hidden_size):
        free_units[start:stop] = True
    use, found = ffn_use(config, space), {}
    for index in range(config.num_hidden_layers):
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.feed_forward"
        value, output = read(f"{attention}.v_proj.weight"), read(f"{attention}.out_proj.weight")
        importance = head_importance(value[:, :width], output[:width], dim)
        order = _order(importance, -heads, heads < max(largest.num_attention_heads))
        channels = (order[:, None] * dim + torch.arange(dim)).flatten()
        found |= _rearrange(attention, ("q_proj", "k_proj", "v_proj"), "out_proj", channels)
        first, second = read(f"{ffn}.intermediate_dense.weight"), read(f"{ffn}.output_dense.weight")
        order = _order(ffn_importance(first[:, :width], second[:width]), use, free_units)
        found |= _rearrange(ffn, ("intermediate_dense",), "output_dense", order)
    return found

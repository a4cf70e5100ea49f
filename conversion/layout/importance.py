"""The order of attention heads and FFN units by the size of their weights, before subnets are trained.

The weights alone are looked at, for checkpoints without audio at hand. What may change places with what stands in
`lighthubert_hf.rearrangement`. The residual stream is left alone.
"""

from collections.abc import Callable

import torch

from lighthubert_hf import LightHubertConfig, SearchSpace
from lighthubert_hf.rearrangement import Rearrangement, rearranged_layers


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


def rearrangements(config: LightHubertConfig, read: Callable[[str], torch.Tensor]) -> dict[str, Rearrangement]:
    """How to order a supernet's weights by importance, by name; the largest subnet's function stays as it is.

    Only heads and units that the largest subnet of the space uses change places, and only with one another.

    Args:
        config: the supernet's.
        read: its weights by name, those of the encoder layers.
    """
    largest = SearchSpace.from_dict(config.search_space).largest()
    width, importance = largest.hidden_size, {}
    for index in range(config.num_hidden_layers):
        attention, ffn = f"encoder.layers.{index}.attention", f"encoder.layers.{index}.feed_forward"
        value, output = read(f"{attention}.v_proj.weight"), read(f"{attention}.out_proj.weight")
        first, second = read(f"{ffn}.intermediate_dense.weight"), read(f"{ffn}.output_dense.weight")
        importance[index] = (
            head_importance(value[:, :width], output[:width], config.head_dim),
            ffn_importance(first[:, :width], second[:width]),
        )
    return rearranged_layers(config, largest, importance)

"""Linear layers on weights laid out for the processor once, without gradients, in float32 on a CPU.

A matrix product first arranges both matrices in memory as its kernel wants them. oneDNN can keep the weights so
arranged: worth the more the fewer rows they meet, as in short audio. Layers of one input are one product. The active
slice of elastic layers runs as the static layers would that are cut out of it, to the bit.

The operators are those that `torch.compile` generates calls of. Where a build of torch lacks them, the layers run
themselves.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from .elastic import ElasticLinear
from .fast_paths import WeightCache, activate, can_pack, is_watched, runs_plainly, wants_gradients


class PackedWeight:
    """Weights `(out_features, in_features)` and bias of a linear layer, arranged for oneDNN if that can be."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.is_packed = weight.dtype == torch.float32 and can_pack()
        weight = weight.contiguous()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.is_packed else weight
        self._bias = bias

    def multiply(self, rows: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """`(..., in_features)` to `(..., out_features)`, and GELU of that."""
        if not self.is_packed:
            out = F.linear(rows, self._weight, self._bias)
            return F.gelu(out) if gelu else out
        operations = ("gelu", [], "none") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, *operations)


class PackedLinears:
    """Runs linear layers of one input, and an activation, on packed weights that it keeps; else as they are."""

    def __init__(self):
        self._packed = WeightCache()

    def run(
        self, linears: Sequence[nn.Module], hidden_states: torch.Tensor, activation: nn.Module | None = None
    ) -> Sequence[torch.Tensor]:
        """What each of `linears` makes of `hidden_states`, `(..., in_features)`, then the activation, if any."""
        if not self._may_replace(linears, hidden_states, activation):
            if activation is None:
                return [linear(hidden_states) for linear in linears]
            return [activate(activation, linear, hidden_states) for linear in linears]
        parameters = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
        ranges = [(linear.out_ranges, linear.in_ranges) for linear in linears if type(linear) is ElasticLinear]
        packed, sizes = self._packed.get(parameters, lambda: _pack(linears), ranges)
        return packed.multiply(hidden_states, gelu=activation is not None).split(sizes, -1)

    @staticmethod
    def _may_replace(linears, hidden_states: torch.Tensor, activation: nn.Module | None) -> bool:
        if not all(type(linear) in (nn.Linear, ElasticLinear) and linear.bias is not None for linear in linears):
            return False
        tensors = [hidden_states, *(tensor for linear in linears for tensor in (linear.weight, linear.bias))]
        watched = linears if activation is None else [*linears, activation]
        return (
            runs_plainly(tensors, (torch.float32,))
            and not wants_gradients(tensors)
            and not is_watched(*watched)
            and (activation is None or type(activation) is GELUActivation)
            and hidden_states.numel() > 0
            and can_pack()
        )

    def clear(self) -> None:
        """Forget the weights, which are about to be moved or cast."""
        self._packed.clear()


def _pack(linears: Sequence[nn.Linear]) -> tuple[PackedWeight, list[int]]:
    """What of `linears` takes part, as one layer, and how many outputs each of them has."""
    states = [
        linear.active_state() if type(linear) is ElasticLinear else {"weight": linear.weight, "bias": linear.bias}
        for linear in linears
    ]
    weights, biases = ([state[name] for state in states] for name in ("weight", "bias"))
    return PackedWeight(torch.cat(weights), torch.cat(biases)), [len(bias) for bias in biases]

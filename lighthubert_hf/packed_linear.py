"""Linear layers on weights laid out for the processor once, without gradients, in float32 on a CPU.

A matrix product first arranges both matrices in memory as its kernel wants them. oneDNN can keep the weights so
arranged: worth the more the fewer rows they meet, as in short audio. Layers of one input are one product.

The operators are those that `torch.compile` generates calls of. Where a build of torch lacks them, the layers run
themselves.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from .fast_paths import WeightCache, activate, is_watched, runs_plainly, wants_gradients


def can_pack() -> bool:
    """Whether oneDNN is there, is not switched off, and has the operators."""
    mkldnn = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(mkldnn, "_reorder_linear_weight")
        and hasattr(mkldnn, "_linear_pointwise")
    )


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

    def multiply_add(self, rows: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
        """What [`multiply`] gives, plus `addend`, `(rows, out_features)`; without bias."""
        if not self.is_packed:
            return torch.addmm(addend, rows, self._weight.T)
        return torch.ops.mkldnn._linear_pointwise.binary(rows, addend, self._weight, None, "add")


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
        weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
        packed = self._packed.get([*weights, *biases], lambda: PackedWeight(torch.cat(weights), torch.cat(biases)))
        out = packed.multiply(hidden_states, gelu=activation is not None)
        return out.split([len(bias) for bias in biases], -1)

    @staticmethod
    def _may_replace(linears, hidden_states: torch.Tensor, activation: nn.Module | None) -> bool:
        if not all(type(linear) is nn.Linear and linear.bias is not None for linear in linears):
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

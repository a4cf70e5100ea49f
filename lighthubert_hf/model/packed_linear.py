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
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .elastic import ElasticLinear
from .fast_paths import HALF_OR_MORE, WeightCache, can_pack, is_gelu, is_watched, runs_plainly, wants_gradients

# Exactly these: a subclass may compute something else, or keep what it returned.
_LINEARS = (nn.Linear, ElasticLinear)


def activate(activation: nn.Module, linear: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """`activation(linear(hidden_states))`, written over the linear layer's output where nobody else can hold that."""
    hidden_states = linear(hidden_states)
    if (
        not hidden_states.requires_grad
        and type(linear) in _LINEARS
        and is_gelu(activation)
        and runs_plainly([hidden_states], HALF_OR_MORE)
        and not is_watched(linear)
        and not _get_current_dispatch_mode_stack()
    ):
        return torch.ops.aten.gelu.out(hidden_states, out=hidden_states)
    return activation(hidden_states)


class PackedWeight:
    """Weights `(out_features, in_features)`, float32, and bias of a linear layer, arranged for oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias

    def multiply(self, rows: torch.Tensor, gelu: bool = False) -> torch.Tensor:
        """`(..., in_features)` to `(..., out_features)`, and GELU of that."""
        operations = ("gelu", [], "none") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise.default(rows, self._weight, self._bias, *operations)


class PackedLinears:
    """Keeps the weights of a module's linear layers packed, as long as they may stand in for the layers."""

    def __init__(self):
        self._packed = WeightCache()

    def get(
        self, groups: Sequence[Sequence[nn.Module]], hidden_states: torch.Tensor, activation: nn.Module | None = None
    ) -> list[PackedWeight] | None:
        """For each of `groups`, layers of one input, their outputs side by side as one product.

        Args:
            groups: linear layers. The first group reads `hidden_states`, the others what the module makes of it.
            activation: the module's activation, which has to be a GELU as transformers made it.

        `None` where the layers must run themselves.
        """
        linears = [linear for group in groups for linear in group]
        if not all(type(linear) in _LINEARS and linear.bias is not None for linear in linears):
            return None
        parameters = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
        tensors = [hidden_states, *parameters]
        if (
            not runs_plainly(tensors, (torch.float32,))
            or wants_gradients(tensors)
            or is_watched(*linears)
            or (activation is not None and not is_gelu(activation))
            or not hidden_states.numel()
            or not can_pack()
        ):
            return None
        ranges = [(linear.out_ranges, linear.in_ranges) for linear in linears if type(linear) is ElasticLinear]
        return self._packed.get(parameters, lambda: [_pack(group) for group in groups], ranges)

    def clear(self) -> None:
        """Forget the weights, which are about to be moved or cast."""
        self._packed.clear()


def _pack(linears: Sequence[nn.Linear]) -> PackedWeight:
    """What of `linears` takes part, as one layer."""
    states = [
        linear.active_state() if type(linear) is ElasticLinear else {"weight": linear.weight, "bias": linear.bias}
        for linear in linears
    ]
    weight, bias = (torch.cat([state[name] for state in states]) for name in ("weight", "bias"))
    return PackedWeight(weight, bias)

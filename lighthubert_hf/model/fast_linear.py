"""Linear layers by oneDNN's matrix product, without gradients, in float32 on a CPU.

On processors where torch's own product (MKL) stays below their peak, oneDNN's is faster, and it takes GELU along. It
reads the weights where they lie, at every call. The active slice of elastic layers is copied and runs as the static
layers would that are cut out of it, to the bit.

oneDNN could also keep weights arranged as its kernel wants them, which saves another twentieth. But such a copy is out
of date when somebody writes to the weights, and finding that out costs as much: one pass over all of them.

The operator is one that `torch.compile` generates calls of. Where a build of torch lacks it, the layers run
themselves.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .elastic import ElasticLinear
from .fast_paths import HALF_OR_MORE, has_onednn, is_gelu, is_watched, runs_plainly, wants_gradients

# Exactly these: a subclass may compute something else, or keep what it returned.
_LINEARS = (nn.Linear, ElasticLinear)


def can_multiply(
    linears: Sequence[nn.Module], hidden_states: torch.Tensor, activation: nn.Module | None = None
) -> bool:
    """Whether `multiply` may stand in for `linears`. Asked once for several: for each it would tell in short audio.

    Args:
        linears: the first reads `hidden_states`, the others what the module makes of it.
        activation: what is asked of `multiply`, which has to be a GELU as transformers made it.
    """
    if not all(type(linear) in _LINEARS and linear.bias is not None for linear in linears):
        return False
    tensors = [hidden_states, *(parameter for linear in linears for parameter in (linear.weight, linear.bias))]
    return (
        runs_plainly(tensors, (torch.float32,))
        and not wants_gradients(tensors)
        and not is_watched(*linears)
        and (activation is None or is_gelu(activation))
        and hidden_states.numel() > 0
        and has_onednn()
    )


def multiply(linear: nn.Module, hidden_states: torch.Tensor, gelu: bool = False) -> torch.Tensor:
    """`linear(hidden_states)`, and GELU of that, where `can_multiply` says so."""
    weight, bias = linear.weight, linear.bias
    if type(linear) is ElasticLinear:
        state = linear.active_state()
        weight, bias = state["weight"], state["bias"]
    return product(hidden_states, weight.contiguous(), bias, gelu)  # views of some columns take a loop, far slower


def product(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool = False
) -> torch.Tensor:
    """oneDNN's product of `(..., in_features)` and the contiguous `(out_features, in_features)`."""
    operations = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise.default(hidden_states, weight, bias, *operations)


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

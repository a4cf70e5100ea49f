"""When a fast path may stand in for plain modules, and where it keeps what it computes from their weights.

A fast path computes what the modules would. It must not run where somebody records or transforms the computation
(tracing, export, compilation, counting of FLOP), has put something else in a module's place (adapters, quantisation),
or watches it (hooks).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers.activations import GELUActivation

PRECISE = (torch.float32, torch.float64)
HALF_OR_MORE = (*PRECISE, torch.bfloat16, torch.float16)

_SAMPLES = 64


def is_recorded() -> bool:
    """Whether the computation is traced, exported, compiled, transformed, or its FLOP are counted."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or torch._C._are_functorch_transforms_active()
        # Of dispatch modes torch's own record or count what is computed; others, which watch it run, may.
        or any(type(mode).__module__.startswith("torch.") for mode in _get_current_dispatch_mode_stack())
    )


def runs_plainly(tensors: Iterable[torch.Tensor], dtypes: Sequence[torch.dtype]) -> bool:
    """Whether an operation on `tensors` is simply executed, on a CPU, in the one of `dtypes` that all of them have.

    Subclasses of `torch.Tensor` (fake, quantised, distributed) mean something else than their numbers: no.
    """
    first, *others = tensors
    return (
        first.dtype in dtypes
        and not is_recorded()
        and not torch.is_autocast_enabled("cpu")
        and all(tensor.dtype == first.dtype for tensor in others)
        and all(type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_cpu for tensor in (first, *others))
    )


def can_pack() -> bool:
    """Whether oneDNN is there, is not switched off, and has the operators of `packed_linear`."""
    mkldnn = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(mkldnn, "_reorder_linear_weight")
        and hasattr(mkldnn, "_linear_pointwise")
    )


def wants_gradients(tensors: Iterable[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def activate(activation: nn.Module, linear: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """`activation(linear(hidden_states))`, written over the linear layer's output where nobody else can hold that."""
    hidden_states = linear(hidden_states)
    if (
        type(activation) is GELUActivation
        and not hidden_states.requires_grad
        and runs_plainly([hidden_states], HALF_OR_MORE)
        and isinstance(linear, nn.Linear)
        and not is_watched(activation, linear)
    ):
        return torch.ops.aten.gelu.out(hidden_states, out=hidden_states)
    return activation(hidden_states)


def is_watched(*modules: nn.Module) -> bool:
    """Whether one of `modules` has hooks, which a fast path past it would not call."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in modules for kind in kinds)


class WeightCache:
    """One value computed from some tensors; computed anew when one of them is replaced, moved or written to.

    PyTorch counts in-place writes, except those through `tensor.data`. So a few values spread over each tensor are
    compared as well, which finds what optimisers and averages do to all of a tensor, though not a change of single
    elements through `.data`: assign a new tensor for that.

    A copy or a pickle of the cache is empty: the value can be computed again, and is no part of the model's state.
    """

    def __init__(self):
        self._entry: tuple[list, list[torch.Tensor], list[torch.Tensor], Any] | None = None

    def get(self, tensors: Sequence[torch.Tensor], compute: Callable[[], Any], part: Any = None) -> Any:
        """What `compute()` returns; it runs without gradients and outside inference mode.

        `part` names what else it depends on: which part of the tensors is used.
        """
        keys = [part, *map(_identity, tensors)]
        entry = self._entry  # read once: another thread may replace it
        if entry is not None and entry[0] == keys and all(map(torch.equal, entry[1], entry[2])):
            return entry[3]
        with torch.inference_mode(False), torch.no_grad():
            # These views keep the memory alive, so that no other tensor can come to lie at the same address.
            views = [_sample(tensor) for tensor in tensors]
            samples = [view.clone() for view in views]
            value = compute()
        self._entry = (keys, views, samples, value)
        return value

    def clear(self) -> None:
        self._entry = None

    def __reduce__(self):
        return WeightCache, ()


def _identity(tensor: torch.Tensor) -> tuple:
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.stride()


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Up to `_SAMPLES` values spread over the memory that `tensor` spans, as a view."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    step = -(-span // _SAMPLES)
    return tensor.detach().as_strided((-(-span // step),), (step,), tensor.storage_offset())

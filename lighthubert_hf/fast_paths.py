"""When a fast path may stand in for plain modules, and where it keeps what it computes from their weights.

A fast path computes what the modules would. It must not run where somebody records or transforms the computation
(tracing, export, compilation), has put something in a module's place (adapters, quantisation), or watches it (hooks).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

_SAMPLES = 64


def runs_plainly(tensors: Iterable[torch.Tensor], dtypes: Sequence[torch.dtype]) -> bool:
    """Whether an operation on `tensors` is simply executed, on a CPU, in the one of `dtypes` that all of them have.

    Subclasses of `torch.Tensor` (fake, quantised, distributed) mean something else than their numbers: no.
    """
    tensors = list(tensors)
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and tensors[0].dtype in dtypes
        and all(
            type(tensor) in (torch.Tensor, nn.Parameter) and tensor.is_cpu and tensor.dtype == tensors[0].dtype
            for tensor in tensors
        )
    )


def wants_gradients(tensors: Iterable[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_watched(*modules: nn.Module) -> bool:
    """Whether one of `modules` has forward hooks, which a fast path past it would not call."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class WeightCache:
    """One value computed from some tensors; computed anew when one of them is replaced, moved or written to.

    PyTorch counts in-place writes, except those through `tensor.data`. So a few values spread over each tensor are
    compared as well, which finds what optimisers and averages do to all of a tensor, though not a change of single
    elements through `.data`: assign a new tensor for that.

    A copy or a pickle of the cache is empty: the value can be computed again, and is no part of the model's state.
    """

    def __init__(self):
        self._entry: tuple | None = None

    def get(self, tensors: Sequence[torch.Tensor], compute: Callable[[], Any]) -> Any:
        """What `compute()` returns. It runs without gradients and outside inference mode."""
        keys = [_identity(tensor) for tensor in tensors]
        entry = self._entry  # read once: another thread may replace it
        if entry is not None and entry[0] == keys and all(map(torch.equal, map(_sample, tensors), entry[1])):
            return entry[2]
        with torch.inference_mode(False), torch.no_grad():
            samples = [_sample(tensor).clone() for tensor in tensors]
            value = compute()
        # The detached tensors keep their memory alive, so that no other tensor can come to lie at the same address.
        self._entry = (keys, samples, value, [tensor.detach() for tensor in tensors])
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

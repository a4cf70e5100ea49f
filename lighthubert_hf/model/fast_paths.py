"""When a fast path may stand in for plain modules, and where it keeps what it computes from their weights.

A fast path computes what the modules would. It must not run where somebody records or transforms the computation
(tracing, export, compilation, counting of FLOP), has put something else in a module's place (adapters, quantisation,
a `forward` of the instance's own), or watches it (hooks).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers.activations import GELUActivation

PRECISE = (torch.float32, torch.float64)
HALF_OR_MORE = (*PRECISE, torch.bfloat16, torch.float16)

_PLAIN = (torch.Tensor, nn.Parameter)
_SAMPLES = 64


def is_recorded() -> bool:
    """Whether the computation is traced, exported, compiled, transformed, or its FLOP are counted."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # also where torch.onnx exports
        or torch._C._are_functorch_transforms_active()
        # Of dispatch modes torch's own record or count what is computed; others, which watch it run, may.
        or any(type(mode).__module__.startswith("torch.") for mode in _get_current_dispatch_mode_stack())
        # A function mode replaces functions of torch as it likes; a default device only where tensors are made.
        or any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
    )


def runs_plainly(tensors: Iterable[torch.Tensor], dtypes: Sequence[torch.dtype]) -> bool:
    """Whether an operation on `tensors` is simply executed, on a CPU, in the one of `dtypes` that all of them have.

    Subclasses of `torch.Tensor` (fake, quantised, distributed) mean something else than their numbers: no.
    """
    tensors = list(tensors)
    dtype = tensors[0].dtype
    if dtype not in dtypes or is_recorded() or torch.is_autocast_enabled("cpu"):
        return False
    # A loop, as `all` of a generator takes twice as long, which tells in short audio.
    for tensor in tensors:
        if type(tensor) not in _PLAIN or tensor.dtype is not dtype or not tensor.is_cpu:
            return False
    return True


def can_pack() -> bool:
    """Whether oneDNN is there, is not switched off, and has the operators of `packed_linear`."""
    mkldnn = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(mkldnn, "_reorder_linear_weight")
        and hasattr(mkldnn, "_linear_pointwise")
    )


def wants_gradients(tensors: Iterable[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_watched(*modules: nn.Module) -> bool:
    """Whether one of `modules` has hooks or a `forward` of its own, which a fast path past it would not call.

    Hooks of all modules count as well. An instance's own `forward` is how accelerate, quantisers and profilers patch.
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
    return bool(_has_any_global_hook()) or any(vars(module).get(kind) for module in modules for kind in kinds)


def is_gelu(activation: nn.Module) -> bool:
    """Whether `activation` is the exact GELU, and nobody has changed or watches it."""
    return type(activation) is GELUActivation and activation.act is F.gelu and not is_watched(activation)


class WeightCache:
    """One value computed from some tensors; computed anew when one of them is replaced, moved or written to.

    PyTorch counts in-place writes, except those through `tensor.data`. So a few values spread over each tensor are
    compared as well, which finds what optimisers and averages do to all of a tensor, though not a change of single
    elements through `.data`: assign a new tensor for that.

    A copy or a pickle of the cache is empty: the value can be computed again, and is no part of the model's state.
    """

    def __init__(self):
        self._entry: tuple[Any, list[_Seen], Any] | None = None

    def get(self, tensors: Sequence[torch.Tensor], compute: Callable[[], Any], part: Any = None) -> Any:
        """What `compute()` returns; it runs without gradients and outside inference mode.

        `part` names what else it depends on: which part of the tensors is used.
        """
        entry = self._entry  # read once: another thread may replace it
        if entry is not None and entry[0] == part and _are_as_seen(tensors, entry[1]):
            return entry[2]
        with torch.inference_mode(False), torch.no_grad():
            seen = list(map(_see, tensors))
            value = compute()
        self._entry = (part, seen, value)
        return value

    def clear(self) -> None:
        self._entry = None

    def __reduce__(self) -> tuple[type["WeightCache"], tuple]:
        return WeightCache, ()


class _Seen(NamedTuple):
    """What a tensor was: itself (which keeps its memory from being used anew), its count of writes, some values."""

    tensor: torch.Tensor
    version: int | None
    view: torch.Tensor
    values: torch.Tensor


def _see(tensor: torch.Tensor) -> _Seen:
    """With up to `_SAMPLES` values, spread over the memory that `tensor` spans."""
    tensor = tensor.detach()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    step = -(-span // _SAMPLES)
    view = tensor.as_strided((-(-span // step),), (step,), tensor.storage_offset())
    return _Seen(tensor, _version(tensor), view, view.clone())


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _are_as_seen(tensors: Sequence[torch.Tensor], seen: Sequence[_Seen]) -> bool:
    if len(tensors) != len(seen):
        return False
    for tensor, (same, version, view, values) in zip(tensors, seen):
        if not (tensor.is_set_to(same) and _version(tensor) == version and torch.equal(view, values)):
            return False
    return True

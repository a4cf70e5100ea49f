"""When a fast path may stand in for plain modules, and where it keeps what it computes from their weights.

A fast path computes what the modules would. It must not run where somebody records or transforms the computation
(tracing, export, compilation, counting of FLOP), has put something else in a module's place (adapters, quantisation,
a `forward` of the instance's own), or watches it (hooks).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

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


def _functions() -> tuple[Callable, ...]:
    """What of torch fast paths stand in for."""
    return nn.Module.__call__, F.linear, F.conv1d, F.layer_norm, F.group_norm


_FUNCTIONS = _functions()
# Classes whose `forward` was found to be their own.
_own_forwards: dict[type, Callable] = {}


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


def has_onednn() -> bool:
    """Whether oneDNN is there, is not switched off, and has the operator of `fast_linear`."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and bool(mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def wants_gradients(tensors: Iterable[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_watched(*modules: nn.Module) -> bool:
    """Whether one of `modules` has hooks or a `forward` put in its place, which a fast path past it would not call.

    Hooks of all modules count as well, and functions of torch that were replaced. An instance's own `forward` is how
    accelerate, quantisers and profilers patch; others do it to the class, or to `torch.nn.functional`.
    """
    if _has_any_global_hook() or _functions() != _FUNCTIONS:
        return True
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "forward")
    return any(
        not _has_own_forward(type(module)) or any(vars(module).get(kind) for kind in kinds) for module in modules
    )


def _has_own_forward(kind: type) -> bool:
    """Whether the `forward` of a class is the one that was written with it."""
    forward = kind.forward
    if _own_forwards.get(kind) is forward:
        return True
    home = next(cls for cls in kind.__mro__ if "forward" in vars(cls))
    # Where it was really written: wrappers take over the names of what they wrap. transformers' own may be around it.
    written = getattr(forward, "__globals__", {}).get("__name__", "")
    if written != home.__module__ and not written.startswith("transformers."):
        return False
    _own_forwards[kind] = forward
    return True


def is_gelu(activation: nn.Module) -> bool:
    """Whether `activation` is the exact GELU, and nobody has changed or watches it."""
    return type(activation) is GELUActivation and activation.act is F.gelu and not is_watched(activation)


class WeightCache:
    """One value computed from some tensors, and copies of these; computed anew when one of them is not as its copy.

    All is compared, each time. Nothing less notices every change: torch counts no writes through `tensor.data`, numpy
    or another process, nor the steps of fused optimisers, nor any write to a tensor made in inference mode. It costs
    two readings of the tensors, so a cache pays for what is dear to compute from few weights only.

    A copy or a pickle of the cache is empty: the value can be computed again, and is no part of the model's state.
    """

    def __init__(self) -> None:
        self._entry: tuple[Any, list[torch.Tensor], Any] | None = None

    def get(self, tensors: Sequence[torch.Tensor], compute: Callable[[], Any], part: Any = None) -> Any:
        """What `compute()` returns; it runs without gradients and outside inference mode.

        `part` names what else it depends on: which part of the tensors is used.
        """
        entry = self._entry  # read once: another thread may replace it
        if entry is not None and entry[0] == part and are_equal(tensors, entry[1]):
            return entry[2]
        with torch.inference_mode(False), torch.no_grad():
            # First the copies: what is written in between differs from them, and is found the next time.
            copies = [tensor.detach().clone() for tensor in tensors]
            value = compute()
        self._entry = (part, copies, value)
        return value

    def clear(self) -> None:
        self._entry = None

    def __reduce__(self) -> tuple[type["WeightCache"], tuple]:
        return WeightCache, ()


def are_equal(tensors: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]) -> bool:
    return len(tensors) == len(copies) and all(map(_is_equal, tensors, copies))


def _is_equal(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether both are the same bits in the same shape."""
    if (tensor.shape, tensor.dtype, tensor.device) != (copy.shape, copy.dtype, copy.device):
        return False
    return torch.equal(*_bits(tensor.detach(), copy))


def _bits(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """What tensors of one type hold as whole numbers, of 8 bytes each where that can be: they are compared fastest."""
    size = tensors[0].element_size()
    if all(t.is_contiguous() and not t.numel() * size % 8 and not t.storage_offset() * size % 8 for t in tensors):
        return [tensor.view(-1).view(torch.int64) for tensor in tensors]
    return [tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size]) for tensor in tensors]

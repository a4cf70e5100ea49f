"""Keeps what fast paths compute from weights (packed, folded, transformed) until those weights change."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

_SAMPLES = 64


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

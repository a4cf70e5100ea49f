"""Threads: no output ever comes from two subnets.

Which subnet is active is state of the whole model. Activating one takes a moment, in which no other is activated and
no `forward` starts; a `forward` during which it happened has no output but an error.
"""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Forward = TypeVar("Forward", bound=Callable)

_CHANGED = (
    "the active subnet was changed while forward ran, so there is no output; let each thread run a model of its own "
    "(extract_subnet gives one), or hold a lock around set_active_subnet and forward"
)
_lock = threading.Lock()


def activation_lock() -> threading.Lock:
    """To be held while a subnet is being activated."""
    return _lock


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a thread that holds it does not exist in the child
    os.register_at_fork(after_in_child=_renew_lock)


def of_one_subnet(forward: Forward) -> Forward:
    """Decorates a method of a model: a `RuntimeError` if another subnet was activated while it ran.

    The base model counts in `activations` how often that happened.
    """

    @functools.wraps(forward)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.search_space is None or torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        self._check_no_adapters()
        base = self.base_model
        with activation_lock():
            before = base.activations
        try:
            out = forward(self, *args, **kwargs)
        except Exception as error:
            if base.activations == before:
                raise
            raise RuntimeError(_CHANGED) from error
        if base.activations != before:
            raise RuntimeError(_CHANGED)
        return out

    return guarded  # pyrefly: ignore[bad-return]

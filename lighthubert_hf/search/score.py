"""What makes a subnet good: a function of the subnet, given as it is or by name."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighthubert_hf.absent import absent
from lighthubert_hf.model.search_space import Subnet


@dataclass(frozen=True)
class Score:
    """What makes a subnet good.

    Args:
        function: takes a `Subnet`, returns a number; it must depend on the subnet alone.
        name: under which it is reported.
        maximize: whether more is better.
        fingerprint: tells scores apart that are not comparable (other data, another teacher), so that a search is not
            resumed with another one.
        description: what it is measured on, in words, for the cards of the subnets.
        baseline: the score of what needs no model, to read the others by: of the distillation loss that of always
            predicting the mean target.
        teacher: of the model that subnets are compared with "name", "parameters", "macs_per_second", and its `shape`.
    """

    function: Callable[[Subnet], float]
    name: str = "loss"
    maximize: bool = False
    fingerprint: str = ""
    description: str | None = None
    baseline: float | None = None
    teacher: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, reference: str, maximize: bool = False) -> "Score":
        """The function `NAME` given as `package.module:NAME` or `path/to/file.py:NAME`.

        Raises:
            ValueError, FileNotFoundError: if there is no such function.
        """
        place, _, name = reference.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError(f"cannot read the score {reference!r}; write package.module:function or file.py:function")
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise absent("file of a score", place)
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)
            load = functools.partial(spec.loader.exec_module, module)
        else:
            load = functools.partial(importlib.import_module, place)
        try:
            module = load() or module
        except Exception as error:  # whatever a user's code does
            raise ValueError(f"cannot import {place} for the score {name}: {_told(error)}") from error
        function = getattr(module, name, None)
        if not callable(function):
            raise ValueError(f"{place} has no function {name}")

        @functools.wraps(function)
        def score(subnet: Subnet) -> float:
            try:
                return float(function(subnet))
            except Exception as error:
                raise ValueError(f"the score {reference} failed for {subnet}: {_told(error)}") from error

        return cls(score, name, maximize, reference)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

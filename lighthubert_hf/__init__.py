"""LightHuBERT for Hugging Face Transformers: supernets, the subnets cut out of them, and how to choose one."""

import gc
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` imports when it is asked for
    from .model.configuration_lighthubert import LightHubertConfig
    from .model.modeling_lighthubert import (
        LightHubertForAudioFrameClassification,
        LightHubertForCTC,
        LightHubertForPreTraining,
        LightHubertForSequenceClassification,
        LightHubertForXVector,
        LightHubertModel,
    )
    from .model.search_space import SearchSpace, Subnet

__version__ = "0.1.0"

__all__ = [
    "LightHubertConfig",
    "LightHubertForAudioFrameClassification",
    "LightHubertForCTC",
    "LightHubertForPreTraining",
    "LightHubertForSequenceClassification",
    "LightHubertForXVector",
    "LightHubertModel",
    "SearchSpace",
    "Subnet",
]
_HOMES = {
    "LightHubertConfig": "model.configuration_lighthubert",
    "SearchSpace": "model.search_space",
    "Subnet": "model.search_space",
}  # of the others: model.modeling_lighthubert


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "model.modeling_lighthubert")
    if home != "model.search_space":
        _register()
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register() -> None:
    """Without collections of garbage meanwhile: imports make none, and looking for it takes a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(".auto", __name__).register()
    finally:
        if enabled:
            gc.enable()


# Importing the package registers the Auto classes, which takes torch and transformers. The command `lighthubert`
# answers `--help` without them: there the first name taken from the package registers.
if "lighthubert_command" not in sys.modules:
    _register()

"""LightHuBERT for Hugging Face Transformers: supernets, the subnets cut out of them, and how to choose one."""

import importlib
import sys
from pathlib import Path

__version__ = "0.1.0"

_EXPORTS = {
    "LightHubertConfig": "model.configuration_lighthubert",
    "LightHubertForAudioFrameClassification": "model.modeling_lighthubert",
    "LightHubertForCTC": "model.modeling_lighthubert",
    "LightHubertForPreTraining": "model.modeling_lighthubert",
    "LightHubertForSequenceClassification": "model.modeling_lighthubert",
    "LightHubertForXVector": "model.modeling_lighthubert",
    "LightHubertModel": "model.modeling_lighthubert",
    "SearchSpace": "model.search_space",
    "Subnet": "model.search_space",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _EXPORTS[name] != "model.search_space":
        _register()
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register() -> None:
    importlib.import_module(".auto", __name__).register()


# Importing the package registers the Auto classes, which takes torch and transformers. The command line answers
# `--help` without them: there the first name taken from the package registers.
if Path(sys.argv[0] if sys.argv else "").stem != "lighthubert":
    _register()

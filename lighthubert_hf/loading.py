"""Loading by name for the command line: folders and Hub ids, with errors a user can act on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import choose_device

if TYPE_CHECKING:  # imported when used: the command line starts without transformers
    from transformers import PreTrainedModel

    from .model.modeling_lighthubert import LightHubertPreTrainedModel


def load_lighthubert(name: str, revision: str | None = None) -> "LightHubertPreTrainedModel":
    """The LightHuBERT model saved in a folder or Hub repository, with the head it was saved with, for evaluation.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a model of another kind.
    """
    from transformers import AutoConfig

    import lighthubert_hf

    from .auto import register

    register()
    config = _loaded(AutoConfig, name, revision)
    if config.model_type != "lighthubert":
        raise ValueError(
            f"{name} is a {config.model_type} model, not a LightHuBERT; `lighthubert convert` makes a supernet of it"
        )
    architecture = (config.architectures or ["LightHubertModel"])[0]
    return _loaded(getattr(lighthubert_hf, architecture), name, revision).eval()


def load_encoder(name: str, revision: str | None = None) -> "PreTrainedModel":
    """Any encoder that `AutoModel` loads, for evaluation.

    Raises:
        FileNotFoundError: if there is none.
    """
    from transformers import AutoModel

    from .auto import register

    register()
    return _loaded(AutoModel, name, revision).eval()


def is_static(name: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a LightHuBERT that is no supernet.

    Raises:
        FileNotFoundError: if there is no model.
    """
    from transformers import AutoConfig

    from .auto import register

    register()
    config = _loaded(AutoConfig, name, revision)
    return config.model_type == "lighthubert" and config.search_space is None


def on_device(model: "PreTrainedModel", device: str | None) -> "PreTrainedModel":
    """`model` moved to `device`; where it is, if that is `None`.

    Raises:
        ValueError: if there is no such device here.
    """
    return model if device is None else model.to(choose_device(device))


def _loaded(cls: Any, name: str, revision: str | None) -> Any:
    try:
        return cls.from_pretrained(name, revision=revision)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        what = "folder" if Path(name).is_dir() else "folder, and no Hub id that can be reached"
        raise FileNotFoundError(f"no model can be loaded from {name}: no complete {what} ({first})") from None

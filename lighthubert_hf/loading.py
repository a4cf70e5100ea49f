"""Loading by name for the command line: folders and Hub ids, with errors a user can act on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
    config = _loaded(AutoConfig.from_pretrained, name, revision)
    if config.model_type != "lighthubert":
        raise ValueError(
            f"{name} is a {config.model_type} model, not a LightHuBERT; `lighthubert convert` makes a supernet of it"
        )
    architecture = (config.architectures or ["LightHubertModel"])[0]
    return _loaded(partial(load_whole, getattr(lighthubert_hf, architecture)), name, revision).eval()


def load_encoder(name: str, revision: str | None = None) -> "PreTrainedModel":
    """Any encoder that `AutoModel` loads, for evaluation.

    Raises:
        FileNotFoundError: if there is none.
    """
    from transformers import AutoModel

    from .auto import register

    register()
    return _loaded(partial(load_whole, AutoModel), name, revision).eval()


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


def _loaded(load: Callable[..., Any], name: str, revision: str | None) -> Any:
    try:
        return load(name, revision=revision)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        what = "folder" if Path(name).is_dir() else "folder, and no Hub id that can be reached"
        raise FileNotFoundError(f"no model can be loaded from {name}: no complete {what} ({first})") from None


def load_whole(cls: Any, name: str, **options: Any) -> "PreTrainedModel":
    """`cls.from_pretrained`, without transformers' table of the weights that are left out: heads are, on purpose.

    Raises:
        ValueError: if the checkpoint lacks weights of the model.
    """
    with without_load_report():
        model, info = cls.from_pretrained(name, output_loading_info=True, **options)
    # Models that never mask have no embedding for it.
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} weights of its architecture, such as {missing[0]}")
    return model


@contextmanager
def without_load_report() -> Iterator[None]:
    """transformers reports what it leaves out or makes anew as a problem; for callers that check what is missing."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)

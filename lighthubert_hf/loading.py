"""The one place where models are loaded by name: folders and Hub ids, all their weights or an error of one line.

transformers fills weights that it does not find with random numbers, and goes on where others are left over. Nothing
in this package may compute with a model like that: whoever needs one loads it here.
"""

import dataclasses
import difflib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .absent import absent
from .devices import choose_device
from .files import read_object
from .weights import INDEX, WEIGHTS, WeightsError, check_finite, check_floating, some, stored_tensors, weight_files

if TYPE_CHECKING:  # imported when used: the command line starts without transformers
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from .model.modeling_lighthubert import LightHubertPreTrainedModel

_PICKLED = "pytorch_model.bin"
# What only training with masks needs; models of other families are often published without. See `load`.
_MASK_EMBEDDING = "masked_spec_embed"
# Any of them is enough for a tokenizer.
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
_AGAIN = "fetch it or save the model again"


@dataclass(frozen=True)
class Loaded:
    """A model, and how its weights differ from those that lie in its files.

    Args:
        model: In evaluation mode.
        absent: Weights of the model that the files lack and that the caller allowed to be new.
        left_out: Weights of the files that are a head's, which the model has not.
    """

    model: "PreTrainedModel"
    absent: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()


def load(
    cls: Any,
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    may_be_new: Callable[[str], bool] = lambda _: False,
    read_values: bool = True,
    **options: Any,
) -> Loaded:
    """`cls.from_pretrained`, and an error where that would fill gaps or overlook something.

    A head that the class has not is left out. A model of another family than LightHuBERT may lack its mask embedding;
    it then has none, so that nobody computes with a random one.

    Args:
        cls: A model class, or one of transformers' Auto classes.
        name: Folder or Hub id.
        may_be_new: Which weights, by name, may be missing or of another shape, and are then drawn anew.
        read_values: Read all weights to see whether they are finite. Otherwise they stay on disk until they are used.
        options: As `from_pretrained` takes them.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: Its config describes no model, or one that is no `cls`.
        WeightsError: Weights are missing, of another shape, left over, twice there, integers or not finite, or their
            file is damaged.
    """
    name = str(name)
    if "config" not in options:
        kind, own = load_config(name, revision, token).model_type, getattr(cls, "config_class", None)
        if own is not None and kind != own.model_type:
            raise ValueError(f"{name} is a {kind} model, not a {own.model_type}")
    model, report = _from_pretrained(cls, name, revision=revision, token=token, **options)
    revision = getattr(model.config, "_commit_hash", None) or revision
    files = _files(name, revision, token)
    where = next(iter(files.values())) if len(files) == 1 else name
    stored: list[str] = []
    for path, called in files.items():
        tensors = stored_tensors(path, called)
        check_floating({key: dtype for key, (dtype, _) in tensors.items()}, called)
        stored += tensors
    prefix = f"{model.base_model_prefix}."
    _check_once(stored, prefix, where)
    kind = type(model).__name__
    wrong = {key: f"{key} is {tuple(found)}, must be {tuple(own)}" for key, found, own in report["mismatched_keys"]}
    lost = {str(key) for key in report["missing_keys"]}
    absent = frozenset(key for key in {*wrong, *lost} if may_be_new(key))
    if bad := [text for key, text in wrong.items() if key not in absent]:
        raise WeightsError(f"{where} has {len(bad)} weights of shapes that its config has not: {some(bad)}; {_AGAIN}")
    no_masks = {key for key in lost if key.endswith(_MASK_EMBEDDING) and model.config.model_type != "lighthubert"}
    if gone := lost - absent - no_masks:
        raise WeightsError(f"{where} lacks {len(gone)} weights of a {kind} of its config: {some(gone)}; {_AGAIN}")
    left_out = frozenset(str(key) for key in report["unexpected_keys"])
    if more := left_out - _beside(model, left_out, stored):
        raise WeightsError(
            f"{where} has {len(more)} weights that a {kind} of its config has not: {some(more)}; correct the config, "
            f"or {_AGAIN}"
        )
    if no_masks - absent:
        del model.base_model.masked_spec_embed
    if read_values:
        check_finite({key: tensor for key, tensor in model.state_dict().items() if key not in absent}, where)
    return Loaded(model.eval(), absent, left_out)


def load_lighthubert(name: str, revision: str | None = None) -> "LightHubertPreTrainedModel":
    """The LightHuBERT model saved in a folder or Hub repository, with the head it was saved with, for evaluation.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is a model of another kind, or its weights are not what they should be (see `load`).
    """
    import lighthubert_hf

    config = load_config(name, revision)
    if config.model_type != "lighthubert":
        raise ValueError(
            f"{name} is a {config.model_type} model, not a LightHuBERT; `lighthubert convert` makes a supernet of it"
        )
    architecture = (config.architectures or ["LightHubertModel"])[0]
    known = [one for one in lighthubert_hf.__all__ if one.startswith("LightHubert") and one != "LightHubertConfig"]
    if architecture not in known:
        raise ValueError(f"{name}: its config names the architecture {architecture!r}; known are {', '.join(known)}")
    model: Any = load(getattr(lighthubert_hf, architecture), name, revision=revision).model
    return model


def check_loads(folder: str | Path) -> None:
    """See that a model folder's weights are those of the class that its config names, all of them and no others.

    Raises:
        FileNotFoundError, WeightsError: as `load`.
    """
    import transformers

    import lighthubert_hf

    config = load_config(folder)
    architecture = (config.architectures or [""])[0]
    cls = getattr(lighthubert_hf if config.model_type == "lighthubert" else transformers, architecture, None)
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    load(cls if known else transformers.AutoModel, folder)


def load_encoder(
    name: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    dtype: "torch.dtype | None" = None,
) -> "PreTrainedModel":
    """Any encoder that `AutoModel` loads, for evaluation; its head is left out.

    Raises:
        FileNotFoundError: There is none.
        WeightsError: Its weights are not what they should be (see `load`).
    """
    from transformers import AutoModel

    options = {} if dtype is None else {"dtype": dtype}
    return load(AutoModel, name, revision=revision, token=token, **options).model


def is_static(name: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub repository holds a LightHuBERT that is no supernet.

    Raises:
        FileNotFoundError: if there is no model.
    """
    config = load_config(name, revision)
    return config.model_type == "lighthubert" and config.search_space is None


def load_config(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> "PreTrainedConfig":
    """The config of a model in a folder or on the Hub.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It describes no model.
    """
    from transformers import AutoConfig

    from .auto import register

    register()
    if revision is not None and Path(name).is_dir():
        raise ValueError(f"{name} is here, not on the Hub, and has no revision {revision!r}; leave it out")
    with reaching("model", name, revision):
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise FileNotFoundError("it has no config.json")
        try:
            # Not asked whether to run code that came with the model: none is.
            config = AutoConfig.from_pretrained(name, revision=revision, token=token, trust_remote_code=False)
            commit = getattr(config, "_commit_hash", None) or revision
            written, _ = config.get_config_dict(name, revision=commit, token=token)
        except OSError:
            raise
        except Exception as error:  # whatever a config of any content trips over
            raise ValueError(f"{name}: config.json describes no model ({_reason(error)})") from None
    _check_spelling(name, config, written)
    return config


def _check_spelling(name: str | Path, config: "PreTrainedConfig", written: dict[str, Any]) -> None:
    """Raise for a key that is another but for one letter: transformers would keep it aside and take the default."""
    if not dataclasses.is_dataclass(config):
        return
    absent = {key for key in vars(config) if not key.startswith("_")} - written.keys()
    for key in written.keys() - {field.name for field in dataclasses.fields(config)}:
        near = [other for other in absent - {key} if abs(len(other) - len(key)) <= 1]
        if close := difflib.get_close_matches(key, near, n=1, cutoff=0.85):
            raise ValueError(f"{name}: config.json has {key!r}, which means nothing; did you mean {close[0]!r}?")


def load_feature_extractor(name: str | Path, revision: str | None = None, token: str | bool | None = None) -> Any:
    """The feature extractor beside a model in a folder or on the Hub.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Its file describes none, or has a misspelt key, for which transformers would take the default.
    """
    from transformers import AutoFeatureExtractor

    with reaching("feature extractor", name, revision):
        try:
            found = AutoFeatureExtractor.from_pretrained(name, revision=revision, token=token, trust_remote_code=False)
        except OSError:
            raise
        except Exception as error:  # whatever a file of any content trips over
            raise ValueError(f"{name}: its feature extractor cannot be loaded ({_reason(error)})") from None
    known = {*vars(type(found)()), "feature_extractor_type", "processor_class", "auto_map"}
    for key in vars(found).keys() - known:
        if close := difflib.get_close_matches(key, known, n=1, cutoff=0.85):
            raise ValueError(
                f"{name}: its feature extractor has {key!r}, which means nothing; did you mean {close[0]!r}?"
            )
    return found


def load_speech_processor(name: str | Path, revision: str | None = None) -> Any:
    """The feature extractor and tokenizer of a recogniser (a `Wav2Vec2Processor`) in a folder or on the Hub.

    Raises:
        FileNotFoundError: There is none.
        ValueError: One of its files is damaged, or its vocabulary is no list of different numbers.
    """
    from transformers import Wav2Vec2Processor
    from transformers.utils import cached_file

    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    with reaching("tokenizer", name, revision):
        if not any(cached_file(name, file, **options) for file in _TOKENIZERS):
            raise FileNotFoundError(f"it has no {_TOKENIZERS[0]}")
        try:
            processor = Wav2Vec2Processor.from_pretrained(name, revision=revision)
        except OSError:
            raise
        except Exception as error:  # whatever files of any content trip over
            for file in sorted(Path(name).glob("*.json")):
                read_object(file)  # names the one that is damaged
            raise ValueError(f"{name}: its processor cannot be loaded ({_reason(error)})") from None
    numbers = list(processor.tokenizer.get_vocab().values())
    if not all(isinstance(number, int) for number in numbers) or len(set(numbers)) < max(len(numbers), 2):
        raise ValueError(f"{name}: its vocabulary does not give each unit a number of its own; restore it")
    return processor


def on_device(model: "PreTrainedModel", device: str | None) -> "PreTrainedModel":
    """`model` moved to `device`; where it is, if that is `None`.

    Raises:
        ValueError: if there is no such device here.
    """
    return model if device is None else model.to(choose_device(device))


def _from_pretrained(cls: Any, name: str, **options: Any) -> tuple["PreTrainedModel", dict[str, Any]]:
    from .auto import register

    register()
    with _quietly(), reaching("model", name, options.get("revision")):
        try:
            return cls.from_pretrained(name, ignore_mismatched_sizes=True, output_loading_info=True, **options)
        except SafetensorError as error:
            for path, called in _files(name, options.get("revision"), options.get("token")).items():
                stored_tensors(path, called)  # names the one that is damaged
            raise WeightsError(f"the weights of {name} cannot be read ({_reason(error)}); {_AGAIN}") from None
        except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError) as error:
            raise WeightsError(f"the weights of {name} cannot be read ({_reason(error)}); {_AGAIN}") from None
        except (ValueError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"{name}: no model can be made of config.json ({_reason(error)})") from None


@contextmanager
def reaching(what: str, name: str | Path, revision: str | None = None) -> Iterator[None]:
    """Say in one line of a thing with a name that it cannot be had, and why, whatever transformers says of it."""
    try:
        yield
    except OSError as error:
        raise absent(what, name, error, revision=revision) from None


def _reason(error: Exception) -> str:
    """What a library's error says, in one line."""
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, StrictDataclassError):  # in whose first line stands only which field it is
        return " ".join(str(error).split())
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _files(name: str, revision: str | None, token: str | bool | None) -> dict[Path, str]:
    """The weight files that transformers reads, those in its cache for a Hub id, and what to call them."""
    from transformers.utils import cached_file

    folder = Path(name)
    if not folder.is_dir():

        def cached(file: str) -> str | None:
            return cached_file(
                name,
                file,
                revision=revision,
                token=token,
                local_files_only=True,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )

        found = next(filter(None, map(cached, (WEIGHTS, INDEX, _PICKLED))), None)
        if found is None:
            return {}
        folder = Path(found).parent
    paths = weight_files(folder)
    if not paths[0].is_file() and (folder / _PICKLED).is_file():
        paths = [folder / _PICKLED]
    return {path: f"{name}/{path.name}" for path in paths if path.is_file()}


def _check_once(stored: list[str], prefix: str, where: str) -> None:
    """Raise if one weight is there under two names, of which transformers takes either."""
    seen: set[str] = set()
    twice = []
    for key in stored:
        own = key.removeprefix(prefix)
        for old, new in (("0", "weight_g"), ("1", "weight_v")):
            own = own.replace(f"parametrizations.weight.original{old}", new)
        if own in seen:
            twice.append(key)
        seen.add(own)
    if twice:
        raise WeightsError(f"{where} has {len(twice)} weights twice: {some(twice)}; {_AGAIN}")


def _beside(model: "PreTrainedModel", left_out: frozenset[str], stored: list[str]) -> set[str]:
    """Which of the weights that the model has not belong to a head, or whatever else was saved beside the encoder."""
    prefix = f"{model.base_model_prefix}."
    own_class = type(model).__name__ in (model.config.architectures or ())
    if any(key.startswith(prefix) for key in stored):
        return set() if own_class else {key for key in left_out if not key.startswith(prefix)}
    if own_class and model.config.model_type == "lighthubert":
        return set()
    own_parts = {name.partition(".")[0] for name in model.state_dict()}
    return {key for key in left_out if key.partition(".")[0] not in own_parts}


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers reports what does not fit in a table of many lines; here it is an error or meant."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)

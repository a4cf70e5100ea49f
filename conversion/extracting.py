"""From a supernet, in a folder or on the Hub, to the folder of one of its subnets."""

import json
import tempfile
from pathlib import Path

from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor

import lighthubert_hf
from lighthubert_hf import LightHubertConfig, Subnet
from lighthubert_hf.model_card import CardFacts
from lighthubert_hf.model_folder import save_model_folder
from lighthubert_hf.profiling import count_macs

from .checkpoint_writing import check_free
from .plain_hubert import save_plain_hubert


def load_lighthubert(name: str, revision: str | None = None):
    """The LightHuBERT model that was saved in a folder or Hub repository, with the head it was saved with.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a model of another kind.
    """
    try:
        config = LightHubertConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise FileNotFoundError(_not_there(name, error)) from None
    if config.model_type != "lighthubert":
        raise ValueError(
            f"{name} is a {config.model_type} model, not a LightHuBERT; `lighthubert convert` makes one of it"
        )
    architecture = (config.architectures or ["LightHubertModel"])[0]
    return getattr(lighthubert_hf, architecture).from_pretrained(name, revision=revision).eval()


def load_encoder(name: str):
    """Any HuBERT-like encoder that `AutoModel` loads, for measuring.

    Raises:
        FileNotFoundError: if there is none.
    """
    try:
        return AutoModel.from_pretrained(name).eval()
    except OSError as error:
        raise FileNotFoundError(_not_there(name, error)) from None


def _not_there(name: str, error: OSError) -> str:
    if Path(name).is_dir():
        return f"{name} holds no model (it has no config.json); give what `lighthubert convert` or `distill` wrote"
    first = str(error).splitlines()[0]
    return f"there is no folder {name}, and it is no Hub id that can be reached ({first})"


def read_subnet(name: str, config: LightHubertConfig) -> Subnet:
    """`default`, `smallest` or `largest` of the supernet's space, or a JSON file with a [`Subnet`].

    Raises:
        ValueError, FileNotFoundError: if it is neither, or the file holds something else.
    """
    space = lighthubert_hf.SearchSpace.from_dict(config.search_space)
    named = {
        "default": Subnet.from_dict(config.default_subnet),
        "smallest": space.smallest(),
        "largest": space.largest(),
    }
    if name in named:
        return named[name]
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no subnet {name!r}: it is none of {', '.join(named)}, and there is no such JSON file"
        )
    try:
        return Subnet.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def extract_to_folder(
    supernet: str,
    output: str | Path,
    *,
    subnet: str = "default",
    plain_hubert: bool = False,
    revision: str | None = None,
) -> Path:
    """Save one subnet as a model folder of its own: weights, config, code, feature extractor, card.

    The distillation head stays behind; a task head comes along.

    Args:
        supernet: folder or Hub id.
        output: the folder to write; must not exist yet (an empty one may).
        subnet: see [`read_subnet`].
        plain_hubert: write the encoder as a `HubertModel` of transformers.
        revision: of the supernet on the Hub.

    Raises:
        FileNotFoundError, ValueError: if there is no such supernet or subnet, no plain HuBERT equals it, or
            `output` is in use.
    """
    output = Path(output)
    check_free(output)
    model = load_lighthubert(supernet, revision)
    if model.search_space is None:
        raise ValueError(f"{supernet} is no supernet: its config has no search_space, so it is what it is already")
    chosen = read_subnet(subnet, model.config)
    encoder = model.base_model if plain_hubert or type(model).__name__ == "LightHubertForPreTraining" else model
    static = encoder.extract_subnet(chosen)
    card = CardFacts(
        macs_per_second=count_macs(model.config, chosen), supernet=supernet, revision=revision, subnet=chosen
    )
    try:
        extractor = AutoFeatureExtractor.from_pretrained(supernet, revision=revision)
    except OSError:  # a supernet saved by hand, without one: what every LightHuBERT was trained with
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    if not plain_hubert:
        return save_model_folder(static, output, card=card, processor=extractor)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        save_plain_hubert(save_model_folder(static, Path(temporary) / "static", processor=extractor), output)
    return output

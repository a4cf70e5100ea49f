"""Model folders that are complete: what `from_pretrained`, other tools and a reader need, in one place.

NAME/
  config.json                 with the auto_map of the code below
  model.safetensors           (or shards and their index)
  modeling_lighthubert.py …   the code, for readers without this package (LightHuBERT models only)
  preprocessor_config.json    the feature extractor, where transformers 4, s3prl and others look
  processor_config.json       the same, where transformers 5 looks first
  tokenizer_config.json …     if there is a tokenizer
  units.safetensors           codebooks of discrete units, if there are any
  README.md, architecture.svg the model card
  model_card.json             the facts it was rendered from
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard

from lighthubert_hf.files import read_object, write_text
from lighthubert_hf.locks import locked
from lighthubert_hf.model.codebook import CODEBOOKS_FILE, read_codebooks
from lighthubert_hf.preprocessing import build_feature_extractor
from lighthubert_hf.weights import check_finite, check_floating, stored_tensors, weight_files

from .card import (
    FACTS_FILE,
    PICTURE_FILE,
    CardFacts,
    read_config,
    render_card,
    render_picture,
    teacher_license,
    with_family,
)
from .output import REMEDY, written_beside

CONFIG = "config.json"
PREPROCESSOR, PROCESSOR, TOKENIZER = "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"
README = "README.md"

# How a run names the folders of its models.
_LAYOUT = re.compile(r"final|model|pretrained_model|checkpoints|(step|checkpoint)-\d+")
_STAMP = re.compile(r"\n<!-- rendered by lighthubert_hf from model_card\.json, sha256 ([0-9a-f]{64}) -->\n\Z")


def save_model_folder(
    model,
    folder: str | Path,
    *,
    card: CardFacts | None = None,
    processor=None,
    repo_id: str | None = None,
    max_shard_size: int | str = "50GB",
    source: str | Path | None = None,
    by: str = "save",
    overwrite: bool = False,
    remedy: str = REMEDY,
) -> Path:
    """Save a model as a complete folder, ready to be loaded, read and pushed.

    A folder that was made so earlier, from the same source, and not changed since is replaced as a whole; a failure
    leaves it as it was.

    Args:
        model: a LightHuBERT model, static or a supernet, or a HuBERT of transformers.
        folder: where to.
        card: what is known about it; parameters are counted if they are not among it.
        processor: its feature extractor, or the processor with its tokenizer; by default a feature extractor for
            16 kHz that normalises each recording to zero mean and unit variance, as LightHuBERT was trained.
        repo_id: where it will be published, if that is known, for the examples in the card.
        max_shard_size: weights above this are written as several files.
        source, by, overwrite, remedy: as for [`lighthubert_hf.hub.output.written_beside`].

    Returns:
        The folder.

    Raises:
        ValueError: if `folder` holds something else, or the model is of another kind.
    """
    with written_beside(folder, source=source, by=by, overwrite=overwrite, remedy=remedy) as new:
        write_model(model, new, processor, max_shard_size)
        complete_folder(new, card, repo_id)
    return Path(folder)


def write_model(model, folder: Path, processor, max_shard_size: int | str) -> None:
    """Weights, config and code, and the processor if there is one.

    Raises:
        WeightsError: if a weight is NaN or infinite.
    """
    check_finite(model.state_dict(), f"the {type(model).__name__} to be saved")
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if processor is not None:
        processor.save_pretrained(folder)


def complete_folder(folder: Path, card: CardFacts | None = None, repo_id: str | None = None) -> frozenset[str]:
    """Add what a saved model lacks: code, both processor files, the card with its picture and its facts.

    Args:
        folder: what `save_pretrained` wrote, or more.
        card: facts; by default those in the folder.
        repo_id: where it will be published.

    Returns:
        The files that were made up from defaults, because nothing was known.

    Raises:
        ValueError, FileNotFoundError: if the folder holds no model or a broken one.
    """
    config = read_object(folder / CONFIG, "give a folder that `save_pretrained` wrote")
    parameters = stored_parameters(folder)
    if config.get("model_type") == "lighthubert":
        _complete_code(folder, config)
    defaults = _complete_processor(folder, config)
    facts = load_facts(folder) if card is None else card
    facts = _without_paths(_with_license(facts))
    # Counted, whatever the facts say: they may be another model's.
    facts = replace(facts, parameters=parameters, macs_per_second=_count_macs(config))
    _write_json(folder / FACTS_FILE, facts.to_dict())
    write_text(folder / PICTURE_FILE, render_picture(config), sync=False)
    codebooks = list(read_codebooks(folder / CODEBOOKS_FILE).values()) if (folder / CODEBOOKS_FILE).is_file() else []
    readme = folder / README
    present = readme.read_text(encoding="utf-8") if readme.is_file() else None
    if present is None or is_rendered(present):
        write_text(readme, _stamped(str(render_card(config, facts, repo_id, codebooks))), sync=False)
    elif facts.family:
        write_text(readme, with_family(present, facts.family), sync=False)
    _check_card(readme)
    return defaults


def update_facts(folder: str | Path, change: Callable[[CardFacts], CardFacts]) -> CardFacts:
    """Change the facts of a model folder, and its card with them; one process at a time, others wait a minute.

    Raises:
        InUseError: another process writes there for longer.
        ValueError, FileNotFoundError: if the folder holds no model or a broken one.
    """
    with locked(folder, patience=60):
        facts = change(load_facts(folder))
        complete_folder(Path(folder), facts)
    return facts


def refresh_card(folder: str | Path) -> None:
    """Let the card of a model folder say what has come to lie beside the model. A folder without one stays without."""
    if (Path(folder) / FACTS_FILE).is_file() and (Path(folder) / CONFIG).is_file():
        update_facts(folder, lambda facts: facts)


def load_facts(folder: str | Path) -> CardFacts:
    """The facts in a model folder; empty ones if it has none."""
    path = Path(folder) / FACTS_FILE
    return CardFacts.load(path) if path.is_file() else CardFacts()


def _with_license(facts: CardFacts) -> CardFacts:
    """The licence that the card of a teacher on this disk states, where none was given. No network is asked."""
    if facts.license is not None or facts.teacher is None or not Path(facts.teacher).is_dir():
        return facts
    return replace(facts, license=teacher_license(facts.teacher))


def _without_paths(facts: CardFacts) -> CardFacts:
    """Sources that are folders of this machine by a name only: no reader of the card could go there."""

    def shown(name: str | None) -> str | None:
        return _telling_name(Path(name)) if name and (Path(name).is_absolute() or Path(name).exists()) else name

    sources = {name: shown(getattr(facts, name)) for name in ("teacher", "supernet", "converted_from")}
    return replace(facts, **sources, datasets=tuple(shown(name) for name in facts.datasets))


def _telling_name(path: Path) -> str:
    """The last name of a path that says more than where in a run's folder the model lies."""
    names = [name for name in reversed(path.absolute().parts[1:]) if not _LAYOUT.fullmatch(name)]
    return names[0] if names else path.name


def _stamped(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}\n<!-- rendered by lighthubert_hf from model_card.json, sha256 {digest} -->\n"


def is_rendered(text: str) -> bool:
    """Whether a README is as `complete_folder` wrote it: then it may be rendered again. An edited one is kept."""
    match = _STAMP.search(text)
    return match is not None and hashlib.sha256(text[: match.start()].encode()).hexdigest() == match.group(1)


def _check_card(readme: Path) -> None:
    try:
        ModelCard(readme.read_text(encoding="utf-8"))
    except Exception as error:  # whatever YAML or the card's own checks raise
        raise ValueError(f"the metadata of {readme.name} is not valid: {' '.join(str(error).split())}") from None


def _complete_code(folder: Path, config: dict) -> None:
    """The modeling code, if the folder has none, and an `auto_map` for every head, so that each can be loaded."""
    from transformers.dynamic_module_utils import get_relative_import_files

    from lighthubert_hf.auto import AUTO_MODELS
    from lighthubert_hf.model import modeling_lighthubert as modeling

    source = Path(modeling.__file__)
    if not (folder / source.name).is_file():
        for path in (source, *map(Path, get_relative_import_files(source))):
            shutil.copyfile(path, folder / path.name)
    auto_map = {"AutoConfig": "configuration_lighthubert.LightHubertConfig"}
    auto_map |= {auto.__name__: f"{source.stem}.{model.__name__}" for auto, model in AUTO_MODELS.items()}
    if config.get("auto_map") != auto_map:
        _write_json(folder / CONFIG, config | {"auto_map": auto_map})


def _complete_processor(folder: Path, config: dict) -> frozenset[str]:
    """Both processor files, saying the same. Other tools read the first, transformers 5 the second."""
    old, new = folder / PREPROCESSOR, folder / PROCESSOR
    extractor = read_object(old) if old.is_file() else None
    nested = read_object(new).get("feature_extractor") if new.is_file() else None
    if nested is not None and not isinstance(nested, dict):
        raise ValueError(f"{new}: feature_extractor must be an object, got {type(nested).__name__}; restore it")
    if extractor and nested and extractor.get("do_normalize") != nested.get("do_normalize"):
        raise ValueError(
            f"{PREPROCESSOR} says do_normalize={extractor.get('do_normalize')}, {PROCESSOR} says "
            f"{nested.get('do_normalize')}; delete the wrong one"
        )
    if extractor and nested:
        return frozenset()
    made_up = not extractor and not nested
    extractor = extractor or nested or _default_extractor(config)
    if not old.is_file():
        _write_json(old, extractor)
    if not nested:
        # Without a tokenizer AutoProcessor takes the feature extractor for the processor, if told so.
        has_tokenizer = (folder / TOKENIZER).is_file()
        name = "Wav2Vec2Processor" if has_tokenizer else extractor.get("feature_extractor_type")
        _write_json(new, {"feature_extractor": extractor, "processor_class": name})
    return frozenset((PREPROCESSOR, PROCESSOR)) if made_up else frozenset()


def _default_extractor(config: dict) -> dict:
    # transformers' own group-norm HuBERTs were trained without an attention mask and are not padding-invariant.
    masked = config["model_type"] == "lighthubert" or config.get("feat_extract_norm") == "layer"
    return build_feature_extractor(return_attention_mask=masked).to_dict()


def stored_parameters(folder: Path) -> int:
    """Numbers in the weights of a folder, from the headers of its safetensors files.

    Raises:
        FileNotFoundError: if there are no safetensors files, or some of the index are missing.
        WeightsError: if one cannot be read, or holds integers.
    """
    total = 0
    for file in weight_files(folder):
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no {file.name}; save the model with `save_pretrained`, as safetensors"
            )
        tensors = stored_tensors(file)
        check_floating({name: dtype for name, (dtype, _) in tensors.items()}, str(file))
        total += sum(math.prod(shape) for _, shape in tensors.values())
    return total


def _count_macs(config: dict) -> int | None:
    """Multiply-accumulates of the encoder per second of audio; `None` for a supernet, whose subnets differ in it."""
    from lighthubert_hf.costs.profiling import macs_per_second

    model_config = read_config(config)
    if getattr(model_config, "search_space", None) is not None:
        return None
    return macs_per_second(model_config)


def _write_json(path: Path, data: dict) -> None:
    write_text(path, json.dumps(data, indent=2, sort_keys=True) + "\n", sync=False)

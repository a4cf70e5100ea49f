"""What of a folder is published: what belongs to a model, by name, and nothing that holds an access token."""

import re
import shutil
import stat
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lighthubert_hf.absent import absent

# What transformers and this package save of a model, and what people add to it for readers. All else stays here.
_BELONGS = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json", "units.safetensors"),
    *("model.*.safetensors", "model.*.safetensors.index.json", "adapter_model.safetensors"),
    *("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "spiece.model", "*.bpe.model"),
    *("README.md", "model_card.json", "LICENSE", "LICENSE.*", "LICENCE", "LICENCE.*", "NOTICE", "NOTICE.*"),
    *("CITATION.cff", "CITATION.bib", "*.svg", "*.png", "*.jpg", "*.jpeg", "*.gif"),
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_STATE = ("trainer_state.json", "training_args.json", "optimizer.safetensors")
_WEIGHTS = ".safetensors"

# Hugging Face, GitHub, OpenAI, Amazon, Google, Slack; private keys.
_TOKEN = re.compile(
    rb"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,}|sk-[A-Za-z0-9_-]{32,}"
    rb"|AKIA[0-9A-Z]{16}(?![0-9A-Z])|AIza[\w-]{35}|xox[abprs]-[\w-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_ESCAPE = re.compile(rb"\\u00([0-7][0-9a-fA-F])")
_READ = 1 << 22  # bytes at a time
_OVERLAP = 1 << 12  # longer than any token, in any encoding


def stage(folder: str | Path, target: Path, *, link: bool, include: Sequence[str] = ()) -> dict[str, str]:
    """Put what is published of a model folder into the empty `target`; the weights as links if `link`.

    Args:
        include: patterns of further names to publish, such as `*.json`.

    Returns:
        What is left out, with the reasons.

    Raises:
        FileNotFoundError: if there is no such folder, or no model in it.
        ValueError: for a link, whose content lies elsewhere; a pattern that fits nothing, or something that is never
            published; a file that contains an access token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise absent("model folder", folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; give a folder that `save_pretrained` wrote")
    _check_patterns(folder, include)
    left_out = {}
    for path in sorted(folder.iterdir()):
        reason = _reason_to_leave_out(path, include)
        if reason is None or (path.is_file() and not path.name.startswith(".") and path.suffix not in _PICKLES):
            _check_not_linked(path)
        if reason:
            left_out[path.name] = reason
        elif link and path.suffix == _WEIGHTS:
            (target / path.name).symlink_to(path.resolve())
        else:
            shutil.copyfile(path, target / path.name)
    return left_out


def _check_patterns(folder: Path, include: Sequence[str]) -> None:
    for pattern in include:
        found = [path for path in sorted(folder.iterdir()) if fnmatchcase(path.name, pattern)]
        if not found:
            raise ValueError(f"--include {pattern} fits nothing in {folder}; give a name, or a pattern such as *.json")
        for path in found:
            if reason := _never(path):
                raise ValueError(f"--include {pattern} fits {path.name}, which is never published: {reason}")


def _check_not_linked(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {path.readlink()}; links are not published, put a copy there")


def _never(path: Path) -> str | None:
    """Why something is not published, whoever asks."""
    if path.is_dir():
        return "a folder"
    if path.name.startswith("."):
        return "hidden"
    if path.suffix.lower() in _PICKLES:
        return "a pickle, which can run code when it is loaded"
    if not path.is_symlink() and not stat.S_ISREG(path.stat().st_mode):
        return "no ordinary file"
    return None


def _reason_to_leave_out(path: Path, include: Sequence[str]) -> str | None:
    if reason := _never(path):
        return reason
    if any(fnmatchcase(path.name, pattern) for pattern in include):
        return None
    if path.name in _STATE:
        return "state of a training"
    if path.name in _code_files() or any(fnmatchcase(path.name, pattern) for pattern in _BELONGS):
        return None
    return f"no part of a model; --include {path.name} publishes it all the same"


def _code_files() -> frozenset[str]:
    """The names of the code that is saved with a model."""
    from lighthubert_hf import model

    return frozenset(path.name for path in Path(model.__file__).parent.glob("*.py")) - {"__init__.py"}


def check_no_secrets(folder: Path, token: str | None = None) -> None:
    """Raise a ValueError that names the file (never the token) if one of the folder contains an access token.

    Of weights the metadata are read, of everything else all, as text in any of the usual encodings.
    """
    known = token.encode() if token else None
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() in _PICKLES or not path.is_file():
            continue
        if any(_has_token(text, known) for text in (path.name.encode(), *_texts(path))):
            raise ValueError(f"{path.name} contains an access token; take it out (and revoke it) before publishing")


def _texts(path: Path):
    """The bytes of a file, in overlapping pieces; of weights those of the header."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if path.suffix == _WEIGHTS:
            size = min(size, 8 + int.from_bytes(file.read(8), "little"))
        position = 0
        while position < size:
            file.seek(position)
            piece = file.read(min(_READ, size - position))
            if not piece:
                return
            yield piece
            position += max(len(piece) - _OVERLAP, 1) if position + len(piece) < size else len(piece)


def _has_token(text: bytes, known: bytes | None) -> bool:
    # Without its zero bytes UTF-16 and UTF-32 text of Latin letters is ASCII. JSON may spell letters as escapes.
    plain = text.replace(b"\0", b"")
    forms = [text, plain]
    if b"\\u00" in plain:
        forms.append(_ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), plain))
    return any(_TOKEN.search(form) or (known and known in form) for form in forms)

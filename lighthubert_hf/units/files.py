"""Codebooks in files, and beside models."""

from pathlib import Path

from lighthubert_hf.absent import suggestion
from lighthubert_hf.files import replacing_file
from lighthubert_hf.loading import load_encoder
from lighthubert_hf.locks import locked
from lighthubert_hf.model.codebook import (
    CODEBOOKS_FILE,
    Codebook,
    encoder_fingerprint,
    published_codebooks,
    read_codebooks,
    save_codebooks,
)


def codebooks_of(name: str | Path, revision: str | None = None) -> dict[str, Codebook]:
    """The codebooks of a model folder or Hub id, or in a file; none if a model has none.

    Raises:
        FileNotFoundError: if `name` is a file that is not there.
        ValueError: if the file is damaged.
    """
    path = Path(name)
    if path.suffix == ".safetensors":
        return read_codebooks(path)
    return published_codebooks(name, revision=revision)


def codebooks_file(model: str | Path, output: str | Path | None = None) -> Path:
    """The file that codebooks of a model are written to: `output`, or the one in the model's folder.

    Raises:
        ValueError: if the model is on the Hub and no output is given, or the output is no safetensors file.
    """
    if output is not None:
        path = Path(output)
        if path.is_dir():
            return path / CODEBOOKS_FILE
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} must be a folder, or a file that ends in .safetensors")
        return path
    if not Path(model).is_dir():
        here = suggestion(model)
        remedy = f"{here} Otherwise say" if here else "say"
        raise ValueError(f"{model} is no folder here to put a codebook into; {remedy} --output FILE.safetensors")
    return Path(model) / CODEBOOKS_FILE


def check_not_there(path: Path, names: list[str], overwrite: bool) -> None:
    """Raise a ValueError if a codebook of one of these names is in the file, unless it may be replaced."""
    there = sorted(set(names) & read_codebooks(path).keys()) if path.is_file() else []
    if there and not overwrite:
        raise ValueError(
            f"{path} has the codebook {there[0]} already; replace it with --overwrite (overwrite=True), or write to "
            "another file with --output"
        )


def add_codebooks(path: Path, codebooks: list[Codebook]) -> None:
    """Put codebooks into a file, in place of those of the same name, beside all others. As a whole or not at all."""
    with locked(path):
        kept = read_codebooks(path) if path.is_file() else {}
        with replacing_file(path) as new:
            save_codebooks(kept | {one.name: one for one in codebooks}, new.parent)
            if new.name != CODEBOOKS_FILE:
                (new.parent / CODEBOOKS_FILE).rename(new)


def check_current(folder: str | Path) -> None:
    """Raise a ValueError if a model folder's codebooks are of other weights than those in it."""
    path = Path(folder) / CODEBOOKS_FILE
    if not path.is_file():
        return
    encoder = load_encoder(folder)
    for name, codebook in read_codebooks(path).items():
        own = codebook.facts.get("encoder")
        if own is not None and own != encoder_fingerprint(encoder, codebook.facts.get("subnet")):
            raise ValueError(
                f"{path} has the codebook {name} of other weights than those beside it; fit one anew "
                "(`lighthubert units fit --overwrite`), or delete the file"
            )

"""Codebooks of other programs put beside a model, and agreement noted with the codebook that it is of."""

from pathlib import Path

from lighthubert_hf.hub.folder import refresh_card
from lighthubert_hf.model.codebook import CODEBOOKS_FILE, Codebook, choose_codebook, read_codebooks
from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.training.features.encoding import check_layers
from lighthubert_hf.training.features.opening import open_encoder, shown
from lighthubert_hf.units.files import add_codebooks, check_not_there, codebooks_file
from lighthubert_hf.units.foreign import read_foreign_codebook

from .agreement import UnitAgreement


def put_codebooks(path: Path, codebooks: list[Codebook]) -> None:
    """Add codebooks to a file; if it lies in a model folder with a card, the card says so."""
    add_codebooks(path, codebooks)
    if path.name == CODEBOOKS_FILE:
        refresh_card(path.parent)


def import_codebook(
    file: str | Path, model: str | Path, layer: int, *, output: str | Path | None = None, overwrite: bool = False
) -> tuple[Codebook, Path]:
    """Put centroids of another program beside the model whose features were clustered; see `read_foreign_codebook`.

    Raises:
        FileNotFoundError: there is no such file, or model.
        ValueError: the file is a pickle, or does not fit the model.
    """
    path = codebooks_file(model, output)
    upstream = open_encoder(model, device="cpu")
    check_layers(upstream, (layer,))
    codebook = read_foreign_codebook(file, layer, upstream.width)
    facts = {
        "encoder": weights_fingerprint(upstream.model),
        "normalised": upstream.normalised,
        "source": shown(upstream.name),
        "subnet": upstream.subnet and upstream.subnet.to_dict(),
    }
    codebook = codebook.with_facts(**{name: value for name, value in facts.items() if value is not None})
    check_not_there(path, [codebook.name], overwrite)
    put_codebooks(path, [codebook])
    return codebook, path


def check_recordable(model: str | Path, codebook: Codebook | str | Path | None = None) -> None:
    """Raise what `record_agreement` would raise: before the work rather than after."""
    if codebook is not None:
        raise ValueError("--update-card is for codebooks beside the model; leave --codebook out, or put it there")
    if not (Path(model) / CODEBOOKS_FILE).is_file():
        raise FileNotFoundError(f"{model} is no model folder here with codebooks, so there is nothing to note it with")


def record_agreement(
    model: str | Path, found: UnitAgreement, *, layer: int | None = None, clusters: int | None = None
) -> None:
    """Note with the codebook of a model folder how well its units agree with a reference's; the card shows it.

    Raises:
        FileNotFoundError: the folder has no codebooks.
        ValueError: it has several, and none is chosen.
    """
    check_recordable(model)
    path = Path(model) / CODEBOOKS_FILE
    chosen = choose_codebook(read_codebooks(path).values(), layer, clusters)
    put_codebooks(path, [chosen.with_facts(agreement=found.to_dict())])

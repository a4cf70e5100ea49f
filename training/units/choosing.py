"""Which codebook of a model is meant, and whether it is one of this model's features."""

import logging
from pathlib import Path

from lighthubert_hf.model.codebook import Codebook, choose_codebook
from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.training.superb.upstream import Upstream
from lighthubert_hf.units.files import codebooks_of

logger = logging.getLogger(__name__)


def codebook_for(
    upstream: Upstream,
    codebook: Codebook | str | Path | None = None,
    *,
    layer: int | None = None,
    clusters: int | None = None,
) -> Codebook:
    """A codebook that fits a frozen encoder.

    Args:
        codebook: the codebook, or a file of some; by default those beside the model.
        layer, clusters: which one, if there are several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such codebook, it is of features of another width, of a layer that the model has not,
            or, where it lies beside the model, of other weights.
    """
    given = codebook is not None
    if not isinstance(codebook, Codebook):
        if given:
            found = codebooks_of(codebook)
        elif upstream.name is not None:
            found = codebooks_of(upstream.name, upstream.revision)
        else:
            found = getattr(upstream.model, "codebooks", {})
        try:
            codebook = choose_codebook(found.values(), layer, clusters)
        except ValueError as error:
            raise ValueError(f"{codebook or upstream.name or 'the live model'}: {error}") from None
    if codebook.layer >= upstream.num_states:
        raise ValueError(
            f"the codebook {codebook.name} is of layer {codebook.layer}, {upstream.name or 'the model'} has layers 0 "
            f"to {upstream.num_states - 1}"
        )
    codebook.check_width(upstream.width)
    own = codebook.facts.get("encoder")
    if own is not None and own != weights_fingerprint(upstream.model):
        said = (
            f"the codebook {codebook.name} was made of the features of other weights than these"
            + (f", of {codebook.facts['source']}" if codebook.facts.get("source") else "")
            + "; fit one anew (`lighthubert units fit`), or map it (`lighthubert units map`)"
        )
        if not given:
            raise ValueError(said)
        logger.warning("%s", said)
    return codebook

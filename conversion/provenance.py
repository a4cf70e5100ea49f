"""What the model card of a converted supernet can say about where its weights come from."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError

from lighthubert_hf.hub.card import CardFacts, teacher_license
from lighthubert_hf.hub.derived import inherited
from lighthubert_hf.hub.folder import load_facts

from .checkpoints.errors import ConversionError, first_line

# The released checkpoints, and what their authors say they were distilled from (their paper and README).
_PUBLISHED = "mechanicalsea/lighthubert"
_TEACHER, _DATA = "facebook/hubert-base-ls960", "openslr/librispeech_asr"


def origin_facts(source: str, path: Path) -> CardFacts:
    """Source, commit and licence of a checkpoint; teacher and data of the published ones.

    Args:
        source: what the user named.
        path: the file or folder that it was resolved to.

    Raises:
        ConversionError: if the source is on the Hub, which then cannot be asked for the licence.
    """
    if Path(source).exists():
        if not path.is_dir():
            return CardFacts(converted_from=source)
        facts = inherited(load_facts(path))
        return replace(facts, converted_from=source, license=facts.license or teacher_license(source))
    repository = source.partition(":")[0]
    try:
        licence = teacher_license(repository)
    except (HfHubHTTPError, OSError) as error:
        raise ConversionError(f"the card of {repository} cannot be read: {first_line(error)}; try again") from None
    known = {"teacher": _TEACHER, "datasets": (_DATA,), "languages": ("en",)} if repository == _PUBLISHED else {}
    return CardFacts(converted_from=source, converted_revision=_commit(path), license=licence, **known)


def _commit(path: Path) -> str | None:
    """The commit that a file or folder of the Hub's cache is of: `…/snapshots/COMMIT/…`."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None

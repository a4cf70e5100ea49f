"""Transcripts: how they are cleaned, and how much of them a vocabulary knows."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from .recipe import TranscriptSection

# Units that stand fewer times than this can hardly be learnt.
RARE = 3
NAMED = 10


class Cleaning:
    """What is done to every transcript before it is learnt or scored: `Cleaning(settings)(text)`.

    Normal form, case, characters that are dropped; then all whitespace is one space, and none at the ends.
    """

    def __init__(self, settings: TranscriptSection | None = None):
        self.settings = settings or TranscriptSection()
        self._dropped = dict.fromkeys(map(ord, self.settings.drop))

    def __call__(self, text: str) -> str:
        settings = self.settings
        if settings.unicode is not None:
            text = unicodedata.normalize(settings.unicode, text)
        if settings.case is not None:
            text = text.lower() if settings.case == "lower" else text.upper()
        return " ".join(text.translate(self._dropped).split())


class Coverage(NamedTuple):
    """How often each unit of a vocabulary stands in transcripts, spaces left out, and each thing it does not know."""

    known: Counter
    unknown: Counter

    @property
    def unknown_share(self) -> float:
        total = self.known.total() + self.unknown.total()
        return self.unknown.total() / total if total else 0.0

    def commonest_unknown(self) -> str:
        return _counted(self.unknown.most_common(NAMED))

    def to_dict(self) -> dict[str, Any]:
        return {
            "size": len(self.known),
            "counts": dict(self.known.most_common()),
            "unknown_share": round(self.unknown_share, 6),
            "unknown": dict(self.unknown.most_common(NAMED)),
        }


def spelt(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` as the tokenizer is to read it. It would strip spaces beside a unit of several letters."""
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    return text if delimiter is None else text.replace(" ", delimiter)


def coverage(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Coverage:
    """What a tokenizer makes of cleaned transcripts. Units of the vocabulary that do not occur count 0."""
    special = {*tokenizer.all_special_tokens, getattr(tokenizer, "word_delimiter_token", None)}
    known, unknown = Counter({unit: 0 for unit in tokenizer.get_vocab() if unit not in special}), Counter()
    for text in texts:
        for token in tokenizer.tokenize(spelt(text, tokenizer)):
            if token not in special or token == tokenizer.unk_token:
                (known if token in known else unknown)[token] += 1
    return Coverage(known, unknown)


def check_coverage(
    found: Coverage, what: str, texts: list[str], tokenizer: PreTrainedTokenizerBase, settings: TranscriptSection
) -> str | None:
    """A warning with the share of characters that are unknown and the commonest of them; `None` if there are none.

    Raises:
        ValueError: if most characters are unknown, with the cleaning that would help, if one does.
    """
    if not found.unknown:
        return None
    said = (
        f"{found.unknown_share:.1%} of the characters of {what} are not in the vocabulary and count as unknown "
        f"(the commonest: {found.commonest_unknown()})"
    )
    remedy = _remedy(found, texts, tokenizer, settings)
    if found.unknown_share > 0.5:
        raise ValueError(f"{said}; {remedy or 'take a vocabulary of these characters, or clean the transcripts'}")
    return f"{said}; {remedy}" if remedy else said


def _remedy(
    found: Coverage, texts: list[str], tokenizer: PreTrainedTokenizerBase, settings: TranscriptSection
) -> str | None:
    """The switch of `data.transcripts` that would make fewest characters unknown, if one makes half as many."""
    tried = [{"case": case} for case in ("lower", "upper")] + [{"unicode": form} for form in ("NFC", "NFD", "NFKC")]
    best, least = None, found.unknown_share / 2
    for change in tried:
        clean = Cleaning(settings.model_copy(update=change))
        share = coverage(map(clean, texts), tokenizer).unknown_share
        if share < least:
            best, least = change, share
    if best is None:
        return None
    ((key, value),) = best.items()
    return f"data.transcripts.{key}={value} would leave {least:.1%}"


def describe(found: Coverage, units: str, num_texts: int) -> str:
    """One line on a vocabulary: how many units, which, and which are rare."""
    line = f"vocabulary: {len(found.known)} {units} in {num_texts} transcripts"
    rare = sorted((count, unit) for unit, count in found.known.items() if count < RARE)
    if len(found.known) <= 100:
        line += f": {' '.join(sorted(found.known))}"
    if rare:
        more = f" and {len(rare) - NAMED} more" if len(rare) > NAMED else ""
        line += f"; rare: {_counted((unit, count) for count, unit in rare[:NAMED])}{more}"
    return line


def _counted(pairs: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{unit!r} {count}×" for unit, count in pairs)

"""Metrics of slot filling: what was said, with the slots that it fills marked in the text.

A slot's words stand between two tokens, as in SUPERB: `play B-artist john coltrane E-artist today`.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from datasets import Value

from .base import OfflineMetric
from .error_rates import CharacterErrorRate

_SLOT = re.compile(r"(?:^|(?<= ))B-(\S+) (.+?) E-\1(?= |$)")
_TOKEN = re.compile(r"(?:^|(?<= ))[BE]-\S+(?: |$)")


class _SlotMetric(OfflineMetric):
    inputs = "`predictions` and `references`: texts in which B-name and E-name stand around the words of a slot."
    columns: ClassVar = {name: Value("string") for name in ("predictions", "references")}


class SlotF1(_SlotMetric):
    """F1 of the types of slots found, the mean over utterances, as SUPERB defines it.

        SlotF1().compute(predictions=["play B-artist him E-artist"], references=["play B-artist john E-artist"])
        # {"slot_f1": 1.0}: values do not count here

    For an utterance the F1 of the set of slot names predicted and the set in the reference: 1 if both are empty, 0 if
    one of them is.
    """

    description = "Slot-type F1, averaged over utterances."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        scores = [_f1({name for name, _ in find_slots(p)}, {name for name, _ in find_slots(r)}) for p, r in pairs]
        return {"slot_f1": sum(scores) / len(scores)}


class SlotCharacterErrorRate(_SlotMetric):
    """CER of slot values, as SUPERB defines it.

        SlotCharacterErrorRate().compute(
            predictions=["play B-artist joan E-artist"], references=["play B-artist john E-artist"]
        )   # {"slot_cer": 0.25}

    The value of every slot in the references is compared with the predicted value of the same name that has the fewest
    edits, or with nothing if there is none; edits and characters are summed over all of them. Slots predicted but not
    in the reference cost nothing here (they lower the F1). References without any slot give 0.
    """

    description = "Character error rate of the values of the references' slots."

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        from rapidfuzz.distance import Levenshtein  # what jiwer counts with

        found, wanted = [], []
        for prediction, reference in zip(predictions, references, strict=True):
            candidates = find_slots(prediction)
            for name, value in find_slots(reference):
                values = [other for key, other in candidates if key == name]
                found.append(min(values, key=lambda other: Levenshtein.distance(other, value), default=""))
                wanted.append(value)
        rate = CharacterErrorRate().compute(predictions=found, references=wanted)["cer"] if wanted else 0.0
        return {"slot_cer": rate}


def find_slots(text: str) -> list[tuple[str, str]]:
    """Names and values of the slots marked in `text`, in their order. What is not closed by its own token is none."""
    text = " ".join(text.split())
    return [(name, _TOKEN.sub("", value).strip()) for name, value in _SLOT.findall(text)]


def _f1(found: set[str], wanted: set[str]) -> float:
    """`2 |both| / (|found| + |wanted|)`, which is the harmonic mean of precision and recall; 1 if both are empty."""
    total = len(found) + len(wanted)
    return 2 * len(found & wanted) / total if total else 1.0

"""Word, character and phone error rate."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import jiwer
from datasets import Value

from .base import OfflineMetric


class _ErrorRate(OfflineMetric):
    """`(substitutions + deletions + insertions) / number of units in the references`.

    Edits and units are summed over all utterances before they are divided, so that batching changes nothing. What is
    predicted for an empty reference counts as insertions; if all references are empty, the rate is 0 for empty
    predictions and else 1.
    """

    inputs = "`predictions` and `references`: two lists of as many strings."
    columns: ClassVar = {name: Value("string") for name in ("predictions", "references")}
    _name: str
    _align: Callable[[list[str], list[str]], jiwer.WordOutput | jiwer.CharacterOutput]

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        counts = self._align(list(references), list(predictions))
        edits = counts.substitutions + counts.deletions + counts.insertions
        units = counts.substitutions + counts.deletions + counts.hits
        return {self._name: edits / units if units else float(edits > 0)}


class WordErrorRate(_ErrorRate):
    """WER as an `evaluate.Metric` that needs no network.

        WordErrorRate().compute(predictions=["a bird sings"], references=["the bird sings"])   # {"wer": 0.333…}

    Words are what stands between spaces. With `add` and `add_batch` it collects while an evaluation runs.
    """

    description = "Word error rate: edits per word of the references."
    _name, _align = "wer", staticmethod(jiwer.process_words)


class CharacterErrorRate(_ErrorRate):
    """CER as an `evaluate.Metric` that needs no network.

        CharacterErrorRate().compute(predictions=["a bad"], references=["a bat"])   # {"cer": 0.2}

    Spaces between words are characters, too; those at the ends of an utterance are not.
    """

    description = "Character error rate: edits per character of the references."
    _name, _align = "cer", staticmethod(jiwer.process_characters)


class PhoneErrorRate(_ErrorRate):
    """PER as an `evaluate.Metric` that needs no network.

        PhoneErrorRate().compute(predictions=["B ER D"], references=["B ER1 D"])   # {"per": 0.333…}

    Phones are what stands between spaces and count as they are written: map stress or folded phones beforehand.
    """

    description = "Phone error rate: edits per phone of the references."
    _name, _align = "per", staticmethod(jiwer.process_words)

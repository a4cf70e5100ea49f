"""Word and character error rate."""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import jiwer


class _ErrorRate(evaluate.Metric):
    """`(substitutions + deletions + insertions) / number of units in the references`.

    Edits and units are summed over all utterances before they are divided, so that batching changes nothing. What is
    predicted for an empty reference counts as insertions; if all references are empty, the rate is 0 for empty
    predictions and else 1.
    """

    _name: str
    _unit: str
    _align: Callable[[list[str], list[str]], jiwer.WordOutput | jiwer.CharacterOutput]

    def __init__(self, **kwargs):
        # In memory: a few strings need no Arrow file in a cache folder, and no lock on it.
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self._unit.capitalize()} error rate: edits per {self._unit} of the references.",
            citation="",
            inputs_description="`predictions` and `references`: two lists of as many strings.",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

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

    _name, _unit, _align = "wer", "word", staticmethod(jiwer.process_words)


class CharacterErrorRate(_ErrorRate):
    """CER as an `evaluate.Metric` that needs no network.

        CharacterErrorRate().compute(predictions=["a bad"], references=["a bat"])   # {"cer": 0.2}

    Spaces between words are characters, too; those at the ends of an utterance are not.
    """

    _name, _unit, _align = "cer", "character", staticmethod(jiwer.process_characters)

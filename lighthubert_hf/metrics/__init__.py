"""Offline metrics of the `evaluate` family: `evaluate.load("wer")` would fetch a script from the Hub.

from lighthubert_hf.metrics import WordErrorRate
WordErrorRate().compute(predictions=["a bird sings"], references=["the bird sings"])   # {"wer": 0.333…}
"""

from .error_rates import CharacterErrorRate, WordErrorRate

__all__ = ["CharacterErrorRate", "WordErrorRate"]

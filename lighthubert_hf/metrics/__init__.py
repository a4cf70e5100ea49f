"""Offline metrics of the `evaluate` family: `evaluate.load("wer")` would fetch a script from the Hub.

from lighthubert_hf.metrics import WordErrorRate
WordErrorRate().compute(predictions=["a bird sings"], references=["the bird sings"])   # {"wer": 0.333…}
"""

from .classification import Accuracy, AllSlotsAccuracy
from .detection import EqualErrorRate, MaximumTermWeightedValue
from .diarization import DiarizationErrorRate
from .error_rates import CharacterErrorRate, PhoneErrorRate, WordErrorRate
from .slot_filling import SlotCharacterErrorRate, SlotF1

__all__ = [
    "Accuracy",
    "AllSlotsAccuracy",
    "CharacterErrorRate",
    "DiarizationErrorRate",
    "EqualErrorRate",
    "MaximumTermWeightedValue",
    "PhoneErrorRate",
    "SlotCharacterErrorRate",
    "SlotF1",
    "WordErrorRate",
]

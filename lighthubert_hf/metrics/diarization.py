"""Diarisation error rate."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from datasets import Sequence as ListOf
from datasets import Value

from .base import OfflineMetric


class DiarizationErrorRate(OfflineMetric):
    """DER over frames: `(missed + false alarm + confused) / speech`, all in frames times speakers.

        DiarizationErrorRate().compute(predictions=[[[1, 0], [1, 0], [0, 1]]], references=[[[0, 1], [0, 1], [0, 1]]])
        # {"der": 0.333…}: predicted speaker 0 is reference speaker 1, and the last frame is confused

    A recording is a list of frames, a frame a list of 0 or 1 for each speaker: who speaks. With `r` and `s` speakers
    at once in reference and prediction and `c` of them right, a frame has `max(r − s, 0)` missed, `max(s − r, 0)`
    falsely heard and `min(r, s) − c` confused speakers; the rate divides their sum over all recordings by that of `r`.
    That is the definition of NIST's md-eval and of s3prl, with overlapped speech scored and no collar around changes
    of speaker. Predicted speakers are mapped to those of the reference, recording by recording, so that most frames
    agree; where numbers of speakers differ, some have no counterpart. Thresholds and smoothing (SUPERB: a median
    filter of 11 frames) are the caller's.

    Returns:
        `{"der", "missed", "false_alarm", "confusion"}`, the last three adding up to the first.

    Raises:
        ValueError: if the frames of a recording differ in number, or the references hold no speech.
    """

    description = "Diarisation error rate over frames, speakers mapped optimally, no collar."
    inputs = "`predictions` and `references`: for every recording `(frames, speakers)` of 0 or 1."
    columns: ClassVar = {name: ListOf(ListOf(Value("int8"))) for name in ("predictions", "references")}

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        counts = sum(frame_errors(np.asarray(p), np.asarray(r)) for p, r in zip(predictions, references, strict=True))
        missed, false_alarm, confusion, speech = counts.tolist()
        if speech == 0:
            raise ValueError("nobody speaks in the references, so a diarisation error rate is not defined")
        parts = {"missed": missed, "false_alarm": false_alarm, "confusion": confusion}
        return {"der": sum(parts.values()) / speech, **{name: count / speech for name, count in parts.items()}}


def frame_errors(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Missed, falsely heard and confused speakers and those that speak, summed over the frames of a recording: `(4,)`.

    Args:
        predicted, true: `(frames, speakers)` of 0 or 1; the numbers of speakers may differ.
    """
    from scipy.optimize import linear_sum_assignment

    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predicted frames for the {len(true)} frames of a recording")
    predicted, true = predicted.astype(np.int64), true.astype(np.int64)
    together = predicted.T @ true
    right = together[linear_sum_assignment(together, maximize=True)].sum()
    heard, speaking = predicted.sum(1), true.sum(1)
    missed, false_alarm = np.maximum(speaking - heard, 0).sum(), np.maximum(heard - speaking, 0).sum()
    return np.array([missed, false_alarm, np.minimum(heard, speaking).sum() - right, speaking.sum()])

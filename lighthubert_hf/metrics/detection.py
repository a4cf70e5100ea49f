"""Metrics of scores that are compared with a threshold: equal error rate and maximum term-weighted value."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from datasets import Value

from .base import OfflineMetric


class EqualErrorRate(OfflineMetric):
    """EER of a detector, speaker verification for example.

        EqualErrorRate().compute(predictions=[0.9, 0.4, 0.6, 0.1], references=[1, 1, 0, 0])   # {"eer": 0.5}

    `predictions` are scores (higher: accept), `references` are 1 for trials to accept and 0 for the others. It is the
    rate at which the line through the points of the ROC curve, one a distinct score, has as many false acceptances
    as false rejections; between two points it is exact, as the line is straight.

    Raises:
        ValueError: if only one kind of trial is there, a reference is neither 0 nor 1, or a score is not finite.
    """

    description = "Equal error rate: where false acceptances and false rejections are equally frequent."
    inputs = "`predictions`: scores; `references`: as many of 0 (reject) and 1 (accept)."
    columns: ClassVar = {"predictions": Value("float64"), "references": Value("int64")}

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import roc_curve

        scores, targets = _trials(predictions, references)
        if targets.all() or not targets.any():
            raise ValueError(f"all {len(targets)} trials are {int(targets[0])}; an equal error rate needs both kinds")
        accepted_wrongly, accepted_rightly, _ = roc_curve(targets, scores, drop_intermediate=False)
        # From −1 (accept nothing) to 1 (accept all), rising at every point: it is zero in one place.
        gap = accepted_wrongly + accepted_rightly - 1
        return {"eer": float(np.interp(0.0, gap, accepted_wrongly))}


class MaximumTermWeightedValue(OfflineMetric):
    """MTWV of spoken term detection (query by example), over all thresholds that are common to the queries.

        MaximumTermWeightedValue().compute(
            predictions=[0.9, 0.2, 0.1, 0.8], references=[1, 0, 0, 1], queries=["a", "a", "b", "b"]
        )   # {"mtwv": 1.0}

    One row for each query and document: the score, whether the document contains the query, and the query's name.
    `TWV(θ) = 1 − mean over queries of [P_miss(θ) + β · P_false_alarm(θ)]`, where both are rates among the query's own
    trials, `β = cost_false_alarm / cost_miss · (1 − prior) / prior` and scores of at least θ are detections. Detecting
    nothing has the value 0, so no result is lower. The defaults are those of QUESST 2014, which SUPERB uses: prior
    0.0008, costs 100 and 1, β = 12.49. Queries that no document contains are left out, as they have no miss rate. A
    query that every document contains has no false alarms. Scores are compared across queries: normalise them per
    query beforehand.

    Raises:
        ValueError: if no query occurs in any document, a reference is neither 0 nor 1, a score is not finite, or
            prior or costs make no sense.
    """

    description = "Maximum term-weighted value of query-by-example spoken term detection."
    inputs = "`predictions`: scores; `references`: 0 or 1; `queries`: names; one of each for every query and document."
    columns: ClassVar = {"predictions": Value("float64"), "references": Value("int64"), "queries": Value("string")}

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[int],
        queries: Sequence[str],
        *,
        prior: float = 0.0008,
        cost_miss: float = 100.0,
        cost_false_alarm: float = 1.0,
    ) -> dict[str, float]:
        if not (0 < prior < 1 and cost_miss > 0 and cost_false_alarm >= 0):
            raise ValueError(
                "a term-weighted value needs 0 < prior < 1, cost_miss > 0 and cost_false_alarm >= 0; "
                f"got {prior}, {cost_miss} and {cost_false_alarm}"
            )
        beta = cost_false_alarm / cost_miss * (1 - prior) / prior
        scores, targets = _trials(predictions, references)
        _, query = np.unique(np.asarray(queries, dtype=object).astype(str), return_inverse=True)
        num_targets, num_trials = np.bincount(query, weights=targets), np.bincount(query)
        occurring = num_targets > 0
        if not occurring.any():
            raise ValueError("no query occurs in any document, so there is nothing to detect")
        # What detecting a trial adds to the value: the share of the query's hits, or β times that of its false alarms.
        others = np.maximum(num_trials - num_targets, 1)
        gains = np.where(targets, 1 / np.maximum(num_targets, 1)[query], -beta / others[query])
        gains = np.where(occurring[query], gains, 0.0) / occurring.sum()
        order = np.argsort(-scores, kind="stable")
        scores, values = scores[order], np.cumsum(gains[order])
        thresholds = np.append(scores[1:] != scores[:-1], True)  # equal scores are detected together
        return {"mtwv": max(0.0, float(values[thresholds].max()))}


def _trials(scores: Sequence[float], references: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and, as booleans, which trials are to be accepted."""
    scores, references = np.asarray(scores, dtype=float), np.asarray(references)
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    if wrong := sorted(set(references.tolist()) - {0, 1}):
        raise ValueError(f"references are 0 (reject) or 1 (accept), not {wrong[0]}")
    return scores, references.astype(bool)

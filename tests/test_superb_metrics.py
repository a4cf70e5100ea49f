"""SUPERB's metrics: values computed by hand, invariances on random inputs, one result at batch 1 and 8, errors."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf import metrics
from lighthubert_hf.metrics.slot_filling import find_slots

from .examples import examples

SMALL = settings(max_examples=examples(25), deadline=None)
seeds = st.integers(0, 2**32 - 1)


def some_input(name: str, seed: int) -> dict[str, list]:
    """Random columns that the metric accepts."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 30))
    ids = [rng.integers(0, 3, count).tolist() for _ in range(2)]
    binary = [0, 1, *rng.integers(0, 2, count - 2).tolist()]
    scores = np.round(rng.normal(size=count), 1).tolist()  # rounded: with ties
    recordings = [rng.integers(0, 2, (count, 7, 2)).tolist() for _ in range(2)]
    texts = [[random_slots(rng) for _ in range(count)] for _ in range(2)]
    columns = {
        "Accuracy": ids,
        "AllSlotsAccuracy": [[[a, a, b] for a, b in zip(part, ids[0])] for part in ids],
        "EqualErrorRate": (scores, binary),
        "MaximumTermWeightedValue": (scores, binary, [f"q{i}" for i in rng.integers(0, 3, count)]),
        "DiarizationErrorRate": recordings,
        "SlotF1": texts,
        "SlotCharacterErrorRate": texts,
        "PhoneErrorRate": texts,
    }[name]
    return dict(zip(("predictions", "references", "queries"), columns))


def random_slots(rng) -> str:
    return " ".join(
        ["go", *(f"B-{'xy'[rng.integers(2)]} {' '.join('abc'[: rng.integers(1, 4)])} E-x" for _ in range(2)), "on"]
    )


NAMES = sorted(set(metrics.__all__) - {"WordErrorRate", "CharacterErrorRate"})


@SMALL
@given(seed=seeds)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_at_batch_1_and_8_and_in_any_order(name, seed):
    columns = some_input(name, seed)
    expected = getattr(metrics, name)().compute(**columns)
    count = len(columns["predictions"])
    order = random.Random(seed).sample(range(count), count)
    for size in (1, 8):
        metric = getattr(metrics, name)()
        for start in range(0, count, size):
            rows = order[start : start + size]
            metric.add_batch(**{key: [values[row] for row in rows] for key, values in columns.items()})
        assert metric.compute() == pytest.approx(expected, abs=1e-12)


@SMALL
@given(seed=seeds)
@pytest.mark.parametrize("name", NAMES)
def test_bounds_and_perfect_predictions(name, seed):
    columns = some_input(name, seed)
    values = getattr(metrics, name)().compute(**columns)
    bounded = name not in ("DiarizationErrorRate", "PhoneErrorRate", "SlotCharacterErrorRate")
    assert all(value >= 0 and (value <= 1 or not bounded) for value in values.values())
    columns["predictions"] = columns["references"]
    main = next(iter(getattr(metrics, name)().compute(**columns).values()))
    errors = name.endswith("Rate")
    assert main == pytest.approx(0 if errors else 1)


def test_accuracy():
    assert metrics.Accuracy().compute(predictions=[1, 2, 3, 0], references=[1, 2, 0, 0]) == {"accuracy": 0.75}
    one_wrong = [[0, 1, 4], [2, 1, 0], [3, 3, 3]]
    right = [[0, 1, 4], [2, 1, 1], [3, 3, 3]]
    assert metrics.AllSlotsAccuracy().compute(predictions=one_wrong, references=right) == {"accuracy": 2 / 3}
    with pytest.raises(ValueError, match=r"2 predicted slots \[0, 1\] for the 3 slots"):
        metrics.AllSlotsAccuracy().compute(predictions=[[0, 1]], references=[[0, 1, 4]])


def test_phone_error_rate():
    rate = metrics.PhoneErrorRate().compute(predictions=["B ER D", "AA"], references=["B ER1 D", "AA K"])
    assert rate == {"per": 2 / 5}


class TestEqualErrorRate:
    @pytest.mark.parametrize(
        ("scores", "targets", "expected"),
        [
            ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 0.0),
            ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 1.0),
            ([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0], 0.5),
            ([0.5] * 5, [1, 0, 0, 1, 0], 0.5),  # the line from nothing to all
            # false accepted, accepted: (0, 1/3) (1/2, 1/3) (1/2, 2/3) …; with one rejected in three, 1/3 are accepted
            ([0.9, 0.8, 0.7, 0.3, 0.2], [1, 0, 1, 1, 0], 1 / 2),
            # (0, 2/3), then both of a tie: (1/2, 1): on the line between, x = 1 − (2/3 + 2x/3)
            ([0.9, 0.8, 0.5, 0.5, 0.1], [1, 1, 1, 0, 0], 0.2),
        ],
    )
    def test_values(self, scores, targets, expected):
        assert metrics.EqualErrorRate().compute(predictions=scores, references=targets) == {
            "eer": pytest.approx(expected)
        }

    @SMALL
    @given(seed=seeds)
    def test_only_the_order_of_scores_counts_and_turning_all_round_changes_nothing(self, seed):
        columns = some_input("EqualErrorRate", seed)
        value, scores = metrics.EqualErrorRate().compute(**columns), np.array(columns["predictions"])
        monotone = {**columns, "predictions": (3 * scores**3 + scores).tolist()}
        turned = {"predictions": (-scores).tolist(), "references": [1 - target for target in columns["references"]]}
        for other in (monotone, turned):
            assert metrics.EqualErrorRate().compute(**other) == pytest.approx(value)

    def test_agrees_with_a_threshold_that_is_searched_for(self):
        rng = np.random.default_rng(0)
        targets = rng.integers(0, 2, 4000)
        scores = rng.normal(size=4000) + 2 * targets
        rates = [((scores < t)[targets == 1].mean(), (scores >= t)[targets == 0].mean()) for t in np.sort(scores)]
        searched = np.mean(min(rates, key=lambda pair: abs(pair[0] - pair[1])))
        found = metrics.EqualErrorRate().compute(predictions=scores, references=targets)["eer"]
        assert found == pytest.approx(searched, abs=1e-3) == pytest.approx(0.1587, abs=0.02)  # Φ(−1)

    @pytest.mark.parametrize(
        ("scores", "targets", "message"),
        [
            ([0.1, 0.2], [1, 1], "needs both kinds"),
            ([0.1, float("nan")], [1, 0], "1 of 2 scores are not finite"),
            ([0.1, 0.2], [1, 2], "not 2"),
        ],
    )
    def test_errors(self, scores, targets, message):
        with pytest.raises(ValueError, match=message):
            metrics.EqualErrorRate().compute(predictions=scores, references=targets)


class TestMaximumTermWeightedValue:
    BETA = 0.01 * (1 - 0.0008) / 0.0008

    def compute(self, rows, **options):
        scores, targets, queries = zip(*rows)
        return metrics.MaximumTermWeightedValue().compute(
            predictions=list(scores), references=list(targets), queries=list(queries), **options
        )["mtwv"]

    def test_values(self):
        assert pytest.approx(12.49) == self.BETA
        # θ = 0.8 finds one of the two targets of query a and the one of b, without false alarms: 1 − (1/2 + 0)/2.
        rows = [(0.9, 1, "a"), (0.2, 1, "a"), (0.5, 0, "a"), (0.8, 1, "b"), (0.1, 0, "b")]
        assert self.compute(rows) == pytest.approx(0.75)
        # Cheap false alarms (β = 0.5): at θ = 0.2 a has one in one, and no miss: 1 − (0 + 0.5)/2; 0.75 is as good.
        assert self.compute(rows, prior=0.5, cost_miss=2.0) == pytest.approx(0.75)
        assert self.compute(rows, prior=0.5, cost_miss=10.0) == pytest.approx(1 - 0.1 / 2)
        # A query that no document contains neither helps nor harms.
        assert self.compute([*rows, (0.95, 0, "c")]) == pytest.approx(0.75)

    def test_equal_scores_are_detected_together_and_nothing_is_worth_zero(self):
        assert self.compute([(0.5, 1, "a"), (0.5, 0, "a")]) == 0.0
        assert self.compute([(0.5, 1, "a"), (0.5, 0, "a")], prior=0.5, cost_miss=4.0) == pytest.approx(0.75)

    @SMALL
    @given(seed=seeds)
    def test_is_the_best_of_all_thresholds(self, seed):
        columns = some_input("MaximumTermWeightedValue", seed)
        scores, targets, queries = (np.array(columns[key]) for key in ("predictions", "references", "queries"))
        names = [name for name in np.unique(queries) if targets[queries == name].any()]

        def value(threshold, beta=0.3):
            costs = []
            for name in names:
                of_query, detected = queries == name, scores >= threshold
                misses = (~detected)[of_query & (targets == 1)].mean()
                others = of_query & (targets == 0)
                costs.append(misses + beta * (detected[others].mean() if others.any() else 0))
            return 1 - np.mean(costs)

        expected = max(value(threshold) for threshold in [*scores, np.inf])
        rows = list(zip(*columns.values()))
        assert self.compute(rows, prior=0.5, cost_miss=1.0, cost_false_alarm=0.3) == pytest.approx(expected)

    def test_errors(self):
        with pytest.raises(ValueError, match="no query occurs"):
            self.compute([(0.5, 0, "a")])
        with pytest.raises(ValueError, match="0 < prior < 1"):
            self.compute([(0.5, 1, "a")], prior=0.0)


class TestDiarizationErrorRate:
    def compute(self, predicted, true):
        return metrics.DiarizationErrorRate().compute(predictions=predicted, references=true)

    def test_values(self):
        true = [[[1, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]
        # Speakers swapped; the overlap's second speaker missed; the last frame a false alarm: 2 of 5.
        predicted = [[[0, 1], [0, 1], [0, 1], [1, 0], [1, 0]]]
        assert self.compute(predicted, true) == pytest.approx(
            {"der": 0.4, "missed": 0.2, "false_alarm": 0.2, "confusion": 0.0}
        )
        # One speaker for all: frames 3 and 4 miss one of two and confuse.
        one = [[[1], [1], [1], [1], [0]]]
        assert self.compute(one, true) == pytest.approx(
            {"der": 0.4, "missed": 0.2, "false_alarm": 0.0, "confusion": 0.2}
        )
        # Two recordings: frames are summed, not rates averaged; silence predicted in the second.
        assert self.compute([*true, [[0, 0]]], [*true, [[0, 1]]])["der"] == pytest.approx(1 / 6)

    @SMALL
    @given(seed=seeds)
    def test_the_names_of_speakers_mean_nothing(self, seed):
        rng = np.random.default_rng(seed)
        predicted, true = rng.integers(0, 2, (3, 9, 4)), rng.integers(0, 2, (3, 9, 3))
        expected = self.compute(predicted, true)
        shuffled = np.stack([part[:, rng.permutation(4)] for part in predicted])
        assert self.compute(shuffled, true[:, :, rng.permutation(3)]) == pytest.approx(expected)
        parts = ("missed", "false_alarm", "confusion")
        assert sum(expected[name] for name in parts) == pytest.approx(expected["der"])

    def test_errors(self):
        with pytest.raises(ValueError, match="1 predicted frames for the 2 frames"):
            self.compute([[[1, 0]]], [[[1, 0], [0, 1]]])
        with pytest.raises(ValueError, match="nobody speaks"):
            self.compute([[[1, 0]]], [[[0, 0]]])


class TestSlotFilling:
    def test_slots_are_found_as_marked(self):
        assert find_slots("play B-artist john  coltrane E-artist B-when now E-when") == [
            ("artist", "john coltrane"),
            ("when", "now"),
        ]
        assert find_slots("B-a x E-b y E-a") == [("a", "x y")]  # a stray token is no part of the value
        assert find_slots("B-a x") == find_slots("x E-a") == find_slots("AB-a x E-a") == find_slots("B-a E-a") == []

    @pytest.mark.parametrize(
        ("prediction", "reference", "f1", "cer"),
        [
            ("play B-a john E-a", "play B-a john E-a", 1.0, 0.0),
            ("play B-a joan E-a", "play B-a john E-a", 1.0, 1 / 4),
            ("play B-b john E-b", "play B-a john E-a", 0.0, 1.0),
            ("B-a x E-a B-b y E-b", "B-a x E-a", 2 / 3, 0.0),  # precision 1/2, recall 1
            ("B-a x E-a", "B-a x E-a B-a yz E-a", 1.0, 2 / 3),  # every value against the nearest: yz ← x is 2 edits
            ("B-a xz E-a B-a xy E-a", "B-a xy E-a", 1.0, 0.0),
            ("nothing", "nothing", 1.0, 0.0),
            ("B-a x E-a", "nothing", 0.0, 0.0),
        ],
    )
    def test_values(self, prediction, reference, f1, cer):
        columns = {"predictions": [prediction], "references": [reference]}
        assert metrics.SlotF1().compute(**columns) == {"slot_f1": pytest.approx(f1)}
        assert metrics.SlotCharacterErrorRate().compute(**columns) == {"slot_cer": pytest.approx(cer)}

    def test_f1_is_averaged_and_characters_are_summed(self):
        columns = {"predictions": ["B-a xy E-a", "B-a x E-a"], "references": ["B-a xyz E-a", "B-b x E-b"]}
        assert metrics.SlotF1().compute(**columns) == {"slot_f1": 0.5}
        assert metrics.SlotCharacterErrorRate().compute(**columns) == {"slot_cer": 2 / 4}

"""Error rates: hand-computed values, independence of batching, empty references, no network."""

import random

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.metrics import CharacterErrorRate, WordErrorRate

from .examples import examples

RATES = {"wer": WordErrorRate, "cer": CharacterErrorRate}


@pytest.mark.parametrize(
    ("predictions", "references", "wer", "cer"),
    [
        (["the bird sings"], ["the bird sings"], 0.0, 0.0),
        (["a bird sings"], ["the bird sings"], 1 / 3, 3 / 14),  # t→a, h and e gone
        (["the bird"], ["the bird sings"], 1 / 3, 6 / 14),
        (["the old bird"], ["the bird"], 1 / 2, 4 / 8),
        ([""], ["a bc"], 1.0, 1.0),
        (["a b", "x"], ["a b", "a b c d"], 4 / 6, 7 / 10),  # sums are divided, not rates averaged
        (["a", "b c"], ["a", ""], 2.0, 3.0),  # an empty reference: all insertions
        (["", ""], ["", ""], 0.0, 0.0),
        (["a b"], [""], 1.0, 1.0),
        ([" a b "], ["a b"], 0.0, 0.0),
    ],
)
def test_values(predictions, references, wer, cer):
    assert WordErrorRate().compute(predictions=predictions, references=references) == {"wer": pytest.approx(wer)}
    assert CharacterErrorRate().compute(predictions=predictions, references=references) == {"cer": pytest.approx(cer)}


texts = st.lists(st.text("ab ", max_size=12), min_size=1, max_size=20)


@settings(max_examples=examples(30), deadline=None)
@given(data=st.data(), references=texts)
@pytest.mark.parametrize("name", RATES)
def test_the_same_at_batch_1_and_8_and_in_any_order(name, data, references):
    size = len(references)
    predictions = data.draw(st.lists(st.text("ab ", max_size=12), min_size=size, max_size=size))
    expected = RATES[name]().compute(predictions=predictions, references=references)
    for batch_size in (1, 8):
        metric = RATES[name]()
        pairs = list(zip(predictions, references, strict=True))
        random.Random(0).shuffle(pairs)
        for start in range(0, size, batch_size):
            batch = pairs[start : start + batch_size]
            metric.add_batch(predictions=[p for p, _ in batch], references=[r for _, r in batch])
        assert metric.compute() == expected


def test_agrees_with_jiwer_on_speech():
    rng = random.Random(1)
    words = ["the", "old", "bird", "sees", "a", "house", "near", "every", "river"]
    references, predictions = ([" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(50)] for _ in "rp")
    given_both = {"predictions": predictions, "references": references}
    assert WordErrorRate().compute(**given_both)["wer"] == pytest.approx(jiwer.wer(references, predictions))
    assert CharacterErrorRate().compute(**given_both)["cer"] == pytest.approx(jiwer.cer(references, predictions))


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="Mismatch in the number"):
        WordErrorRate().compute(predictions=["a"], references=["a", "b"])


def test_a_metric_can_be_combined_and_reused():
    import evaluate

    both = evaluate.combine([WordErrorRate(), CharacterErrorRate()])
    for _ in range(2):
        assert both.compute(predictions=["a c"], references=["a b"]) == {"wer": 0.5, "cer": pytest.approx(1 / 3)}

"""Subsequence DTW against all alignments there are, and a query found where it was planted."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.superb.dtw import query_distances, subsequence_costs
from lighthubert_hf.training.superb.query_task import match_scores
from lighthubert_hf.training.superb.splits import Utterance

from ...examples import examples


def brute_force(distances: np.ndarray) -> float:
    """The least cost over every alignment, one after the other."""

    def costs(row: int, column: int):
        if row == len(distances) - 1:
            return [distances[row, column]]
        steps = [column + step for step in (0, 1, 2) if column + step < distances.shape[1]]
        return [distances[row, column] + rest for step in steps for rest in costs(row + 1, step)]

    return min(cost for start in range(distances.shape[1]) for cost in costs(0, start)) / len(distances)


@settings(max_examples=examples(30), deadline=None)
@given(
    query=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_equals_brute_force(query, lengths, seed):
    distances = np.random.default_rng(seed).random((len(lengths), query, max(lengths)))
    expected = [brute_force(distances[index, :, :length]) for index, length in enumerate(lengths)]
    np.testing.assert_allclose(subsequence_costs(distances, np.array(lengths)), expected)


def test_distances_are_scaled_within_a_document_and_blind_to_padding():
    rng = np.random.default_rng(0)
    query, document = rng.standard_normal((4, 8)), rng.standard_normal((1, 9, 8))
    alone = query_distances(query, document, np.array([9]))
    padded = query_distances(query, np.pad(document, ((0, 0), (0, 3), (0, 0))), np.array([9]))
    np.testing.assert_allclose(padded[:, :, :9], alone)
    np.testing.assert_allclose(alone.min(-1), 0, atol=1e-12)
    np.testing.assert_allclose(alone.max(-1), 1)


def test_a_planted_query_is_found():
    rng = np.random.default_rng(1)
    queries = [rng.standard_normal((10, 2, 16)) for _ in range(3)]
    documents = [rng.standard_normal((40, 2, 16)) for _ in range(40)]  # more than go at once
    for index, query in enumerate(queries):
        documents[5 + 13 * index][7:17] = query
    scores = match_scores(*([Utterance("", {}, item, len(item)) for item in some] for some in (queries, documents)), 1)
    assert scores.argmax(1).tolist() == [5, 18, 31]
    np.testing.assert_allclose(scores.mean(1), 0, atol=1e-9)


def test_short_queries_find_nothing():
    utterances = [Utterance("", {}, np.ones((frames, 1, 4)), frames) for frames in (4, 20, 30)]
    assert not match_scores(utterances[:1], utterances[1:], 0).any()

"""In which documents is a spoken query said? Nothing is trained: dynamic time warping on one layer's features.

The layer is the one that finds the validation queries best. As in SUPERB, features are standardised over all frames,
a pair's score is minus the cost of the best match, and scores are standardised for each query.
"""

from collections.abc import Sequence

import numpy as np

from lighthubert_hf.metrics import MaximumTermWeightedValue
from lighthubert_hf.progress import progress_bar

from .dtw import query_distances, subsequence_costs
from .settings import TaskData
from .splits import CachedSplit, Utterance, in_chunks
from .task import Metric

# Queries of fewer frames match anything, anywhere.
MIN_QUERY_FRAMES = 5
_DOCUMENTS_AT_ONCE = 32


class QueryByExample:
    """Rows of queries list in `documents` the `id`s of the documents they are said in."""

    name, title, hub_task = "qbe", "query by example", "audio-classification"
    metrics = (Metric("mtwv", "MTWV", True),)

    def __init__(self, data: TaskData):
        self.data = data

    def layer_values(
        self, queries: CachedSplit, documents: CachedSplit, states: Sequence[int], *, progress: bool = True
    ) -> dict[int, float]:
        """The MTWV on each of the hidden states `states`."""
        relevant = self._relevance(queries, documents)
        names = np.repeat([str(index) for index in range(len(queries))], len(documents))
        values = {}
        for state in progress_bar(states, "matching queries", unit="layers", shown=progress):
            scores = match_scores(list(queries.once()), list(documents.once()), state)
            values[state] = MaximumTermWeightedValue().compute(
                predictions=scores.ravel(), references=relevant.ravel(), queries=names
            )["mtwv"]
        return values

    def _relevance(self, queries: CachedSplit, documents: CachedSplit) -> np.ndarray:
        """`(queries, documents)` of 0 or 1."""
        names = [str(self._column(row, "id")) for row in documents.rows]
        found = [{str(name) for name in self._column(row, "documents")} for row in queries.rows]
        if unknown := set().union(*found) - set(names):
            raise ValueError(
                f"qbe: queries name {len(unknown)} documents that are not there, such as {min(unknown)!r}"
            )
        return np.array([[int(name in wanted) for name in names] for wanted in found])

    def _column(self, row: dict, role: str):
        name = self.data.columns.get(role, role)
        if row.get(name) is None:
            raise ValueError(f"qbe: {self.data.path} has no column {name!r}; it has {sorted(row)}")
        return row[name]


def match_scores(queries: list[Utterance], documents: list[Utterance], state: int) -> np.ndarray:
    """Scores `(queries, documents)` on one hidden state, of mean 0 and deviation 1 for each query."""
    mean, deviation = _statistics([*queries, *documents], state)

    def standardised(utterance: Utterance) -> np.ndarray:
        return (utterance.features[:, state].astype(np.float32) - mean) / deviation

    spoken = [standardised(query) for query in queries]
    costs = np.zeros((len(queries), len(documents)))
    for number, block in enumerate(in_chunks(documents, _DOCUMENTS_AT_ONCE)):
        columns = slice(number * _DOCUMENTS_AT_ONCE, number * _DOCUMENTS_AT_ONCE + len(block))
        lengths = np.array([document.length for document in block])
        padded = np.zeros((len(block), lengths.max(), len(mean)), np.float32)
        for row, document in zip(padded, block, strict=True):
            row[: document.length] = standardised(document)
        for index, query in enumerate(spoken):
            if len(query) >= MIN_QUERY_FRAMES:
                distances = query_distances(query, padded, lengths)
                costs[index, columns] = subsequence_costs(distances, lengths)
    centred = costs.mean(1, keepdims=True) - costs
    return centred / np.maximum(costs.std(1, keepdims=True), 1e-9)


def _statistics(utterances: list[Utterance], state: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all frames, `(width,)` each."""
    total, squares, frames = 0.0, 0.0, 0
    for utterance in utterances:
        values = utterance.features[:, state].astype(np.float64)
        total, squares, frames = total + values.sum(0), squares + np.square(values).sum(0), frames + len(values)
    mean = total / frames
    deviation = np.sqrt(np.maximum(squares / frames - mean**2, 0.0))
    return mean.astype(np.float32), np.maximum(deviation, 1e-9).astype(np.float32)

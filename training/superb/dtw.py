"""Where in a document is a query spoken? Subsequence dynamic time warping, over all documents at once.

Our own, because what there is does not fit: dtw-python is under the GPL, librosa and tslearn bring numba and a
compiler for one recursion. The step pattern SUPERB uses ("asymmetric") never goes sideways, so a row of the recursion
depends on the row above alone, and is three shifted copies of it.
"""

import numpy as np


def subsequence_costs(distances: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    r"""Cost of the best match of a query anywhere in each document, per frame of the query: `(documents,)`.

    $$ g_{i,j} = d_{i,j} + \min(g_{i-1,j},\ g_{i-1,j-1},\ g_{i-1,j-2}), \quad g_{0,j} = d_{0,j}, \quad
    \text{cost} = \min_j g_{n-1,j} / n $$

    Every frame of the query is matched once; the document is entered and left where it suits.

    Args:
        distances: `(documents, query frames, document frames)`, finite.
        lengths: `(documents,)`, valid frames of each document, at least 1.
    """
    outside = np.arange(distances.shape[2]) >= lengths[:, None]
    cost = np.where(outside, np.inf, distances[:, 0])
    for row in range(1, distances.shape[1]):
        best = cost.copy()
        np.minimum(best[:, 1:], cost[:, :-1], out=best[:, 1:])
        np.minimum(best[:, 2:], cost[:, :-2], out=best[:, 2:])
        cost = np.where(outside, np.inf, best + distances[:, row])
    return cost.min(1) / distances.shape[1]


def query_distances(query: np.ndarray, documents: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Distances as SUPERB takes them, `exp(1 − cosine) − 1`, each query frame's scaled to 0–1 within a document.

    Args:
        query: `(query frames, channels)`.
        documents: `(documents, frames, channels)`, padded.
        lengths: `(documents,)`, valid frames.

    Returns:
        `(documents, query frames, frames)`; 0 where there is padding.
    """
    cosines = _unit(query) @ np.moveaxis(_unit(documents), 1, 2)
    distances = np.exp(1 - cosines) - 1
    outside = (np.arange(documents.shape[1]) >= lengths[:, None])[:, None]
    low = np.where(outside, np.inf, distances).min(-1, keepdims=True)
    high = np.where(outside, -np.inf, distances).max(-1, keepdims=True)
    return np.where(outside, 0.0, (distances - low) / np.maximum(high - low, 1e-9))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)

"""scikit-learn's mini-batch k-means with a state that can be kept in a file and gone on from, with nothing pickled."""

from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans

# k-means needs a few points for each of its first centroids; HuBERT's authors took 10,000 frames at a time.
_FRAMES_PER_CLUSTER = 10
_FRAMES_AT_LEAST = 10_000
# Of a batch only; as large as the batch.
_NOT_KEPT = ("labels_",)


def frames_per_step(clusters: int) -> int:
    """Frames of a mini-batch: 10,000, or ten for each cluster."""
    return max(_FRAMES_AT_LEAST, _FRAMES_PER_CLUSTER * clusters)


class StreamedKMeans:
    """Mini-batch k-means of what streams by: k-means++ on the first batch, a step for each.

    Clusters are not moved to other points when they become small (`reassignment_ratio=0`, as HuBERT's authors have
    it): rare sounds keep their units.

    Args:
        clusters: how many.
        seed: of the first centroids.
    """

    def __init__(self, clusters: int, seed: int = 0):
        self._kmeans = MiniBatchKMeans(
            clusters, random_state=seed, batch_size=frames_per_step(clusters), reassignment_ratio=0.0, n_init=1
        )

    def step(self, features: np.ndarray) -> float:
        """Learn from a batch, `(frames, width)` float32; returns its mean squared distance from the centroids.

        Raises:
            ValueError: the first batch has less frames than there are clusters, or values that are not finite.
        """
        self._kmeans.partial_fit(features)
        return float(self._kmeans.inertia_) / len(features)

    @property
    def centroids(self) -> np.ndarray:
        """`(clusters, width)`, float32."""
        return self._kmeans.cluster_centers_.astype(np.float32)

    @property
    def steps(self) -> int:
        return int(getattr(self._kmeans, "n_steps_", 0))

    @property
    def unused(self) -> int:
        """Clusters that no frame has been nearest to."""
        return int((self._kmeans._counts == 0).sum())

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, and what JSON can say: whatever scikit-learn has learnt, under its own names."""
        arrays, plain = {}, {}
        learnt = vars(self._kmeans).keys() - self._kmeans.get_params().keys() - set(_NOT_KEPT)
        for name in sorted(learnt):
            value = vars(self._kmeans)[name]
            if isinstance(value, np.ndarray):
                arrays[name] = value
            elif isinstance(value, np.random.RandomState):
                saved = value.get_state(legacy=False)
                arrays[f"{name}.key"] = saved["state"].pop("key")
                plain[f"{name}.random"] = saved
            else:
                plain[name] = value.item() if isinstance(value, np.generic) else value
        return arrays, plain

    def load_state(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        arrays = dict(arrays)
        for name, value in plain.items():
            if name.endswith(".random"):
                name = name.removesuffix(".random")
                state = {**value["state"], "key": arrays.pop(f"{name}.key")}
                generator = np.random.RandomState()
                generator.set_state({**value, "state": state})
                value = generator
            setattr(self._kmeans, name, value)
        for name, array in arrays.items():
            setattr(self._kmeans, name, np.array(array))

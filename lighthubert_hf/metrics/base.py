"""What the metrics share: `evaluate.Metric`s that live in memory and need no network."""

from typing import ClassVar

from lighthubert_hf.extras import require

require("train", what="a metric")

import datasets  # noqa: E402
import evaluate  # noqa: E402


class OfflineMetric(evaluate.Metric):
    """A metric that says by three class attributes what it is and what it reads."""

    description: str
    inputs: str
    columns: ClassVar[dict[str, object]]

    def __init__(self, **kwargs):
        # In memory: a few numbers need no Arrow file in a cache folder, and no lock on it.
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=self.inputs,
            features=datasets.Features(self.columns),
        )

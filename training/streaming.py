"""INTERFACE (implementation follows): a resumable shuffled stream of audio examples over `datasets` streaming."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AudioSource:
    """Where examples come from: a Hub id, a folder (parquet, audio files, WebDataset tars), or a glob / URL of such files."""

    path: str
    split: str = "train"
    config_name: str | None = None
    audio_column: str | None = None  # None: the only column of type Audio
    text_column: str | None = None  # None: items have text None
    weight: float = 1.0  # share of the examples drawn from this source, relative to the others


class AudioStream:
    """Items: dict(id: str, input_values: float32 (num_samples,) 16 kHz mono normalised, text: str | None, num_samples: int)."""

    def __init__(
        self,
        sources: list[AudioSource],
        *,
        seed: int = 0,
        shuffle: bool = True,
        repeat: bool = True,  # False: one pass, sources one after another
        shuffle_window: int = 1000,  # examples read and permuted together
        num_open_shards: int = 4,  # shards whose rows are interleaved
        rank: int = 0,
        world_size: int = 1,
        min_seconds: float = 0.1,  # shorter examples are dropped and counted
        max_seconds: float | None = None,  # longer ones too
        crop_seconds: float | None = None,  # longer ones are cropped at a place that depends on (seed, epoch, id)
        max_broken_share: float = 0.05,
        max_retries: int = 5,
        retry_seconds: float = 1.0,
        num_workers: int = 0,  # decoding threads; order and state do not depend on it
    ): ...

    def iterate(self, state: dict[str, Any] | None = None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield (item, state after it); state is JSON-able: {"settings", "drawn", "sources", "counts"};
        counts = {"seen", "broken", "too_short", "too_long"}."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

"""Labelled speech, read once and kept in memory at half precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE

from .sources import AudioSource
from .streaming import AudioStream

BYTES_PER_SECOND = 2 * SAMPLING_RATE


@dataclass(frozen=True)
class SpeechExample:
    """One utterance: `waveform` is `(num_samples,)` float16, 16 kHz mono, zero mean and unit variance. `text` is its
    transcript, or `columns` hold its labels.

    float16 keeps 11 bits of every sample, 66 dB below the signal, at half the memory.
    """

    id: str
    waveform: np.ndarray
    text: str | None
    columns: dict[str, Any] | None = None

    @classmethod
    def of(cls, item: dict[str, Any], label_columns: Sequence[str] = ()) -> "SpeechExample":
        """An example of an `AudioStream`. ValueError if it lacks its transcript, or a label."""
        waveform = item["input_values"].astype(np.float16)
        if not label_columns:
            return cls(item["id"], waveform, transcript(item["text"], item["id"]))
        for column in label_columns:
            if item["columns"].get(column) is None:
                raise ValueError(f"the utterance {item['id']} has no {column!r}; it has {sorted(item['columns'])}")
        return cls(item["id"], waveform, None, item["columns"])


class MemoryOverflow(ValueError):
    """More labelled speech than may be kept in memory."""


def read_examples(
    sources: list[AudioSource],
    *,
    label_columns: Sequence[str] = (),
    minutes: float | None = None,
    max_examples: int | None = None,
    max_seconds: float | None = None,
    shuffle_seed: int | None = None,
    max_gigabytes: float = 4.0,
    max_broken_share: float = 0.05,
    description: str = "reading speech",
    progress: bool = True,
) -> list[SpeechExample]:
    """Read labelled utterances into memory.

    Args:
        sources: Where they are; every source needs a `text_column`, or `all_columns` for labels.
        label_columns: Columns with the labels; none: transcripts are read.
        minutes: Stop once this much is read, from every source its share by weight; with `shuffle_seed` that is a
            random part of the data, the same for one seed.
        max_examples: Stop after this many.
        max_seconds: Leave longer utterances out.
        shuffle_seed: Read in a random order; `None`: in the stored order.
        max_gigabytes: Bound on the memory taken.
        max_broken_share: A larger share of undecodable files is an error.
        description: What the progress bar says.
        progress: Whether to show one.

    Raises:
        MemoryOverflow: if `max_gigabytes` is reached before the data end.
        ValueError: if a source has no transcripts or there is nothing to read.
    """
    from tqdm.auto import tqdm

    if not label_columns:
        check_transcribed(sources)
    examples, limit = [], int(max_gigabytes * 1e9 / BYTES_PER_SECOND * SAMPLING_RATE)
    weights = sum(source.weight for source in sources)
    with tqdm(desc=description, unit="s", disable=not progress) as bar:
        for source in sources:
            stream = AudioStream(
                [source],
                seed=shuffle_seed or 0,
                shuffle=shuffle_seed is not None,
                repeat=False,
                max_seconds=max_seconds,
                max_broken_share=max_broken_share,
            )
            wanted = None if minutes is None else minutes * 60 * SAMPLING_RATE * source.weight / weights
            read = 0
            for item in stream:
                example = SpeechExample.of(item, label_columns)
                read += len(example.waveform)
                limit -= len(example.waveform)
                if limit < 0:
                    raise MemoryOverflow(f"the labelled speech takes more than {max_gigabytes:g} GB")
                examples.append(example)
                bar.update(round(len(example.waveform) / SAMPLING_RATE, 1))
                if len(examples) == max_examples:
                    return examples
                if wanted is not None and read >= wanted:
                    break
    if not examples:
        raise ValueError(f"no labelled utterances in {[source.path for source in sources]}")
    return examples


def check_transcribed(sources: list[AudioSource]) -> None:
    """Raise a ValueError if a source does not name its transcripts."""
    silent = [source.path for source in sources if source.text_column is None]
    if silent:
        raise ValueError(f"no transcripts: set text_column of the sources {silent}, for example text_column: text")


def transcript(text: str | None, name: str) -> str:
    if text is None:
        raise ValueError(f"the utterance {name} has no transcript; leave it out of the data or fill its text column")
    return text

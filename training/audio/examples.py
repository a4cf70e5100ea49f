"""Labelled speech, read once and kept in memory at half precision."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighthubert_hf.costs.figures import human_seconds
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar

from .opening import look_up
from .sources import AudioSource
from .streaming import DROPPED, AudioStream, is_empty, said_counts

logger = logging.getLogger(__name__)

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
            if look_up(item["columns"], column) is None:
                raise ValueError(f"the utterance {item['id']} has no {column!r}; it has {sorted(item['columns'])}")
        named = {column: look_up(item["columns"], column) for column in label_columns}
        return cls(item["id"], waveform, None, item["columns"] | named)


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
    min_seconds: float = 0.1,
    counts: dict[str, int] | None = None,
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
        min_seconds: Leave shorter utterances out.
        counts: Gets how many rows were `seen`, and how many left out and why (`streaming.DROPPED`). What is left out
            is also said in the log.
        description: What the progress bar says.
        progress: Whether to show one.

    Raises:
        MemoryOverflow: if `max_gigabytes` is reached before the data end.
        ValueError: if a source has no transcripts or there is nothing to read.
    """
    if not label_columns:
        check_transcribed(sources)
    examples, limit = [], int(max_gigabytes * 1e9 / BYTES_PER_SECOND * SAMPLING_RATE)
    weights = sum(source.weight for source in sources)
    counts = {} if counts is None else counts
    counts |= dict.fromkeys(("seen", *DROPPED), 0)
    seconds = 0.0
    with progress_bar(None, description, unit="utterances", shown=progress) as bar:
        for source in sources:
            stream = AudioStream(
                [source],
                seed=shuffle_seed or 0,
                shuffle=shuffle_seed is not None,
                repeat=False,
                max_seconds=max_seconds,
                max_broken_share=max_broken_share,
                min_seconds=min_seconds,
                labelled=True,
                label_columns=label_columns,
            )
            own: dict[str, int] = {}
            wanted = None if minutes is None else minutes * 60 * SAMPLING_RATE * source.weight / weights
            read = 0
            for item, _ in stream.iterate(counts=own):
                example = SpeechExample.of(item, label_columns)
                read += len(example.waveform)
                limit -= len(example.waveform)
                if limit < 0:
                    raise MemoryOverflow(f"the labelled speech takes more than {max_gigabytes:g} GB")
                examples.append(example)
                seconds += len(example.waveform) / SAMPLING_RATE
                bar.set_postfix_str(human_seconds(seconds), refresh=False)
                bar.update()
                if len(examples) == max_examples or (wanted is not None and read >= wanted):
                    break
            for name, number in own.items():
                counts[name] += number
            if len(examples) == max_examples:
                break
    if any(counts[name] for name in DROPPED):
        logger.warning("%s: left some out: %s", description, said_counts(counts))
    if not examples:
        raise ValueError(f"no labelled utterances in {[source.name for source in sources]}")
    return examples


def check_transcribed(sources: list[AudioSource]) -> None:
    """Raise a ValueError if a source does not name its transcripts."""
    silent = [source.name for source in sources if source.text_column is None]
    if silent:
        raise ValueError(f"no transcripts: set text_column of the sources {silent}, for example text_column: text")


def transcript(text: Any, name: str) -> str:
    """A transcript as text: numbers in digits, any white space as one space, no byte order mark.

    Raises:
        ValueError: There is none, or it is neither text nor a number.
    """
    if is_empty(text):
        raise ValueError(f"the utterance {name} has no transcript; leave it out of the data or fill its text column")
    if isinstance(text, float) and text.is_integer():  # of a column of integers with gaps
        text = int(text)
    if not isinstance(text, (str, int, float)):
        raise ValueError(
            f"the transcript of the utterance {name} is no text but {type(text).__name__}; name another text_column"
        )
    return " ".join(str(text).replace("\ufeff", "").split())

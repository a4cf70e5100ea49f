"""The phone of every frame, from alignments that come with the data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.audio.opening import look_up
from lighthubert_hf.training.features.encoding import AudioRow

# What the name of a phone is called in data sets with alignments, the likeliest first.
_NAMES = ("phone", "phoneme", "label", "text")


class PhoneFrames:
    """Numbers of phones for frames, in the order in which phones are met.

    Args:
        column: of the alignments: a list of `{start, end, phone}`, times in seconds.
        stride, field: samples from a frame to the next, and that a frame sees.
    """

    def __init__(self, column: str, stride: int, field: int):
        self.column, self.stride, self.field = column, stride, field
        self.numbers: dict[str, int] = {}

    def of(self, recording: AudioRow, frames: int) -> np.ndarray:
        """`(frames,)`: the phone said in the middle of what each frame sees, -1 where none is.

        Raises:
            ValueError: the column holds no such list.
        """
        middles = (np.arange(frames) * self.stride + self.field / 2) / SAMPLING_RATE
        phones = np.full(frames, -1)
        for row in self._rows(recording):
            try:
                name = next(row[key] for key in _NAMES if key in row)
                inside = (middles >= float(row["start"])) & (middles < float(row["end"]))
            except (StopIteration, KeyError, TypeError, ValueError):
                raise ValueError(
                    f"{recording.file}: a phone in the column {self.column!r} must be {{start, end, phone}}, times in "
                    f"seconds, got {row!r}"
                ) from None
            phones[inside] = self.numbers.setdefault(str(name), len(self.numbers))
        return phones

    def _rows(self, recording: AudioRow) -> list[Mapping[str, Any]]:
        found = look_up(recording.columns or {}, self.column)
        if isinstance(found, Mapping):  # as `datasets` may store a list of dicts
            found = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        if not isinstance(found, list | tuple) or not all(isinstance(row, Mapping) for row in found):
            raise ValueError(
                f"{recording.file} has no alignment in the column {self.column!r}: it must hold a list of "
                f"{{start, end, phone}}; the columns are {sorted(recording.columns or {})}"
            )
        return list(found)

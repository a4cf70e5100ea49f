"""Features of chosen layers of speech that streams by, several layers at one pass, in bounded memory.

What `units fit`, `units apply`, `units evaluate` and `features` share: audio comes in windows of whole recordings, a
window's features are computed together, and beside each window comes the state that goes on after it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lighthubert_hf.long_audio import iterate_long_states
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import DROPPED, AudioStream, State, said_counts
from lighthubert_hf.training.superb.upstream import Upstream

# Longer recordings run in chunks, with context around each, so that attention stays small.
LONG_SECONDS = 60.0
_MIN_SECONDS = 0.025  # one frame


@dataclass(frozen=True)
class AudioRow:
    """One recording of a data set.

    Args:
        id: its place in the data set, unique.
        file: the name of its file, from the data set's folder on; its `id` where it has none.
        waveform: `(samples,)`, 16 kHz, as recorded.
        text: its transcript, if the source names a column.
        columns: all other columns, if the source reads them.
    """

    id: str
    file: str
    waveform: np.ndarray
    text: Any = None
    columns: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLING_RATE

    def facts(self, with_text: bool) -> dict[str, Any]:
        """What is written of it beside its features or units. A data set with transcripts may lack some."""
        facts = {"file": self.file, "id": self.id, "seconds": round(self.seconds, 4)}
        text = {"text": None if self.text is None else str(self.text)} if with_text else {}
        return facts | text


@dataclass(frozen=True)
class Window:
    """Recordings that are computed together, the state of the stream after them, and the number of the pass."""

    recordings: list[AudioRow]
    state: State
    epoch: int

    @property
    def waveforms(self) -> list[np.ndarray]:
        return [recording.waveform for recording in self.recordings]

    @property
    def seconds(self) -> float:
        return sum(recording.seconds for recording in self.recordings)


class AudioWindows:
    """The recordings of a data set in windows of about equal length.

    A window ends where a pass through the data ends. Its content is a function of the arguments and of where it
    begins, so that what goes on from a window's `state` sees what it would have seen without a stop.

    Args:
        source: what to read.
        window_seconds: audio in a window; the recording with which it is full belongs to it.
        stream: options of `AudioStream`: `seed`, `shuffle`, `repeat`, `max_seconds`, `crop_seconds`,
            `max_broken_share`.

    Attributes:
        counts: what was read and left out so far.
    """

    def __init__(self, source: AudioSource, window_seconds: float, **stream: Any):
        self.source, self.window_seconds = source, window_seconds
        self.counts: dict[str, int] = {}
        self._stream = AudioStream([source], normalised=False, min_seconds=_MIN_SECONDS, **stream)

    def iterate(self, state: State | None = None) -> Iterator[Window]:
        """The windows after `state`; from the beginning without one.

        Raises:
            ValueError: more files are broken than may be, or none is usable.
        """
        recordings: list[AudioRow] = []
        after, epoch, seconds = state, 0, 0.0
        for example, place in self._stream.iterate(state, counts=self.counts):
            now = place["sources"][0]["epoch"]
            if recordings and now != epoch:
                yield Window(recordings, after, epoch)
                recordings, seconds = [], 0.0
            recording = AudioRow(
                example["id"],
                own_name(example["path"], self.source) or example["id"],
                example["input_values"],
                example["text"],
                example.get("columns"),
            )
            recordings.append(recording)
            after, epoch, seconds = place, now, seconds + recording.seconds
            if seconds >= self.window_seconds:
                yield Window(recordings, after, epoch)
                recordings, seconds = [], 0.0
        if recordings:
            yield Window(recordings, after, epoch)

    def said(self) -> str:
        """What was left out, in words; empty if nothing was."""
        return said_counts(self.counts) if any(self.counts.get(name) for name in DROPPED) else ""


def own_name(path: str | None, source: AudioSource) -> str | None:
    """What a data set calls a file: its path from the data set's folder on, if it lies there; else as its row says."""
    if not path or not isinstance(source.path, str) or not os.path.isabs(path):
        return path
    root = os.path.realpath(source.path if os.path.isdir(source.path) else os.path.dirname(source.path) or ".")
    inside = os.path.relpath(os.path.realpath(path), root)
    return path if inside.startswith("..") else inside.replace(os.sep, "/")


def check_layers(upstream: Upstream, layers: Sequence[int]) -> tuple[int, ...]:
    """Raise a ValueError unless the model has all these hidden states."""
    if not layers:
        raise ValueError("no layer is named; say --layer N, or several as --layer 6,9")
    missing = [layer for layer in layers if not 0 <= layer < upstream.num_states]
    if missing:
        raise ValueError(
            f"{upstream.name or 'the model'} has no layer {missing[0]}: there are 0, the input of the first layer, to "
            f"{upstream.num_states - 1}, the output of the last"
        )
    return tuple(dict.fromkeys(layers))


def encode(
    upstream: Upstream,
    waveforms: Sequence[np.ndarray],
    layers: Sequence[int],
    convert: Callable[[torch.Tensor], np.ndarray] = lambda states: states.float().cpu().numpy(),
    long_seconds: float = LONG_SECONDS,
) -> list[np.ndarray]:
    """What `convert` makes of the features of each waveform.

    Recordings over a minute run in chunks of 20 s with context, exactly where every layer has a sliding window and
    with 5 s on either side elsewhere; `convert` sees one chunk after the other, so that the features of a long
    recording need not lie in memory together.

    Args:
        waveforms: `(samples,)` each, 16 kHz, as recorded.
        layers: which hidden states.
        convert: makes an array, a row for each frame, of `(frames, layers, width)`.
    """
    with _up_to(upstream.model, max(layers)):
        return _encode(upstream, waveforms, layers, convert, long_seconds)


@contextmanager
def _up_to(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Leave out the layers behind the last that is wanted, where that changes nothing of those before."""
    encoder, before = model.encoder, None
    if hasattr(encoder, "active_layers"):
        name, before = "active_layers", encoder.active_layers
    elif not getattr(model.config, "do_stable_layer_norm", True):  # or the last state is normed once more
        name, before = "layers", encoder.layers
    if before is not None:
        setattr(encoder, name, before[:layer])
    try:
        yield
    finally:
        if before is not None:
            setattr(encoder, name, before)


def _encode(
    upstream: Upstream,
    waveforms: Sequence[np.ndarray],
    layers: Sequence[int],
    convert: Callable[[torch.Tensor], np.ndarray],
    long_seconds: float,
) -> list[np.ndarray]:
    short = [index for index, waveform in enumerate(waveforms) if len(waveform) <= long_seconds * SAMPLING_RATE]
    states = upstream.features([waveforms[index] for index in short], layers=layers) if short else []
    results = {index: convert(state) for index, state in zip(short, states, strict=True)}
    for index in set(range(len(waveforms))) - results.keys():
        values = torch.from_numpy(upstream.prepared(waveforms[index]))
        results[index] = np.concatenate([convert(one) for one in iterate_long_states(upstream.model, values, layers)])
    return [results[index] for index in range(len(waveforms))]

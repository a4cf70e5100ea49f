"""Features of audio that comes in pieces of any size, many streams at once."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch

from lighthubert_hf.long_audio import APPROXIMATE_OVERLAP_SECONDS, exact_context, seconds_to_frames
from lighthubert_hf.model.front_end import receptive_field
from lighthubert_hf.model.modeling_lighthubert import (
    LightHubertForAudioFrameClassification,
    LightHubertForCTC,
    LightHubertPreTrainedModel,
)
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .levels import RunningLevel, scaled
from .stretches import PieceEncoder, PieceState, Reader, States, WindowedEncoder, WindowState

Samples = torch.Tensor | np.ndarray

# Of long chunks, frames that go through the front end together: its activations are far larger than its output.
_FRAMES_TOGETHER = 128
_FRAME_HEADS = {LightHubertForCTC: "lm_head", LightHubertForAudioFrameClassification: "classifier"}


@dataclass
class _Stream:
    """One stream's state.

    Args:
        waiting: Samples that have come and are not computed with yet.
        behind: What the part behind the front end keeps.
        tails: What the front end keeps, once it has begun.
    """

    behind: PieceState | WindowState
    device: torch.device
    level: RunningLevel = field(default_factory=RunningLevel)
    waiting: list[torch.Tensor] = field(default_factory=list)
    tails: list[torch.Tensor] | None = None
    begun: bool = False

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting))

    def take(self, count: int) -> torch.Tensor:
        samples = torch.cat(self.waiting)
        self.waiting = [samples[count:].clone()]
        return samples[:count]


class StreamingEncoder:
    """Runs an encoder on audio while it is recorded: samples in, as they come, and out the frames that are final.

    Frames are computed chunk by chunk. A chunk is final when `right_seconds` of audio behind it have come. Memory and
    time per chunk are constant, however long a stream is.

    *What comes out.* If every layer has a sliding window, the front end a layer norm, and the context reaches as far
    as a frame depends on (`exact`): what one forward over the whole recording gives. No frame is computed twice: every
    layer, and the positional convolution, keeps the end of its input and waits for what it sees ahead. Otherwise: what
    `extract_long_features` gives with the same chunks and context; each chunk runs through the layers with its
    context, beyond which it sees nothing. The front end computes no sample twice either way, but for one with a group
    norm, whose statistics are those of each chunk with its context.

    *Delay.* `latency_ms`; computing time comes on top. The positional convolution, 128 frames wide in HuBERT, looks 63
    frames (1.26 s) ahead. Where the output is exact this is part of the delay. With less right context the convolution
    sees zeros there, as it does at the end of a recording.

    Args:
        model (`LightHubertModel` or one with a head): in evaluation mode, on any device. Its active subnet must stay
            active while streams are open.
        chunk_seconds: New audio per computation; shorter is sooner, and costs more.
        left_seconds, right_seconds: Context on either side of a chunk, whole frames of it. By default as much as makes
            the output exact where every layer has a sliding window, else 5 seconds. More than exact is not waited for.
        layer: Which of the hidden states to return; -1 is `last_hidden_state`.
        logits: Return what the model's head makes of the frames instead (CTC, audio frame classification).
        normalize: How samples get zero mean and unit variance, which models expect whose feature extractor has
            `do_normalize`. `False`: they have them. `(mean, standard deviation)`: by these, which is what the feature
            extractor does if they are those of the whole recording. `True`: by those of all samples so far; the first
            chunk by those of itself and its right context.
        sampling_rate: Of the samples, Hz; a stream of another rate than 16 kHz is refused.

    Raises:
        ValueError: for a model in training mode, one without such a head or layer, or lengths that make no sense.
    """

    def __init__(
        self,
        model: LightHubertPreTrainedModel,
        chunk_seconds: float = 0.5,
        left_seconds: float | None = None,
        right_seconds: float | None = None,
        *,
        layer: int = -1,
        logits: bool = False,
        normalize: bool | tuple[float, float] = False,
        sampling_rate: int = SAMPLING_RATE,
    ):
        _check(model, logits, normalize, sampling_rate)
        self.model, self.logits, self.normalize = model, logits, normalize
        base: Any = model.base_model
        self._base, self._subnet = base, base.active_subnet
        self._hop, self._field = prod(base.config.conv_stride), receptive_field(base.config)
        self.chunk = _frames("chunk_seconds", chunk_seconds, self._hop, least=1)
        reader = Reader(*_resolved(model, layer, logits))
        exact = exact_context(base)
        windowed = None
        if exact is not None:
            windows = [base.config.layer_shapes[index].attention_window for index in base.encoder.active_layers]
            windowed = WindowedEncoder(base, reader, windows)  # pyrefly: ignore[bad-argument-type]
        defaults = (None, None) if windowed is None else (exact, windowed.right)
        self.left = _context("left_seconds", left_seconds, defaults[0], self._hop)
        self.right = _context("right_seconds", right_seconds, defaults[1], self._hop)
        self.exact = windowed is not None and self.left >= (exact or 0) and self.right >= windowed.right
        self._from_samples = base.config.feat_extract_norm == "group"
        self._behind: PieceEncoder | WindowedEncoder
        if self.exact and windowed is not None:
            self._behind, self.right = windowed, windowed.right
        else:
            context = {"chunk": self.chunk, "left": self.left, "right": self.right}
            sizes = {"hop": self._hop, "field": self._field, "from_samples": self._from_samples}
            self._behind = PieceEncoder(base, reader, **context, **sizes)
        self._streams: dict[Hashable, _Stream] = {}

    @property
    def latency_ms(self) -> float:
        """The algorithmic delay: from a sound to the audio with which its frame becomes final, at most (in the first
        frame of a chunk)."""
        return 1000 * ((self.chunk + self.right - 1) * self._hop + self._field) / SAMPLING_RATE

    @property
    def lookahead_ms(self) -> float:
        """Audio that has to follow on the last frame of a chunk, its own 20 ms left out."""
        return 1000 * (self.right * self._hop + self._field - self._hop) / SAMPLING_RATE

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """The names of those that are open."""
        return tuple(self._streams)

    def feed(self, samples: Samples) -> torch.Tensor:
        """The next samples of the one stream, `(samples,)` of any number, to the frames that have become final.

        Returns:
            `(frames, hidden_size)`, or with `logits` `(frames, labels)`; perhaps no frame.
        """
        return self.feed_many({None: samples})[None]

    def finish(self) -> torch.Tensor:
        """The end of the one stream: its remaining frames. What is fed next begins another."""
        return self.feed_many({}, ending=[None])[None]

    def feed_many(self, pieces: Mapping[Hashable, Samples], ending: Iterable[Hashable] = ()) -> dict:
        """The next samples of several streams, computed together where their chunks are complete.

        Args:
            pieces: By the streams' names, which are the caller's. A new name begins a stream, at any time.
            ending: Streams that end with this piece, or have ended. Their names are free again.

        Returns:
            The frames that have become final of all streams named, as of `feed`.

        Raises:
            ValueError: for samples that are not one waveform of finite floating-point numbers; no stream is changed.
            RuntimeError: if another subnet has been activated while streams were open.
        """
        ending = list(dict.fromkeys(ending))
        checked = {name: _waveform(samples, name) for name, samples in pieces.items()}
        if unknown := [name for name in ending if name not in checked and name not in self._streams]:
            checked |= {name: torch.zeros(0) for name in unknown}  # a stream without a sample
        self._check_subnet()
        for name, samples in checked.items():
            if name not in self._streams:
                self._streams[name] = _Stream(self._behind.begin(), samples.device)
            self._streams[name].waiting.append(samples)
        found: dict[Hashable, list[torch.Tensor]] = {name: [] for name in (*checked, *ending)}
        with torch.no_grad():
            self._advance(found, ending)
        width = self._width
        empty = {name: torch.zeros(0, width, dtype=self._base.dtype, device=self._base.device) for name in found}
        devices = {name: self._streams[name].device for name in found}
        for name in ending:
            del self._streams[name]
        return {name: torch.cat([empty[name], *parts]).to(devices[name]) for name, parts in found.items()}

    def _advance(self, found: dict[Hashable, list[torch.Tensor]], ending: Sequence[Hashable]) -> None:
        """Compute what is due of the streams in `found`, a chunk of each at a time."""
        while ready := [name for name in found if self._streams[name].num_waiting >= self._due(self._streams[name])]:
            streams = [self._streams[name] for name in ready]
            blocks = [stream.take(self._due(stream)) for stream in streams]
            for name, made in zip(ready, self._run(streams, blocks, last=False)):
                found[name].append(made)
        if ending:
            streams = [self._streams[name] for name in ending]
            blocks = [stream.take(stream.num_waiting) for stream in streams]
            for name, made in zip(ending, self._run(streams, blocks, last=True)):
                found[name].append(made)

    def _due(self, stream: _Stream) -> int:
        """Samples that make the stream's next chunk final: at its beginning those of the right context as well."""
        if stream.begun:
            return self.chunk * self._hop
        return (self.chunk + self.right - 1) * self._hop + self._field

    def _run(self, streams: Sequence[_Stream], blocks: Sequence[torch.Tensor], last: bool) -> list[torch.Tensor]:
        blocks = [self._normalized(stream, block) for stream, block in zip(streams, blocks)]
        inputs = [block.to(self._base.device, self._base.dtype) for block in blocks]
        if not self._from_samples:
            inputs = self._front_end(streams, inputs)
        for stream in streams:
            stream.begun = True
        states: list[Any] = [stream.behind for stream in streams]
        return [self._read(made) for made in self._behind.advance(states, inputs, last)]

    def _normalized(self, stream: _Stream, block: torch.Tensor) -> torch.Tensor:
        if isinstance(self.normalize, tuple):
            mean, deviation = self.normalize
            return scaled(block, mean, deviation**2)
        return stream.level(block) if self.normalize else block

    def _front_end(self, streams: Sequence[_Stream], blocks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The frames that the next block of each stream completes; blocks of one length run as one batch."""
        groups: dict[tuple, list[int]] = {}
        for index, (stream, block) in enumerate(zip(streams, blocks)):
            kept = () if stream.tails is None else tuple(map(len, stream.tails))
            groups.setdefault((len(block), kept), []).append(index)
        found: dict[int, torch.Tensor] = {}
        for indices in groups.values():
            olds = [streams[index].tails for index in indices]
            tails = None if olds[0] is None else [torch.stack(rows) for rows in zip(*olds)]  # pyrefly: ignore
            parts = []
            for part in torch.stack([blocks[index] for index in indices]).split(_FRAMES_TOGETHER * self._hop, 1):
                frames, tails = self._base.feature_extractor.advance(part, tails)
                parts.append(frames)
            for row, index in enumerate(indices):
                found[index] = torch.cat(parts, 1)[row]
                streams[index].tails = None if tails is None else [tail[row] for tail in tails]
        return [found[index] for index in range(len(streams))]

    def _read(self, states: States) -> torch.Tensor:
        """What is returned of the wanted hidden states of some frames."""
        if not states or not len(states[0]):
            return torch.zeros(0, self._width, dtype=self._base.dtype, device=self._base.device)
        model: Any = self.model
        frames = states[0] if len(states) == 1 else model.mix(states)
        return getattr(model, _FRAME_HEADS[type(model)])(frames) if self.logits else frames

    @property
    def _width(self) -> int:
        if self.logits:
            return len(getattr(self.model, _FRAME_HEADS[type(self.model)]).weight)
        return self._subnet.hidden_size

    def _check_subnet(self) -> None:
        if self._base.active_subnet != self._subnet:
            raise RuntimeError(
                "another subnet was activated than when this StreamingEncoder was made; make a new one for it, or "
                "stream with a model of its own (extract_subnet)"
            )


def _check(model: Any, logits: bool, normalize: Any, sampling_rate: int) -> None:
    if not isinstance(model, LightHubertPreTrainedModel):
        raise ValueError(
            f"StreamingEncoder runs LightHuBERTs, got a {type(model).__name__}; `lighthubert convert` makes one of it"
        )
    if model.training:
        raise ValueError("the model is in training mode, where features are random; call model.eval() first")
    if sampling_rate != SAMPLING_RATE:
        raise ValueError(
            f"the stream has {sampling_rate} samples per second, the model hears {SAMPLING_RATE}; resample it first, "
            f"piece by piece with soxr.ResampleStream({sampling_rate}, {SAMPLING_RATE}, 1)"
        )
    if logits and type(model) not in _FRAME_HEADS:
        raise ValueError(
            f"a {type(model).__name__} has no head that reads every frame (CTC, audio frame classification); leave "
            "out logits, or train one with `lighthubert finetune`"
        )
    if not isinstance(normalize, bool) and not (len(normalize) == 2 and normalize[1] >= 0):
        raise ValueError(f"normalize must be True, False or (mean, standard deviation), got {normalize!r}")


def _resolved(model: Any, layer: int, logits: bool) -> tuple[int, bool]:
    """The hidden state to read, counted from the first, and whether the head needs all of them."""
    count = len(model.base_model.encoder.active_layers) + 1
    if not -count <= layer < count:
        raise ValueError(f"the model has the hidden states 0 to {count - 1} (-1 is its output), there is no {layer}")
    return layer if layer in (-1, *range(count)) else layer + count, logits and model.layer_weights is not None


def _frames(name: str, seconds: float, hop: int, least: int) -> int:
    frames = seconds_to_frames(seconds, hop)
    if frames < least:
        allowed = f"at least one frame ({hop / SAMPLING_RATE} s)" if least else "not negative"
        raise ValueError(f"{name} must be {allowed}, got {seconds}")
    return frames


def _context(name: str, seconds: float | None, exact: int | None, hop: int) -> int:
    if seconds is None and exact is not None:
        return exact
    return _frames(name, APPROXIMATE_OVERLAP_SECONDS if seconds is None else seconds, hop, least=0)


def _waveform(samples: Samples, name: Hashable) -> torch.Tensor:
    whose = "samples" if name is None else f"the samples of stream {name!r}"
    waveform = torch.as_tensor(samples)
    if waveform.ndim != 1:
        raise ValueError(
            f"{whose} must be one waveform, (samples,), got {tuple(waveform.shape)}; mix channels down, and feed the "
            "streams of a batch by name (feed_many)"
        )
    if not waveform.is_floating_point():
        raise ValueError(f"{whose} must be floating point within ±1, got {waveform.dtype}; divide int16 by 32768")
    if not waveform.isfinite().all():
        raise ValueError(f"{whose} hold NaN or Inf, which would stay in the stream's state; replace them by zeros")
    return waveform.clone()  # the caller may write into its own again

"""Features of recordings of any length in bounded memory: the model runs over chunks with some context around each.

With a sliding window in every layer an output frame depends on a bounded stretch of audio only. Given that much
context on both sides, chunks give exactly what one forward over the whole recording would give. A layer with global
attention sees everything, so there chunks are an approximation that gets better with more overlap.
"""

import math
from collections.abc import Iterator, Sequence
from math import prod

import torch
from transformers import PreTrainedModel

from lighthubert_hf.preprocessing import SAMPLING_RATE

from .model.front_end import conv_output_lengths, receptive_field

APPROXIMATE_OVERLAP_SECONDS = 5.0


def exact_context(model: PreTrainedModel) -> int | None:
    """Frames on either side of a frame that its features depend on, the front end aside; `None` if all of them.

    The positional convolution reaches half its kernel, each layer that runs half its window.
    """
    model = model.base_model
    if not hasattr(model.config, "layer_shapes"):  # of transformers, where every frame hears all others
        return None
    windows = [model.config.layer_shapes[index].attention_window for index in model.encoder.active_layers]
    if None in windows or model.config.feat_extract_norm == "group":
        return None
    return model.config.num_conv_pos_embeddings // 2 + sum(window // 2 for window in windows)


def seconds_to_frames(seconds: float, hop: int) -> int:
    """Whole frames of `hop` samples in so many seconds; negative of a negative time."""
    return math.floor(seconds * SAMPLING_RATE / hop + 1e-6)  # what is a whole number but for rounding counts as one


def iterate_long_features(
    model: PreTrainedModel,
    input_values: torch.Tensor,
    chunk_seconds: float = 20.0,
    overlap_seconds: float | tuple[float, float] | None = None,
    layer: int = -1,
) -> Iterator[torch.Tensor]:
    """The features of one recording, chunk by chunk, `(frames, hidden_size)` each; see `extract_long_features`.

    For writing features to disk as they come: an hour of one layer of the default `small` subnet is 276 MB.
    """
    for states in iterate_long_states(model, input_values, (layer,), chunk_seconds, overlap_seconds):
        yield states[:, 0]


def iterate_long_states(
    model: PreTrainedModel,
    input_values: torch.Tensor,
    layers: Sequence[int],
    chunk_seconds: float = 20.0,
    overlap_seconds: float | tuple[float, float] | None = None,
) -> Iterator[torch.Tensor]:
    """Several layers of one recording at one pass, chunk by chunk, `(frames, layers, hidden_size)` each.

    The model may be another than a LightHuBERT: any encoder that `AutoModel` loads with a front end of convolutions.
    For the arguments see `extract_long_features`.
    """
    model = model.base_model
    waveform = _single_waveform(model, input_values)
    hop, field = prod(model.config.conv_stride), receptive_field(model.config)
    num_frames = conv_output_lengths(len(waveform), model.config)
    chunk = seconds_to_frames(chunk_seconds, hop)
    left, right = _context(model, overlap_seconds, hop)
    if chunk < 1:
        raise ValueError(f"chunk_seconds must be at least one frame ({hop / SAMPLING_RATE} s), got {chunk_seconds}")
    wanted = [layer for layer in layers if layer != -1] or None
    for start in range(0, num_frames, chunk):
        stop = min(start + chunk, num_frames)
        first, last = max(0, start - left), min(stop + right, num_frames)
        samples = waveform[first * hop : (last - 1) * hop + field]
        with torch.no_grad():
            outputs = model(samples[None].to(model.device), output_hidden_states=wanted)
        states = [outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer] for layer in layers]
        yield torch.stack([state[0, start - first : stop - first] for state in states], 1).to(waveform.device)


def extract_long_features(
    model: PreTrainedModel,
    input_values: torch.Tensor,
    chunk_seconds: float = 20.0,
    overlap_seconds: float | tuple[float, float] | None = None,
    layer: int = -1,
) -> torch.Tensor:
    """The features of one recording of any length: `(frames, hidden_size)`, on the device of `input_values`.

    The memory needed beyond the recording and its features is that of one chunk with its overlap.

    Args:
        model (`LightHubertModel` or one with a head): in evaluation mode, on any device.
        input_values (`torch.Tensor` of shape `(samples,)` or `(1, samples)`):
            The 16 kHz waveform, normalised as a whole by the feature extractor.
        chunk_seconds: new audio per forward.
        overlap_seconds:
            Context on either side of a chunk, or on its left and its right. By default as much as makes the result
            exact where every layer has a sliding window (`exact_context`), else 5 seconds, which is an approximation.
        layer: which of the hidden states to return; -1 is `last_hidden_state`.

    Raises:
        ValueError: for a batch, a recording without a frame, a model in training mode, or lengths that make no sense.
    """
    chunks = iterate_long_features(model, input_values, chunk_seconds, overlap_seconds, layer)
    first = next(chunks)
    features = first.new_empty(conv_output_lengths(input_values.shape[-1], model.config), first.shape[1])
    features[: len(first)] = first
    position = len(first)
    for chunk in chunks:
        features[position : position + len(chunk)] = chunk
        position += len(chunk)
    return features


def _single_waveform(model: PreTrainedModel, input_values: torch.Tensor) -> torch.Tensor:
    if input_values.ndim not in (1, 2) or (input_values.ndim == 2 and len(input_values) != 1):
        raise ValueError(
            f"input_values must be one waveform, (samples,) or (1, samples), got {tuple(input_values.shape)}; "
            "pass the recordings of a batch one by one"
        )
    waveform = input_values.flatten()
    if len(waveform) < receptive_field(model.config):
        raise ValueError(f"the recording has {len(waveform)} samples, one frame needs {receptive_field(model.config)}")
    if model.training:
        raise ValueError("the model is in training mode, where features are random; call model.eval() first")
    return waveform


def _context(model: PreTrainedModel, overlap_seconds: float | tuple[float, float] | None, hop: int) -> tuple[int, int]:
    """Frames of context on the left and on the right."""
    if overlap_seconds is None:
        exact = exact_context(model)
        if exact is not None:
            return exact, exact
        overlap_seconds = APPROXIMATE_OVERLAP_SECONDS
    left, right = overlap_seconds if isinstance(overlap_seconds, tuple) else (overlap_seconds, overlap_seconds)
    if min(left, right) < 0:
        raise ValueError(f"overlap_seconds must not be negative, got {overlap_seconds}")
    return seconds_to_frames(left, hop), seconds_to_frames(right, hop)

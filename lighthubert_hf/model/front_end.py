"""The convolutional front end: raw samples in, one feature vector per 20 ms out.

Weights and state-dict names are those of `transformers.HubertModel`'s `feature_extractor`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import HubertConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .channels_last import Layer, Norm, PackedConv, fold_group_norm, run_layer, run_layers
from .channels_last_autograd import ConvNormGelu
from .elastic import ElasticConv1d, ElasticGroupNorm, ElasticLayerNorm, state_of
from .fast_paths import HALF_OR_MORE, PRECISE, WeightCache, is_gelu, is_watched, runs_plainly, wants_gradients

Lengths = TypeVar("Lengths", int, torch.Tensor)


class ConvLayer(GradientCheckpointingLayer):
    """One strided convolution, its norm ("layer", "group" or none), activation. `(B, C_in, T)` to `(B, C_out, T')`."""

    def __init__(self, config: HubertConfig, index: int, norm: str | None):
        super().__init__()
        elastic = getattr(config, "has_elastic_front_end", False)
        channels = config.conv_dim[index]
        self.conv = (ElasticConv1d if elastic else nn.Conv1d)(
            config.conv_dim[index - 1] if index else 1,
            channels,
            kernel_size=config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.norm = norm
        if norm == "layer":
            self.layer_norm = conv_layer_norm(config, index)
        elif norm == "group":
            self.layer_norm = ElasticGroupNorm(channels) if elastic else nn.GroupNorm(channels, channels)
        self.activation = ACT2FN[config.feat_extract_activation]

    def set_active(self, in_channels: int, channels: int) -> None:
        self.conv.active_in, self.conv.active_out = in_channels, channels
        if self.norm is not None:
            self.layer_norm.active_size = channels

    def norm_state(self) -> Norm:
        state = state_of(self.layer_norm)
        return Norm(state["weight"], state["bias"], self.layer_norm.eps)

    def activate_into(self, hidden_states: torch.Tensor, out: torch.Tensor) -> None:
        """Write the activation of `hidden_states`, which may be `out` itself."""
        if is_gelu(self.activation):
            torch.ops.aten.gelu.out(hidden_states, out=out)
        else:
            out.copy_(self.activation(hidden_states))

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)
        if self.norm == "layer":
            hidden_states = self.layer_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        elif self.norm == "group":
            hidden_states = masked_group_norm(hidden_states, self.layer_norm, lengths)
        return self.activation(hidden_states)


def conv_layer_norm(config: HubertConfig, index: int, eps: float = 1e-5) -> nn.LayerNorm:
    """A LayerNorm over the channels of convolution `index`."""
    if not getattr(config, "has_elastic_front_end", False):
        return nn.LayerNorm(config.conv_dim[index], eps=eps)
    own_sizes = config.search_space["conv_dim"][index] if config.conv_norm_per_width else ()
    return ElasticLayerNorm(config.conv_dim[index], eps, own_sizes)


def masked_group_norm(hidden_states: torch.Tensor, norm: nn.GroupNorm, lengths: torch.Tensor | None) -> torch.Tensor:
    """Per-channel norm over time that leaves padding out of its statistics.

    Args:
        hidden_states: `(batch, channels, frames)`.
        norm: a GroupNorm of one channel per group.
        lengths: valid frames of each row, `(batch,)`; `None` if all are.

    With it a padded batch equals each utterance alone; with a plain GroupNorm (transformers' way) it does not.
    """
    if lengths is None:
        return norm(hidden_states)
    valid = torch.arange(hidden_states.shape[-1], device=hidden_states.device) < lengths[:, None]
    valid = valid[:, None]
    count = lengths.clamp(min=1)[:, None, None]
    values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    mean = torch.where(valid, values, 0).sum(-1, keepdim=True) / count
    centred = torch.where(valid, values - mean, 0)
    variance = centred.square().sum(-1, keepdim=True) / count
    normed = centred * torch.rsqrt(variance + norm.eps)
    state = state_of(norm)
    return (normed * state["weight"][:, None] + state["bias"][:, None]).to(hidden_states.dtype)


def conv_output_lengths(lengths: Lengths, config: HubertConfig, num_layers: int | None = None) -> Lengths:
    """Frames that `num_layers` (default: all) convolutions make of `lengths` samples, int or tensor; at least 0."""
    for kernel, stride in list(zip(config.conv_kernel, config.conv_stride))[:num_layers]:
        lengths = (lengths - kernel) // stride + 1
    if isinstance(lengths, torch.Tensor):
        return lengths.clamp(min=0)
    return max(lengths, 0)  # pyrefly: ignore[bad-return]


def receptive_field(config: HubertConfig) -> int:
    """Samples one output frame sees: 400 for HuBERT's seven layers (25 ms at 16 kHz)."""
    return _receptive_field(config.conv_kernel, config.conv_stride)


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides):
        field += (kernel - 1) * hop
        hop *= stride
    return field


class FrontEnd(nn.Module):
    """The stack of convolutions. `(batch, samples)` to `(batch, frames, channels)`."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        if config.feat_extract_norm not in ("layer", "group"):
            raise ValueError(
                "feat_extract_norm must be 'layer' (a LayerNorm in every layer) or 'group' (a GroupNorm in the "
                f"first), got {config.feat_extract_norm!r}"
            )
        self.config = config
        layer_norm = config.feat_extract_norm == "layer"
        norms = ["layer" if layer_norm else None for _ in config.conv_dim]
        if not layer_norm:
            norms[0] = "group"
        self.conv_layers = nn.ModuleList(ConvLayer(config, i, norm) for i, norm in enumerate(norms))
        self.active_channels = tuple(config.conv_dim)
        self._packed = WeightCache()

    def set_active(self, channels: Sequence[int]) -> None:
        """Choose how many channels of each convolution take part, the first ones."""
        self.active_channels = tuple(channels)
        for layer, in_channels, out_channels in zip(self.conv_layers, (1, *channels), channels):
            layer.set_active(in_channels, out_channels)

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            input_values: `(batch, samples)`.
            lengths: valid samples of each row, `(batch,)`. Frames that see any other are zero.

        On a CPU this is computed channels-last, as exactly as by the modules, where nothing speaks against it: see
        `channels_last` for evaluation, `channels_last_autograd` for training. The latter can be differentiated once.
        """
        if self._is_as_built(input_values):
            if not wants_gradients([input_values, *self.parameters()]):
                return self._run_packed(input_values, lengths)
            if self._can_train_channels_last(input_values):
                return self._run_with_gradients(input_values, lengths)
        hidden_states = self._without_mean(input_values, lengths)[:, None]
        for index, layer in enumerate(self.conv_layers):
            if index == 0 and self.training and hidden_states.is_leaf and layer.gradient_checkpointing:
                hidden_states.requires_grad_(True)  # checkpointing needs an input that asks for gradients
            hidden_states = layer(hidden_states, self._frames_of(lengths, index))
        hidden_states = hidden_states.transpose(1, 2)
        if lengths is None:
            return hidden_states
        frames = torch.arange(hidden_states.shape[1], device=lengths.device)
        valid = frames < conv_output_lengths(lengths, self.config)[:, None]
        return hidden_states.masked_fill(~valid[..., None], 0)

    @torch.no_grad()
    def advance(
        self, signal: torch.Tensor, tails: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The next frames of signals that come in pieces: together what `forward` makes of the whole, nothing twice.

        Args:
            signal: `(batch, samples)`, the next piece of each signal.
            tails: What came back for the piece before: of every convolution the end of its input, which windows to
                come see as well. `None`: `signal` is the first piece.

        Returns:
            The frames that are now complete, `(batch, frames, channels)`, and the tails, `(batch, rows, channels)`.

        Raises:
            ValueError: The first norm is over time, or a convolution skips samples.
        """
        if self.config.feat_extract_norm == "group":
            raise ValueError("a front end with a group norm, which is over the whole signal, cannot run in pieces")
        if any(kernel < stride for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride)):
            raise ValueError("a front end with a stride wider than its kernel cannot run in pieces")
        pieces: Sequence[torch.Tensor | None] = [None] * len(self.conv_layers) if tails is None else tails
        packed = self._packed_layers() if self._is_plain(signal) else None
        source, kept = signal[..., None], []
        for index, (layer, tail) in enumerate(zip(self.conv_layers, pieces)):
            source = source if tail is None else torch.cat([tail, source], 1)
            kernel, stride = self.config.conv_kernel[index], self.config.conv_stride[index]
            rows = max(0, (source.shape[1] - kernel) // stride + 1)
            kept.append(source[:, rows * stride :].clone())
            if not rows:
                source = source.new_empty(len(source), 0, self.active_channels[index])
            elif packed is None:
                source = layer(source.transpose(1, 2)).transpose(1, 2)
            else:
                source = torch.stack([run_layer(packed[index], row, rows) for row in source])
        return source, kept

    def _without_mean(self, input_values: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """`input_values` without the mean of each row's valid samples, where the first norm is over time.

        That norm takes off what a constant adds to a channel; products with a large one would round away the signal.
        """
        if self.conv_layers[0].norm != "group":
            return input_values
        values = input_values.to(torch.promote_types(input_values.dtype, torch.float32))
        if lengths is None:
            mean = values.mean(-1, keepdim=True)
        else:
            valid = torch.arange(values.shape[1], device=lengths.device) < lengths[:, None]
            mean = torch.where(valid, values, 0).sum(-1, keepdim=True) / lengths.clamp(min=1)[:, None]
        return (values - mean).to(input_values.dtype)

    def _frames_of(self, lengths: torch.Tensor | None, index: int) -> torch.Tensor | None:
        """Valid frames behind layer `index`, if its norm needs them."""
        if lengths is None or self.conv_layers[index].norm != "group":
            return None
        return conv_output_lengths(lengths, self.config, index + 1)

    def _is_as_built(self, input_values: torch.Tensor) -> bool:
        """Whether the layers are our own, unwatched and simply executed, and there is something to compute."""
        return (
            len(input_values) > 0
            and input_values.shape[1] >= receptive_field(self.config)
            and self._is_plain(input_values)
        )

    def _is_plain(self, input_values: torch.Tensor) -> bool:
        return runs_plainly([input_values, *self.parameters()], HALF_OR_MORE) and all(
            _is_untouched(layer) for layer in self.conv_layers
        )

    def _can_train_channels_last(self, input_values: torch.Tensor) -> bool:
        """Gradient checkpointing saves the memory this form needs, by means of the modules."""
        checkpointing = self.training and any(layer.gradient_checkpointing for layer in self.conv_layers)
        all_gelu = all(is_gelu(layer.activation) for layer in self.conv_layers)
        return all_gelu and not checkpointing and not input_values.requires_grad and input_values.dtype in PRECISE

    @torch.no_grad()
    def _run_packed(self, input_values: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Without gradients: on packed weights, in chunks."""
        layers = self._packed_layers()
        rows, frames = self._valid_rows(input_values, lengths)
        if self.config.feat_extract_norm == "layer":
            made = self._run_as_one(rows, frames, 0, lambda wave, num: run_layers(layers, wave, num))
        else:
            made = [self._run_normalised_over_time(layers, row, num) for row, num in zip(rows, frames)]
        return self._padded(made, input_values)

    def _packed_layers(self) -> list[Layer]:
        """All layers on packed weights; a group norm is left out."""
        convs = self._packed.get(
            [layer.conv.weight for layer in self.conv_layers],
            lambda: [PackedConv(state_of(layer.conv)["weight"], layer.conv.stride[0]) for layer in self.conv_layers],
            self.active_channels,
        )
        return [
            Layer(
                conv,
                state_of(layer.conv)["bias"],
                layer.norm_state() if layer.norm == "layer" else None,
                layer.activate_into,
            )
            for conv, layer in zip(convs, self.conv_layers)
        ]

    def _run_normalised_over_time(self, layers: list[Layer], row: torch.Tensor, frames: int) -> torch.Tensor:
        """With a group norm the statistics of the first layer, so its weights, are each row's own."""
        if not frames:
            return row.new_empty(0, self.active_channels[-1])
        first = self.conv_layers[0]
        conv, bias, row = fold_group_norm(
            state_of(first.conv)["weight"], first.conv.stride[0], first.norm_state(), row
        )
        return run_layers([Layer(conv, bias, None, first.activate_into), *layers[1:]], row, frames)

    def _run_with_gradients(self, input_values: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """For training. A first layer with a group norm, little of the work, is left to its modules."""
        rows, frames = self._valid_rows(input_values, lengths)
        start = 0
        if self.config.feat_extract_norm == "group":
            start = 1
            hidden_states = self._without_mean(input_values, lengths)[:, None]
            hidden_states = self.conv_layers[0](hidden_states, self._frames_of(lengths, 0))
            hidden_states = hidden_states.transpose(1, 2).contiguous()
            rows = [row[: conv_output_lengths(len(wave), self.config, 1)] for row, wave in zip(hidden_states, rows)]

        def run(signal: torch.Tensor, num: int) -> torch.Tensor:
            signal = signal[:, None] if signal.ndim == 1 else signal
            for layer in self.conv_layers[start:]:
                conv = layer.conv
                state = {"bias": None} | conv.trained_state() if isinstance(conv, ElasticConv1d) else state_of(conv)
                norm = layer.norm_state() if layer.norm == "layer" else (None, None, None)
                gamma, beta, eps = norm
                signal = ConvNormGelu.apply(signal, state["weight"], state["bias"], gamma, beta, conv.stride[0], eps)
            return signal[:num]

        return self._padded(self._run_as_one(rows, frames, start, run), input_values)

    def _valid_rows(
        self, input_values: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[int]]:
        """The rows without their padding, and the frames each gives."""
        sizes = [input_values.shape[1]] * len(input_values) if lengths is None else lengths.tolist()
        rows = [row[:size].contiguous() for row, size in zip(input_values, sizes)]
        return rows, [conv_output_lengths(size, self.config) for size in sizes]

    def _run_as_one(
        self, rows: list[torch.Tensor], frames: list[int], start: int, run: Callable
    ) -> list[torch.Tensor]:
        """Send `rows` through the layers from `start` on as one signal: one behind the other, whole hops apart.

        Frames that see two rows are dropped. `run` is given the signal and the number of frames to make.
        """
        strides, kernels = self.config.conv_stride[start:], self.config.conv_kernel[start:]
        hop, field = math.prod(strides), _receptive_field(kernels, strides)
        if len(rows) == 1:
            return [run(rows[0], frames[0])] if frames[0] else []
        slots = [num and num - 1 + math.ceil(field / hop) for num in frames]
        pieces = []
        for row, num, slot in zip(rows, frames, slots):
            seen = row[: (num - 1) * hop + field if num else 0]
            pieces += [seen, seen.new_zeros(slot * hop - len(seen), *seen.shape[1:])]
        total = max((sum(slots) * hop - field) // hop + 1, 0)
        made = run(torch.cat(pieces), total) if total else rows[0].new_empty(0, self.active_channels[-1])
        starts = [sum(slots[:index]) for index in range(len(slots))]
        return [made[start : start + num] for start, num in zip(starts, frames)]

    def _padded(self, made: list[torch.Tensor], input_values: torch.Tensor) -> torch.Tensor:
        """`(batch, frames, channels)` of rows of features, with zeros behind the short ones."""
        width = conv_output_lengths(input_values.shape[1], self.config)
        if not made:
            return input_values.new_zeros(len(input_values), width, self.active_channels[-1])
        return torch.stack([F.pad(row, (0, 0, 0, width - len(row))) for row in made])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._packed.clear()  # of weights about to be moved or cast
        return super()._apply(fn, recurse)

    def freeze(self) -> None:
        """Turn off gradients of all parameters."""
        self.requires_grad_(False)


def _is_untouched(layer: nn.Module) -> bool:
    """Whether `layer` is made of its own modules (adapters and parametrizations replace some), unwatched."""
    kinds = {"layer": (nn.LayerNorm, ElasticLayerNorm), "group": (nn.GroupNorm, ElasticGroupNorm)}
    return (
        type(layer) is ConvLayer
        and type(layer.conv) in (nn.Conv1d, ElasticConv1d)
        and (layer.norm is None or type(layer.layer_norm) in kinds[layer.norm])
        and not is_watched(*layer.modules())
    )

"""The convolutional front end: raw samples in, one feature vector per 20 ms out.

Weights and state-dict names are those of [`~transformers.HubertModel`]'s `feature_extractor`.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .channels_last import Layer, PackedConv, fold_group_norm, run_layers
from .weight_cache import WeightCache

FAST_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class ConvLayer(GradientCheckpointingLayer):
    """One strided convolution, its norm ("layer", "group" or none), activation. `(B, C_in, T)` to `(B, C_out, T')`."""

    def __init__(self, config, index: int, norm: str | None):
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            config.conv_dim[index - 1] if index else 1,
            channels,
            kernel_size=config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.norm = norm
        if norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif norm == "group":
            self.layer_norm = nn.GroupNorm(num_groups=channels, num_channels=channels)
        self.activation = ACT2FN[config.feat_extract_activation]
        self.is_gelu = config.feat_extract_activation == "gelu"

    def activate_into(self, hidden_states: torch.Tensor, out: torch.Tensor) -> None:
        """Write the activation of `hidden_states`, which may be `out` itself."""
        if self.is_gelu:
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
    return (normed * norm.weight[:, None] + norm.bias[:, None]).to(hidden_states.dtype)


def conv_output_lengths(lengths, config, num_layers: int | None = None):
    """Frames that `num_layers` (default: all) convolutions make of `lengths` samples, int or tensor; at least 0."""
    for kernel, stride in list(zip(config.conv_kernel, config.conv_stride))[:num_layers]:
        lengths = (lengths - kernel) // stride + 1
    return lengths.clamp(min=0) if isinstance(lengths, torch.Tensor) else max(lengths, 0)


def receptive_field(config) -> int:
    """Samples one output frame sees: 400 for HuBERT's seven layers (25 ms at 16 kHz)."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        field += (kernel - 1) * hop
        hop *= stride
    return field


class FeatureEncoder(nn.Module):
    """The stack of convolutions. `(batch, samples)` to `(batch, frames, channels)`."""

    def __init__(self, config):
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
        self._packed = WeightCache()

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            input_values: `(batch, samples)`.
            lengths: valid samples of each row, `(batch,)`. Frames that see any other are zero.

        Without gradients, on a CPU, this is computed channels-last as in `channels_last`, to 1e-5 the same.
        """
        if self._can_run_packed(input_values):
            return self._run_packed(input_values, lengths)
        hidden_states = input_values[:, None]
        for index, layer in enumerate(self.conv_layers):
            frames = None
            if layer.norm == "group" and lengths is not None:
                frames = conv_output_lengths(lengths, self.config, index + 1)
            if index == 0 and self.training and hidden_states.is_leaf and layer.gradient_checkpointing:
                hidden_states.requires_grad_(True)  # checkpointing needs an input that asks for gradients
            hidden_states = layer(hidden_states, frames)
        hidden_states = hidden_states.transpose(1, 2)
        if lengths is None:
            return hidden_states
        frames = torch.arange(hidden_states.shape[1], device=lengths.device)
        valid = frames < conv_output_lengths(lengths, self.config)[:, None]
        return hidden_states.masked_fill(~valid[..., None], 0)

    def _can_run_packed(self, input_values: torch.Tensor) -> bool:
        """Whether the fast path computes what the modules would, and nobody has changed or watches them."""
        if _is_traced() or torch.is_autocast_enabled("cpu"):
            return False
        tensors = [input_values, *self.parameters()]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return False
        return (
            input_values.dtype in FAST_DTYPES
            and len(input_values) > 0
            and input_values.shape[1] >= receptive_field(self.config)
            and all(_is_plain_cpu(tensor, input_values.dtype) for tensor in tensors)
            and all(_is_untouched(layer) for layer in self.conv_layers)
        )

    @torch.no_grad()
    def _run_packed(self, input_values: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        batch, samples = input_values.shape
        features = input_values.new_zeros(batch, conv_output_lengths(samples, self.config), self.config.conv_dim[-1])
        sizes = [samples] * batch if lengths is None else lengths.tolist()
        frames = [conv_output_lengths(size, self.config) for size in sizes]
        rows = [row[:size].contiguous() for row, size in zip(input_values, sizes)]
        layers = self._packed_layers()
        run = self._run_one_by_one if self.config.feat_extract_norm == "group" else self._run_as_one
        for row, made in zip(features, run(layers, rows, frames)):
            row[: len(made)] = made
        return features

    def _packed_layers(self) -> list[Layer]:
        """All layers; a first one with a group norm is unfinished, since its statistics are the signal's."""
        convs = self._packed.get(
            [layer.conv.weight for layer in self.conv_layers],
            lambda: [PackedConv(layer.conv.weight, layer.conv.stride[0]) for layer in self.conv_layers],
        )
        return [
            Layer(conv, layer.conv.bias, layer.layer_norm if layer.norm == "layer" else None, layer.activate_into)
            for conv, layer in zip(convs, self.conv_layers)
        ]

    def _run_one_by_one(self, layers: list[Layer], rows: list[torch.Tensor], frames: list[int]) -> list[torch.Tensor]:
        """A group norm in the first layer: each row has statistics, so weights, of its own."""
        first, made = self.conv_layers[0], []
        for row, num in zip(rows, frames):
            if num:
                conv, bias = fold_group_norm(first.conv, first.layer_norm, row)
                made.append(run_layers([Layer(conv, bias, None, first.activate_into), *layers[1:]], row, num))
            else:
                made.append(row.new_empty(0, self.config.conv_dim[-1]))
        return made

    def _run_as_one(self, layers: list[Layer], rows: list[torch.Tensor], frames: list[int]) -> list[torch.Tensor]:
        """Rows lie one behind the other in one signal, whole hops apart; frames that see two of them are dropped."""
        if len(rows) == 1:
            return [run_layers(layers, rows[0], frames[0])] if frames[0] else []
        hop, field = math.prod(self.config.conv_stride), receptive_field(self.config)
        slots = [num and num - 1 + math.ceil(field / hop) for num in frames]
        starts = [sum(slots[:index]) for index in range(len(slots))]
        wave = rows[0].new_zeros(sum(slots) * hop)
        for row, num, start in zip(rows, frames, starts):
            seen = row[: (num - 1) * hop + field if num else 0]
            wave[start * hop : start * hop + len(seen)] = seen
        made = run_layers(layers, wave, conv_output_lengths(len(wave), self.config))
        return [made[start : start + num] for start, num in zip(starts, frames)]

    def _apply(self, fn, recurse=True):
        self._packed.clear()  # of weights about to be moved or cast
        return super()._apply(fn, recurse)

    def freeze(self) -> None:
        """Turn off gradients of all parameters."""
        self.requires_grad_(False)


def _is_traced() -> bool:
    """Whether the call is recorded or transformed rather than simply run."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or torch._C._are_functorch_transforms_active()
    )


def _is_plain_cpu(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether this is an ordinary tensor in memory, not a subclass that means something else (fake, quantised, …)."""
    return type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == dtype


def _is_untouched(layer: nn.Module) -> bool:
    """Whether `layer` is made of its own modules (adapters and parametrizations replace some) and has no hooks."""
    kinds = {"layer": nn.LayerNorm, "group": nn.GroupNorm}
    return (
        type(layer) is ConvLayer
        and type(layer.conv) is nn.Conv1d
        and (layer.norm is None or type(layer.layer_norm) is kinds[layer.norm])
        and not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    )

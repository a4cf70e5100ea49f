"""The convolutional front end: raw samples in, one feature vector per 20 ms out.

Weights and state-dict names are those of [`~transformers.HubertModel`]'s `feature_extractor`.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


class ConvLayer(GradientCheckpointingLayer):
    """One strided convolution, its norm ("layer", "group" or none) and activation. `(B, C_in, T)` to `(B, C_out, T')`."""

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
    values = hidden_states.float()
    mean = torch.where(valid, values, 0).sum(-1, keepdim=True) / count
    centred = torch.where(valid, values - mean, 0)
    variance = centred.square().sum(-1, keepdim=True) / count
    normed = centred * torch.rsqrt(variance + norm.eps)
    return (normed * norm.weight[:, None] + norm.bias[:, None]).to(hidden_states.dtype)


def conv_output_lengths(lengths, config, num_layers: int | None = None):
    """Frames that `num_layers` (default: all) convolutions make of `lengths` samples (int or tensor); never negative."""
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
                f"feat_extract_norm must be 'layer' (a LayerNorm in every layer) or 'group' (a GroupNorm in the first), "
                f"got {config.feat_extract_norm!r}"
            )
        self.config = config
        layer_norm = config.feat_extract_norm == "layer"
        norms = ["layer" if layer_norm else None for _ in config.conv_dim]
        if not layer_norm:
            norms[0] = "group"
        self.conv_layers = nn.ModuleList(ConvLayer(config, i, norm) for i, norm in enumerate(norms))

    def forward(self, input_values: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            input_values: `(batch, samples)`.
            lengths: valid samples of each row, `(batch,)`. Only a group norm needs them.
        """
        hidden_states = input_values[:, None]
        for index, layer in enumerate(self.conv_layers):
            frames = None
            if layer.norm == "group" and lengths is not None:
                frames = conv_output_lengths(lengths, self.config, index + 1)
            if index == 0 and self.training and hidden_states.is_leaf and layer.gradient_checkpointing:
                hidden_states.requires_grad_(True)  # checkpointing needs an input that asks for gradients
            hidden_states = layer(hidden_states, frames)
        return hidden_states.transpose(1, 2)

    def freeze(self) -> None:
        """Turn off gradients of all parameters."""
        self.requires_grad_(False)

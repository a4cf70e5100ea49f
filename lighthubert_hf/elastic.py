"""Layers that run a slice of themselves.

Each elastic layer keeps the full weights under the names of its static twin, holds which slice is active as plain
Python numbers (so deepcopy, pickle and meta-device loading just work), and can hand out that slice as the state of the
static twin (`active_state`). Nothing here decides *which* slice: the model sets it, explicitly.
"""

import torch
from torch import nn
from torch.nn import functional as F

Ranges = tuple[tuple[int, int], ...]


def take(tensor: torch.Tensor, ranges: Ranges, dim: int) -> torch.Tensor:
    """The given half-open ranges of `tensor` along `dim`, side by side. One range is a view; several are a copy."""
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class ElasticLinear(nn.Linear):
    """A linear layer of which the rows and columns in given ranges take part."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.in_ranges: Ranges = ((0, in_features),)
        self.out_ranges: Ranges = ((0, out_features),)

    def set_active(self, in_ranges: Ranges | None = None, out_ranges: Ranges | None = None) -> None:
        """Choose the inputs and outputs that take part; `None` means all of them."""
        self.in_ranges = in_ranges or ((0, self.in_features),)
        self.out_ranges = out_ranges or ((0, self.out_features),)

    def active_state(self) -> dict[str, torch.Tensor]:
        state = {"weight": take(take(self.weight, self.out_ranges, 0), self.in_ranges, 1)}
        if self.bias is not None:
            state["bias"] = take(self.bias, self.out_ranges, 0)
        return state

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, **self.active_state())


class ElasticLayerNorm(nn.LayerNorm):
    """A LayerNorm over the first `active_size` channels."""

    def __init__(self, normalized_shape: int, eps: float = 1e-5):
        super().__init__(normalized_shape, eps=eps)
        self.active_size = normalized_shape

    def active_state(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight[: self.active_size], "bias": self.bias[: self.active_size]}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden_states, (self.active_size,), eps=self.eps, **self.active_state())


class WeightNormParameters(nn.Module):
    """Holds magnitude and direction of a weight normed over dims 0 and 1, named as torch's parametrization names them.

    torch's own `parametrizations.weight_norm` makes a module that cannot be pickled and recomputes the weight on every
    attribute access; the state dict is the same.
    """

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.original0 = nn.Parameter(torch.empty(1, 1, shape[2]))
        self.original1 = nn.Parameter(torch.empty(shape))

    def forward(self) -> torch.Tensor:
        return torch._weight_norm(self.original1, self.original0, 2)


class WeightNormConv1d(nn.Module):
    """Grouped same-padding convolution along time with weight norm; channels-last in and out.

    State dict: `bias`, `parametrizations.weight.original0` (1, 1, kernel), `parametrizations.weight.original1`
    (channels, channels / groups, kernel): the names in [`~transformers.HubertModel`].
    """

    def __init__(self, channels: int, kernel_size: int, groups: int):
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        self.parametrizations = nn.ModuleDict(
            {"weight": WeightNormParameters((channels, channels // groups, kernel_size))}
        )
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation `sqrt(4 / (kernel * channels))`, as in fairseq's wav2vec 2.0."""
        norm = self.parametrizations["weight"]
        with torch.no_grad():
            norm.original1.normal_(0, (4 / (self.kernel_size * norm.original1.shape[0])) ** 0.5)
            norm.original0.copy_(torch.linalg.vector_norm(norm.original1, dim=(0, 1), keepdim=True))
            self.bias.zero_()

    def effective_state(self) -> dict[str, torch.Tensor]:
        """Weight and bias as the convolution uses them."""
        return {"weight": self.parametrizations["weight"](), "bias": self.bias}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out = F.conv1d(
            hidden_states.transpose(1, 2), **self.effective_state(), padding=self.kernel_size // 2, groups=self.groups
        )
        if self.kernel_size % 2 == 0:  # same padding of an even kernel gives one frame too many
            out = out[:, :, :-1]
        return out.transpose(1, 2)


class ElasticWeightNormConv1d(WeightNormConv1d):
    """The norm is taken over the full weight and then sliced to `[:E, :E // groups]`, as the original does."""

    def __init__(self, channels: int, kernel_size: int, groups: int):
        super().__init__(channels, kernel_size, groups)
        self.active_size = channels

    def effective_state(self) -> dict[str, torch.Tensor]:
        full, size = super().effective_state(), self.active_size
        return {"weight": full["weight"][:size, : size // self.groups], "bias": full["bias"][:size]}

    def active_state(self) -> dict[str, torch.Tensor]:
        """State of a static twin: its magnitude is the slice's own norm, or its weight would come out another.

        The norm comes from the kernel that will divide by it, so that the quotient is 1 and the weight the same bits.
        """
        state = self.effective_state()
        weight = state.pop("weight").contiguous()
        _, magnitude = torch._weight_norm_interface(weight, weight.new_ones(1, 1, self.kernel_size), 2)
        magnitude = magnitude.view(1, 1, -1).to(weight.dtype)
        name = "parametrizations.weight.original"
        return {**state, f"{name}0": magnitude, f"{name}1": weight}

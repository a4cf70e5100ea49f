"""Layers that run a slice of themselves.

Each elastic layer keeps the full weights under the names of its static twin, holds which slice is active as plain
Python numbers (so deepcopy, pickle and meta-device loading just work), and can hand out that slice as the state of the
static twin (`active_state`). Nothing here decides *which* slice: the model sets it, explicitly.
"""

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .fast_paths import PRECISE, WeightCache, is_recorded, is_watched, runs_plainly, wants_gradients

# Measured, with and without AVX-512: below so many frames the direct convolution is as fast as the one by Fourier
# transform. In training the weights' own transform, forth and back, is part of every step.
MIN_FOURIER_FRAMES = 32
MIN_FOURIER_FRAMES_TRAINING = 224

Ranges = tuple[tuple[int, int], ...]


def take(tensor: torch.Tensor, ranges: Ranges, dim: int) -> torch.Tensor:
    """The given half-open ranges of `tensor` along `dim`, side by side. One range is a view; several are a copy."""
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _Block(torch.autograd.Function):
    """Given ranges of dims 0 and 1 of a weight. Its gradient is written into one full weight of zeros.

    Autograd's own way makes such a weight for every range and every dimension, and adds them up.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, rows: Ranges, columns: Ranges) -> torch.Tensor:
        ctx.shape, ctx.ranges = weight.shape, (rows, columns)
        return take_block(weight, rows, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        full = grad.new_zeros(ctx.shape)
        rows, columns = ctx.ranges
        for (top, bottom), part in zip(rows, grad.split([stop - start for start, stop in rows])):
            sizes = [stop - start for start, stop in columns]
            for (left, right), block in zip(columns, part.split(sizes, 1)):
                full[top:bottom, left:right] = block
        return full, None, None


def take_block(weight: torch.Tensor, rows: Ranges, columns: Ranges) -> torch.Tensor:
    """`take` in both dimensions, copying no more than what is taken."""
    if len(columns) == 1:
        return take(take(weight, columns, 1), rows, 0)
    return take(take(weight, rows, 0), columns, 1)


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
        return self._state(take_block(self.weight, self.out_ranges, self.in_ranges))

    def _state(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return (
            {"weight": weight}
            if self.bias is None
            else {"weight": weight, "bias": take(self.bias, self.out_ranges, 0)}
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if wants_gradients([self.weight]) and not is_recorded():
            return F.linear(hidden_states, **self._state(_Block.apply(self.weight, self.out_ranges, self.in_ranges)))
        return F.linear(hidden_states, **self.active_state())


class ElasticHead(ElasticLinear):
    """A linear layer without bias that reads the first channels of its input.

    State dict: `weight`, and `per_width.SIZE.weight` for each number of inputs of `own_sizes`, which has weights of
    its own instead of the first columns.
    """

    def __init__(self, in_features: int, out_features: int, own_sizes: Iterable[int] = ()):
        super().__init__(in_features, out_features, bias=False)
        sizes = sorted(size for size in own_sizes if size < in_features)
        own = {str(size): nn.Linear(size, out_features, bias=False) for size in sizes}
        self.per_width = nn.ModuleDict(own) if own else None

    @torch.no_grad()
    def share_with_widths(self) -> None:
        """Start each width's own weights at the columns it would use without them."""
        for linear in (self.per_width or {}).values():
            linear.weight.copy_(self.weight[:, : linear.in_features])

    def active_state(self) -> dict[str, torch.Tensor]:
        own = self._own()
        return super().active_state() if own is None else {"weight": own.weight}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        own = self._own()
        return super().forward(hidden_states) if own is None else own(hidden_states)

    def _own(self) -> nn.Linear | None:
        size, own = str(self.in_ranges[-1][1]), self.per_width
        if own is None or size not in own:
            return None
        linear = own[size]
        assert isinstance(linear, nn.Linear)
        return linear


class ElasticLayerNorm(nn.LayerNorm):
    """A LayerNorm over the first `active_size` channels.

    State dict: `weight` and `bias`, of which a slice is used; and `per_width.SIZE.weight`, `per_width.SIZE.bias` for
    each size of `own_sizes`, which has a scale and shift of its own: mean and variance over fewer channels are others.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-5, own_sizes: Iterable[int] = ()):
        super().__init__(normalized_shape, eps=eps)
        self.active_size = normalized_shape
        sizes = sorted(size for size in own_sizes if size < normalized_shape)
        self.per_width = nn.ModuleDict({str(size): nn.LayerNorm(size, eps=eps) for size in sizes}) if sizes else None

    @torch.no_grad()
    def share_with_widths(self) -> None:
        """Start each width's own scale and shift at the slice it would use without them."""
        for norm in (self.per_width or {}).values():
            norm.weight.copy_(self.weight[: len(norm.weight)])
            norm.bias.copy_(self.bias[: len(norm.bias)])

    def active_state(self) -> dict[str, torch.Tensor]:
        if self.per_width is not None and str(self.active_size) in self.per_width:
            return dict(self.per_width[str(self.active_size)].named_parameters())
        return {"weight": self.weight[: self.active_size], "bias": self.bias[: self.active_size]}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden_states, (self.active_size,), eps=self.eps, **self.active_state())


class ElasticGroupNorm(nn.GroupNorm):
    """A GroupNorm of one channel a group, of the first `active_size` channels."""

    def __init__(self, num_channels: int, eps: float = 1e-5):
        super().__init__(num_channels, num_channels, eps=eps)
        self.active_size = num_channels

    def active_state(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight[: self.active_size], "bias": self.bias[: self.active_size]}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.group_norm(hidden_states, self.active_size, **self.active_state(), eps=self.eps)


class ElasticConv1d(nn.Conv1d):
    """A strided convolution along time of which the first `active_in` inputs and `active_out` outputs take part."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=bias)
        self.active_in, self.active_out = in_channels, out_channels

    def active_state(self) -> dict[str, torch.Tensor]:
        return self._state(self.weight[: self.active_out, : self.active_in])

    def trained_state(self) -> dict[str, torch.Tensor]:
        """`active_state`, whose gradients cost one full weight."""
        return self._state(_Block.apply(self.weight, ((0, self.active_out),), ((0, self.active_in),)))

    def _state(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": self.bias[: self.active_out]}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        trained = wants_gradients([self.weight]) and not is_recorded()
        state = self.trained_state() if trained else self.active_state()
        # What a convolution does with weights that lie apart need not be, to the bit, what its static twin does.
        state["weight"] = state["weight"].contiguous()
        return F.conv1d(hidden_states, **state, stride=self.stride)


def state_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Weight and bias that take part in what `module`, elastic or not, computes."""
    if hasattr(module, "active_state"):
        return {"bias": None} | module.active_state()
    return {"weight": module.weight, "bias": module.bias}


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
    (channels, channels / groups, kernel): the names in `transformers.HubertModel`.
    """

    def __init__(self, channels: int, kernel_size: int, groups: int):
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        self.parametrizations = nn.ModuleDict(
            {"weight": WeightNormParameters((channels, channels // groups, kernel_size))}
        )
        self.bias = nn.Parameter(torch.empty(channels))
        self._spectrum = WeightCache()
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

    def _active_channels(self) -> int:
        return len(self.bias)

    def _active_groups(self) -> int:
        return self.groups

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, T, channels)` to the same. On a CPU by Fourier transform, as exact as the direct sum."""
        batch, frames, _ = hidden_states.shape
        weights = list(self.parameters())
        tensors = [hidden_states, *weights]
        trained = wants_gradients(weights)
        if (
            batch * frames >= (MIN_FOURIER_FRAMES_TRAINING if trained else MIN_FOURIER_FRAMES)
            and runs_plainly(tensors, PRECISE)
            and type(self.parametrizations["weight"]) is WeightNormParameters
            and not is_watched(self.parametrizations["weight"])
        ):
            if trained:
                spectrum = self._weight_spectrum()
            else:
                spectrum = self._spectrum.get(weights, self._weight_spectrum, self._active_channels())
            return self._convolve_spectrum(hidden_states, spectrum)
        out = F.conv1d(
            hidden_states.transpose(1, 2),
            **self.effective_state(),
            padding=self.kernel_size // 2,
            groups=self._active_groups(),
        )
        if self.kernel_size % 2 == 0:  # same padding of an even kernel gives one frame too many
            out = out[:, :, :-1]
        return out.transpose(1, 2)

    def _weight_spectrum(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the spectra of blocks are multiplied by, `(frequencies * groups, in, out)`, and the bias."""
        state = self.effective_state()
        weight = state["weight"].unflatten(0, (self._active_groups(), -1))
        spectrum = torch.fft.rfft(weight, 2 * self.kernel_size).conj()  # conjugate: this is a correlation
        return spectrum.permute(3, 0, 2, 1).flatten(0, 1).resolve_conj().contiguous(), state["bias"]

    def _convolve_spectrum(self, hidden_states: torch.Tensor, spectrum: tuple) -> torch.Tensor:
        """Overlap-save: of each block of `2 * kernel_size` frames the first `kernel_size + 1` come out right."""
        (weight, bias), (batch, frames, channels) = spectrum, hidden_states.shape
        size, hop, left = 2 * self.kernel_size, self.kernel_size + 1, self.kernel_size // 2
        num_blocks = -(-frames // hop)
        padded = F.pad(hidden_states, (0, 0, left, (num_blocks - 1) * hop + size - frames - left))
        blocks = torch.fft.rfft(padded.unfold(1, size, hop).transpose(2, 3), dim=2)
        rows = blocks.reshape(batch * num_blocks, -1, weight.shape[1]).transpose(0, 1)
        products = torch.bmm(rows, weight).transpose(0, 1).reshape(blocks.shape)
        out = torch.fft.irfft(products, size, dim=2)[:, :, :hop]
        return out.reshape(batch, -1, channels)[:, :frames] + bias

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._spectrum.clear()  # of weights about to be moved or cast
        return super()._apply(fn, recurse)


class ElasticWeightNormConv1d(WeightNormConv1d):
    """The norm is taken over the full weight, which is sliced then.

    Args:
        whole_groups: Keep the first groups as they are, `[:E]`; otherwise a part of every group, `[:E, :E // groups]`,
            as the original does: a kept channel then reads other channels than before.
    """

    def __init__(self, channels: int, kernel_size: int, groups: int, whole_groups: bool = False):
        super().__init__(channels, kernel_size, groups)
        self.active_size, self.whole_groups = channels, whole_groups

    def _active_channels(self) -> int:
        return self.active_size

    def _active_groups(self) -> int:
        return self.active_size * self.groups // len(self.bias) if self.whole_groups else self.groups

    def effective_state(self) -> dict[str, torch.Tensor]:
        full, size = super().effective_state(), self.active_size
        inputs = size // self._active_groups()
        return {"weight": full["weight"][:size, :inputs], "bias": full["bias"][:size]}

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

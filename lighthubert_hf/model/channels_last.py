"""The convolutional front end as matrix products, without gradients, on a CPU.

Activations lie channels-last, `(rows, channels)`, so that a strided convolution is a product of its weights with a
*view* of its input: a row of the view is the stretch of memory a window covers. The signal goes through in chunks, and
each product, norm and activation in tiles, so that what one writes is still in the cache when the next reads it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

# Measured: frames of output that go through all layers together, and rows of one tile (even). Tiles of narrow layers
# are longer: as many times as their channels go into `TILE_CHANNELS`.
CHUNK_FRAMES = 128
TILE_ROWS = 1024
TILE_CHANNELS = 384

# Rows that a product in pairs reads, and throws the result away, when the number of outputs is odd.
SLACK = 2


class PackedConv:
    """Weights `(out_channels, in_channels, kernel)` of a plain strided convolution, laid out for matrix products.

    A kernel of 3 with stride 2 meets every odd row once and every even row twice. The even part is a filter of two
    taps over the even rows `e`, of which F(2, 2) (Winograd, *Arithmetic Complexity of Computations*, 1980) makes two
    outputs with three products instead of four:

        w0 e0 + w2 e1 = w0 (e0 - e1) + (w0 + w2) e1
        w0 e1 + w2 e2 = w2 (e2 - e1) + (w0 + w2) e1
    """

    def __init__(self, weight: torch.Tensor, stride: int):
        self.out_channels, self.in_channels, self.kernel = weight.shape
        self.stride = stride
        taps = weight.permute(2, 1, 0)
        # Sums of weights and differences of inputs cost half a bit each: only for types that have some to spare. The
        # first layer's input is the caller's, and too narrow to gain anything.
        precise = weight.dtype in (torch.float32, torch.float64)
        self.in_pairs = precise and self.kernel == 3 and stride == 2 and self.in_channels > 1
        if self.in_pairs:
            self.first, self.second = torch.cat([taps[0], taps[1]]), torch.cat([taps[2], taps[1]])
            self.shared = (taps[0] + taps[2]).contiguous()
        else:
            self.weight = taps.reshape(-1, self.out_channels).contiguous()
            # Overlapping windows of a single channel are copied inside the product, which costs least.
            whole = [slice(0, self.kernel)]
            self.parts = whole if self.in_channels == 1 else window_parts(len(self.weight), stride * self.in_channels)

    def rows_in(self, rows: int) -> int:
        """Input rows that `rows` output rows see."""
        return (rows - 1) * self.stride + self.kernel

    def multiply(self, source: torch.Tensor, rows: int, out: torch.Tensor) -> None:
        """Write the first `rows` outputs to `out`.

        Args:
            source: `(rows, in_channels)`, contiguous; if it has several channels, `SLACK` rows longer than `rows_in`
                says, and overwritten.
            out: `(rows, out_channels)`, contiguous, with a writable row behind `rows`.
        """
        if self.in_pairs:
            self._multiply_pairs(source, (rows + 1) // 2, out)
        else:
            self._multiply_windows(source, rows, out[:rows])

    def _multiply_windows(self, source: torch.Tensor, rows: int, out: torch.Tensor) -> None:
        step = self.stride * self.in_channels
        first, *others = self.parts
        torch.mm(windows(source, rows, step, first), self.weight[first], out=out)
        for part in others:
            out.addmm_(windows(source, rows, step, part), self.weight[part])

    def _multiply_pairs(self, source: torch.Tensor, pairs: int, out: torch.Tensor) -> None:
        """Rows come in fours: e0, odd, e1, odd. The differences take the places of e0 and e1, beside the odd rows."""
        channels = self.in_channels
        step = 4 * channels
        e0, e1, e2 = (windows(source, pairs, step, slice(row * channels, (row + 1) * channels)) for row in (0, 2, 4))
        even, odd = out[: 2 * pairs].view(pairs, 2, self.out_channels).unbind(1)
        torch.mm(e1, self.shared, out=even)
        odd.copy_(even)
        difference = e0 - e1
        torch.sub(e2, e1, out=e1)
        e0.copy_(difference)
        even.addmm_(windows(source, pairs, step, slice(0, 2 * channels)), self.first)
        odd.addmm_(windows(source, pairs, step, slice(2 * channels, step)), self.second)


def windows(source: torch.Tensor, rows: int, step: int, part: slice) -> torch.Tensor:
    """A part of each of `rows` windows, which begin `step` elements apart in the contiguous `source`, as a matrix."""
    return source.as_strided((rows, part.stop - part.start), (step, 1), source.storage_offset() + part.start)


def window_parts(width: int, step: int) -> list[slice]:
    """Cuts windows of `width` elements so that each part of them, `step` apart, overlaps no other window's.

    The rows of a matrix that BLAS takes as it lies must not overlap.
    """
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


class Norm(NamedTuple):
    """Scale and shift `(channels,)` of a norm, and what it adds to the variance."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


class Layer(NamedTuple):
    """A convolution and what follows it: bias, LayerNorm over channels, activation (writing to `out`)."""

    conv: PackedConv
    bias: torch.Tensor | None
    norm: Norm | None
    activation: Callable[..., torch.Tensor]

    def run(self, source: torch.Tensor, rows: int, out: torch.Tensor) -> None:
        """As `PackedConv.multiply`, tile by tile."""
        widest = max(self.conv.in_channels, self.conv.out_channels)
        tile_rows = TILE_ROWS * max(1, TILE_CHANNELS // widest)
        for start in range(0, rows, tile_rows):
            num = min(tile_rows, rows - start)
            self.conv.multiply(source[start * self.conv.stride :], num, out[start:])
            tile = out[start : start + num]
            if self.bias is not None:
                tile += self.bias
            norm, normed = self.norm, tile
            if norm is not None:
                normed = F.layer_norm(tile, norm.weight.shape, *norm)
            self.activation(normed, out=tile)


def run_layers(layers: Sequence[Layer], wave: torch.Tensor, frames: int) -> torch.Tensor:
    """Send the signal `wave`, `(samples,)`, through all layers: the first `frames` outputs, `(frames, channels)`."""
    convs = [layer.conv for layer in layers]
    hop = 1
    for conv in convs:
        hop *= conv.stride
    out = wave.new_empty(frames + 1, convs[-1].out_channels)
    buffers = _buffers(convs, min(frames, CHUNK_FRAMES), wave)
    for start in range(0, frames, CHUNK_FRAMES):
        rows = _rows_out(convs, min(CHUNK_FRAMES, frames - start))
        source = wave[start * hop :, None]
        for layer, num, buffer in zip(layers, rows, [*buffers, out[start:]]):
            layer.run(source, num, buffer)
            source = buffer
    return out[:frames]


def run_layer(layer: Layer, source: torch.Tensor, rows: int) -> torch.Tensor:
    """The first `rows` outputs of one layer, `(rows, out_channels)`. `source`, `(rows, in_channels)`, stays."""
    room = source.new_zeros(layer.conv.rows_in(rows) + SLACK, source.shape[1])
    seen = min(len(room), len(source))
    room[:seen] = source[:seen]
    out = source.new_empty(rows + 1, layer.conv.out_channels)
    layer.run(room, rows, out)
    return out[:rows]


def _rows_out(convs: Sequence[PackedConv], frames: int) -> list[int]:
    """Rows each layer must make for `frames` outputs of the last."""
    rows = [frames]
    for conv in reversed(convs[1:]):
        rows.append(conv.rows_in(rows[-1]))
    return rows[::-1]


def _buffers(convs: Sequence[PackedConv], frames: int, wave: torch.Tensor) -> list[torch.Tensor]:
    """Where the outputs of all layers but the last go: two pieces of memory, in turns."""
    shapes = [(rows + SLACK, conv.out_channels) for rows, conv in zip(_rows_out(convs, frames)[:-1], convs)]
    sizes = [rows * channels for rows, channels in shapes]
    # Zeros, not whatever lay there: slack rows are computed with.
    memory = [wave.new_zeros(max(sizes[turn::2], default=0)) for turn in (0, 1)]
    return [memory[index % 2][:size].view(shape) for index, (size, shape) in enumerate(zip(sizes, shapes))]


def fold_group_norm(
    weight: torch.Tensor, stride: int, norm: Norm, wave: torch.Tensor
) -> tuple[PackedConv, torch.Tensor, torch.Tensor]:
    """Weights and bias of the convolution that gives what that of `weight` and then `norm` give, and its signal.

    `norm` has one channel a group, so over time it is a scale and a shift of each channel. Mean and variance of a
    channel follow from the windows' mean m and covariance C as w·m and wᵀCw: no frame is computed twice.

    The signal comes back without its mean, which the norm takes off anyway: products with a large one would round away
    what lies on top of it.

    Args:
        weight: `(channels, 1, kernel)`. A bias is gone with the mean.
        wave: `(samples,)`, the whole signal.
    """
    kernel = weight.shape[2]
    frames = (wave.shape[0] - kernel) // stride + 1
    wave = wave - wave.double().mean().to(wave.dtype)
    mean, second = _window_moments(wave, kernel, stride, frames)
    taps = weight[:, 0].double()
    channel_mean = taps @ mean
    variance = ((taps @ (second - torch.outer(mean, mean))) * taps).sum(-1).clamp(min=0)
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.double() - scale * channel_mean
    scaled = (scale[:, None, None] * weight).to(wave.dtype)
    return PackedConv(scaled, stride), shift.to(wave.dtype), wave


def _window_moments(wave: torch.Tensor, kernel: int, stride: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `(kernel,)` of all windows of `wave`, and the mean `(kernel, kernel)` of their outer products."""
    mean = torch.zeros(kernel, dtype=torch.float64)
    second = torch.zeros(kernel, kernel, dtype=torch.float64)
    for start in range(0, frames, 1 << 16):
        stop = min(start + (1 << 16), frames)
        seen = wave[start * stride : (stop - 1) * stride + kernel].double()
        seen = seen.unfold(0, kernel, stride)
        mean += seen.sum(0)
        second += seen.T @ seen
    return mean / frames, second / frames

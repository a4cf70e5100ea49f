"""One layer of the convolutional front end with its gradients, as matrix products on channels-last rows.

As in `channels_last`, convolutions are products with views. What autograd would make of those views (a scatter each)
is written out here: gradients are products into views of the same shape. Of a layer's intermediate results only the
convolution's output is kept; norm and activation are computed again, tile by tile, when the gradient comes.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .channels_last import windows

TILE_ROWS = 1024


class ConvNormGelu(torch.autograd.Function):
    """`gelu(layer_norm(conv(rows)))`, bias and norm optional, in float32 or float64.

    Args:
        source: `(rows, in_channels)`, contiguous.
        weight: `(out_channels, in_channels, kernel)`.
        bias: `(out_channels,)` or `None`.
        gamma, beta: weight and bias of a LayerNorm over channels, or `None`.
        stride, eps: of convolution and norm.

    Returns `(rows', out_channels)`. Can be differentiated once.
    """

    @staticmethod
    def forward(ctx, source, weight, bias, gamma, beta, stride, eps):
        channels, in_channels, kernel = weight.shape
        rows, step = (len(source) - kernel) // stride + 1, stride * in_channels
        taps = weight.permute(2, 1, 0).reshape(-1, channels)
        parts = _parts(len(taps), step, overlap=in_channels == 1)
        convolved, out = (source.new_empty(rows, channels) for _ in range(2))
        statistics = []
        for tile in _tiles(rows):
            mixed, inputs = convolved[tile], source[tile.start * stride :]
            for part in parts:
                view = windows(inputs, len(mixed), step, part)
                torch.mm(view, taps[part], out=mixed) if part is parts[0] else mixed.addmm_(view, taps[part])
            if bias is not None:
                mixed += bias
            normed = mixed
            if gamma is not None:
                normed, *moments = torch.native_layer_norm(mixed, (channels,), gamma, beta, eps)
                statistics.append(moments)
            torch.ops.aten.gelu.out(normed, out=out[tile])
        mean, rstd = (torch.cat(column) for column in zip(*statistics)) if statistics else (None, None)
        ctx.save_for_backward(source, taps, gamma, beta, convolved, mean, rstd)
        ctx.kernel, ctx.step, ctx.parts, ctx.eps = kernel, step, parts, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        source, taps, gamma, beta, convolved, mean, rstd = ctx.saved_tensors
        wants_source, wants_weight, wants_bias, wants_gamma, wants_beta, *_ = ctx.needs_input_grad
        grad_source = torch.zeros_like(source) if wants_source else None
        grad_taps = torch.zeros_like(taps) if wants_weight else None
        sums = taps.new_zeros(3, taps.shape[1])  # gradients of gamma, beta and the convolution's bias
        stride = ctx.step // source.shape[1]
        for tile in _tiles(len(convolved)):
            grad, mixed = grad_out[tile], convolved[tile]
            if gamma is None:
                grad = torch.ops.aten.gelu_backward(grad, mixed)
            else:
                moments = mean[tile], rstd[tile]
                normed = F.layer_norm(mixed, gamma.shape, gamma, beta, ctx.eps)
                grad = torch.ops.aten.gelu_backward(grad, normed)
                grad, *of_norm = torch.ops.aten.native_layer_norm_backward(
                    grad, mixed, gamma.shape, *moments, gamma, beta, [True, wants_gamma, wants_beta]
                )
                for total, part in zip(sums, of_norm):
                    if part is not None:
                        total += part
            if wants_bias:
                sums[2] += grad.sum(0)
            for part in ctx.parts:
                if wants_weight:
                    view = windows(source[tile.start * stride :], len(grad), ctx.step, part)
                    grad_taps[part].addmm_(view.T, grad)
                if wants_source:
                    view = windows(grad_source[tile.start * stride :], len(grad), ctx.step, part)
                    view.addmm_(grad, taps[part].T)
        grad_weight = grad_taps.view(ctx.kernel, source.shape[1], -1).permute(2, 1, 0) if wants_weight else None
        kept = [total if wanted else None for total, wanted in zip(sums, (wants_gamma, wants_beta, wants_bias))]
        return grad_source, grad_weight, kept[2], kept[0], kept[1], None, None


def _parts(width: int, step: int, overlap: bool) -> list[slice]:
    """A window of `width` elements, cut so that pieces of windows `step` apart do not overlap (unless allowed)."""
    if overlap:
        return [slice(0, width)]
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def _tiles(rows: int) -> list[slice]:
    return [slice(start, min(start + TILE_ROWS, rows)) for start in range(0, rows, TILE_ROWS)]

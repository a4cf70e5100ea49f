"""One layer of the convolutional front end with its gradients, as matrix products on channels-last rows.

As in `channels_last`, convolutions are products with views. What autograd would make of those views (a scatter each)
is written out here: gradients are products into views of the same shape. Norm and activation are not kept but computed
again, tile by tile, when the gradient comes.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .channels_last import window_parts, windows

TILE_ROWS = 1024  # measured: what one tile's products, norm and activation touch should stay in the cache


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
    def forward(
        ctx: Any,
        source: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        stride: int,
        eps: float | None,
    ) -> torch.Tensor:
        channels, in_channels, kernel = weight.shape
        rows, step = (len(source) - kernel) // stride + 1, stride * in_channels
        taps = weight.permute(2, 1, 0).reshape(-1, channels)
        parts = window_parts(len(taps), step)
        convolved, out = source.new_empty(rows, channels), source.new_empty(rows, channels)
        moments = []
        for tile in _tiles(rows):
            mixed = convolved[tile]
            for part in parts:
                view = windows(source[tile.start * stride :], len(mixed), step, part)
                torch.mm(view, taps[part], out=mixed) if part.start == 0 else mixed.addmm_(view, taps[part])
            if bias is not None:
                mixed += bias
            normed = mixed
            if gamma is not None:
                normed, *of_tile = torch.native_layer_norm(mixed, gamma.shape, gamma, beta, eps)
                moments.append(of_tile)
            torch.ops.aten.gelu.out(normed, out=out[tile])
        mean, rstd = map(torch.cat, zip(*moments)) if moments else (None, None)
        ctx.save_for_backward(source, taps, gamma, beta, convolved, mean, rstd)
        ctx.kernel, ctx.stride, ctx.parts, ctx.eps = kernel, stride, parts, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        source, taps, gamma, beta, convolved, mean, rstd = ctx.saved_tensors
        wants_source, wants_weight, wants_bias, wants_gamma, wants_beta, *_ = ctx.needs_input_grad
        grad_source = torch.zeros_like(source) if wants_source else None
        grad_taps = torch.zeros_like(taps) if wants_weight else None
        grad_bias, grad_gamma, grad_beta = taps.new_zeros(3, taps.shape[1])
        step = ctx.stride * source.shape[1]
        for tile in _tiles(len(convolved)):
            grad, mixed = grad_out[tile], convolved[tile]
            if gamma is None:
                grad = torch.ops.aten.gelu_backward(grad, mixed)
            else:
                normed = F.layer_norm(mixed, gamma.shape, gamma, beta, ctx.eps)
                grad, of_gamma, of_beta = torch.ops.aten.native_layer_norm_backward(
                    torch.ops.aten.gelu_backward(grad, normed),
                    mixed, gamma.shape, mean[tile], rstd[tile], gamma, beta, [True, True, True],
                )  # fmt: skip
                grad_gamma += of_gamma
                grad_beta += of_beta
            if wants_bias:
                grad_bias += grad.sum(0)
            for part in ctx.parts:
                if wants_weight:
                    grad_taps[part].addmm_(windows(source[tile.start * ctx.stride :], len(grad), step, part).T, grad)
                if wants_source:
                    windows(grad_source[tile.start * ctx.stride :], len(grad), step, part).addmm_(grad, taps[part].T)
        grad_weight = grad_taps.view(ctx.kernel, source.shape[1], -1).permute(2, 1, 0) if wants_weight else None
        return (
            grad_source,
            grad_weight,
            grad_bias if wants_bias else None,
            grad_gamma if wants_gamma else None,
            grad_beta if wants_beta else None,
            None,
            None,
        )


def _tiles(rows: int) -> list[slice]:
    return [slice(start, min(start + TILE_ROWS, rows)) for start in range(0, rows, TILE_ROWS)]

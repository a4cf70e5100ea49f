"""The measure of exactness itself: it passes other orders of summation and catches what is wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from .precision import assert_as_exact, assert_gradients_as_exact, assert_rounded_alike, gradients, in_double

WIDTH = 384


@pytest.fixture(scope="module")
def product():
    """Rows, weights, and their product in float32 and float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(100, WIDTH, generator=generator) for _ in range(2))
    return x, weight, x @ weight.T, x.double() @ weight.double().T


def one_after_the_other(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The order of summation that rounds most: no lanes, no blocks, no fused multiply-add."""
    out = x.new_zeros(len(x), len(weight))
    for index in range(x.shape[1]):
        out = out + x[:, index : index + 1] * weight[:, index]
    return out


def test_any_order_of_summation_passes(product):
    x, weight, plain, exact = product
    ways = [one_after_the_other(x, weight), sum(a @ b.T for a, b in zip(x.split(16, 1), weight.split(16, 1)))]
    for way in ways:
        assert_as_exact(way, plain, exact)
        assert_as_exact(plain, way, exact)
        assert_rounded_alike(way, plain, WIDTH)


def one_element(plain, x, weight):
    found = plain.clone()
    found[17, 3] += 1e-2
    return found


def half_precision(plain, x, weight):
    return (x.bfloat16() @ weight.bfloat16().T).float()


def ten_bits(plain, x, weight):
    """What TF32 makes of the inputs."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32) @ weight.T


def a_weight(plain, x, weight):
    changed = weight.clone()
    changed[5, 7] += 1e-3
    return x @ changed.T


def not_a_number(plain, x, weight):
    return plain.index_fill(0, torch.tensor([3]), torch.nan)


@pytest.mark.parametrize("fault", [one_element, half_precision, ten_bits, a_weight, not_a_number])
def test_faults_are_caught(product, fault):
    x, weight, plain, exact = product
    with pytest.raises(AssertionError, match="off by"):
        assert_as_exact(fault(plain, x, weight), plain, exact)


def test_what_is_not_the_same_computation_is_no_yardstick(product):
    x, weight, plain, exact = product
    with pytest.raises(AssertionError, match="not the same computation"):
        assert_as_exact(plain, a_weight(plain, x, weight + 1), exact)
    with pytest.raises(AssertionError, match="the exact result is in"):
        assert_as_exact(plain, plain, plain)


def test_gradients_that_are_zero_by_mathematics():
    """A bias before a norm over time: one side may be exactly zero, the other is rounding. A real error shows."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(4, 8, 3), nn.GroupNorm(8, 8))
    x, weight = torch.randn(2, 4, 200), torch.randn(2, 8, 198)

    def of(module):
        (module(x.to(module[0].weight.dtype)) * weight).sum().backward()
        return gradients(module)

    exact, plain = of(in_double(module)), of(module)
    assert exact["0.bias"].abs().max() < 1e-12 < plain["0.bias"].abs().max()
    nothing = plain | {"0.bias": torch.zeros(8)}
    assert_gradients_as_exact(plain, nothing, exact)
    assert_gradients_as_exact(nothing, plain, exact)
    for name in plain:
        with pytest.raises(AssertionError, match=f"{name}: off by"):
            assert_gradients_as_exact(plain | {name: plain[name] + 1e-4 * plain["0.weight"].abs().max()}, plain, exact)


def test_a_step_by_hand_allows_rounding_and_no_more():
    x = F.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert_rounded_alike(x.sum(-1), sum(x.unbind(-1)), 16)
    with pytest.raises(AssertionError, match="16 roundings"):
        assert_rounded_alike(x.sum(-1), x.sum(-1) + 1e-5, 16)

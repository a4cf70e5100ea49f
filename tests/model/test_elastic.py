import copy
import pickle

import pytest
import torch
from torch import nn

from lighthubert_hf.model.elastic import (
    ElasticLayerNorm,
    ElasticLinear,
    ElasticWeightNormConv1d,
    WeightNormConv1d,
    take,
)

from ..precision import assert_as_exact, assert_rounded_alike, in_double

pytestmark = pytest.mark.numerical


def linear(bias: bool) -> ElasticLinear:
    layer = ElasticLinear(12, 10, bias=bias)
    layer.set_active(in_ranges=((0, 2), (4, 6), (8, 9)), out_ranges=((1, 4), (7, 8)))
    return layer


def layer_norm() -> ElasticLayerNorm:
    layer = ElasticLayerNorm(12)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.active_size = 5
    return layer


def conv(kernel_size: int, **options) -> ElasticWeightNormConv1d:
    layer = ElasticWeightNormConv1d(12, kernel_size, **{"groups": 2} | options)
    nn.init.normal_(layer.bias)
    nn.init.uniform_(layer.parametrizations["weight"].original0, 0.5, 2)  # a magnitude that is not the norm
    layer.active_size = 8
    return layer


CASES = {
    "linear": (lambda: linear(True), lambda: nn.Linear(5, 4), 5),
    "linear without bias": (lambda: linear(False), lambda: nn.Linear(5, 4, bias=False), 5),
    "layer norm": (layer_norm, lambda: nn.LayerNorm(5), 5),
    "even convolution": (lambda: conv(6), lambda: WeightNormConv1d(8, 6, groups=2), 8),
    "convolution of whole groups": (
        lambda: conv(6, groups=3, whole_groups=True),
        lambda: WeightNormConv1d(8, 6, groups=2),
        8,
    ),
    "odd convolution": (lambda: conv(5), lambda: WeightNormConv1d(8, 5, groups=2), 8),
}


@pytest.fixture(params=CASES)
def elastic_static_input(request):
    torch.manual_seed(0)
    elastic, static, width = CASES[request.param]
    return elastic(), static(), torch.randn(2, 7, width)


def test_the_active_slice_is_its_static_twin(elastic_static_input):
    """To the bit: the same kernels on the same numbers."""
    elastic, static, x = elastic_static_input
    static.load_state_dict(elastic.active_state(), strict=True)
    assert torch.equal(elastic(x), static(x))


def test_inactive_weights_do_not_matter_and_get_no_gradient(elastic_static_input):
    elastic, _, x = elastic_static_input
    out = elastic(x)
    out.square().sum().backward()
    active = {name: parameter.grad != 0 for name, parameter in elastic.named_parameters()}
    with torch.no_grad():
        for name, parameter in elastic.named_parameters():
            parameter.copy_(torch.where(active[name], parameter, parameter + 1))
    if isinstance(elastic, ElasticWeightNormConv1d):  # the norm is taken over the full weight, on purpose
        assert all(mask.any() for mask in active.values())
    else:
        assert not all(mask.all() for mask in active.values())
        assert torch.equal(elastic(x), out)


def test_deepcopy_and_pickle_keep_the_slice(elastic_static_input):
    elastic, _, x = elastic_static_input
    for copied in (copy.deepcopy(elastic), pickle.loads(pickle.dumps(elastic))):
        assert torch.equal(copied(x), elastic(x))


def test_all_is_active_at_first():
    torch.manual_seed(0)
    x = torch.randn(3, 12)
    layer, norm = ElasticLinear(12, 10), ElasticLayerNorm(12)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert torch.equal(norm(x), nn.functional.layer_norm(x, (12,)))


def test_one_range_is_a_view_and_several_are_copied():
    weight = torch.randn(6, 4)
    assert take(weight, ((1, 4),), 0).data_ptr() == weight[1:].data_ptr()
    several = take(weight, ((0, 2), (5, 6)), 0)
    assert torch.equal(several, weight[[0, 1, 5]])
    assert torch.equal(take(weight, ((0, 1), (2, 3)), 1), weight[:, [0, 2]])


@pytest.mark.parametrize("kernel_size", [5, 6])
def test_weight_norm_agrees_with_torch(kernel_size):
    """State names and values are those of torch's parametrization over dim 2, which transformers' HuBERT uses."""
    torch.manual_seed(0)
    theirs = nn.Conv1d(8, 8, kernel_size, padding=kernel_size // 2, groups=2)
    theirs = nn.utils.parametrizations.weight_norm(theirs, dim=2)
    nn.init.uniform_(theirs.parametrizations.weight.original0, 0.5, 2)
    ours = WeightNormConv1d(8, kernel_size, groups=2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 9, 8)
    expected = theirs(x.transpose(1, 2))[:, :, :9].transpose(1, 2)
    exact = in_double(theirs)(x.double().transpose(1, 2))[:, :, :9].transpose(1, 2)
    assert_as_exact(ours(x), expected, exact)
    assert ours(x).shape == x.shape


def test_a_new_convolution_has_its_own_norm():
    ours = WeightNormConv1d(8, 5, groups=2)
    state = ours.effective_state()
    # The norm over 32 weights a tap, its quotient and the product.
    assert_rounded_alike(state["weight"], ours.parametrizations["weight"].original1.data, 32)
    assert not ours.bias.any()

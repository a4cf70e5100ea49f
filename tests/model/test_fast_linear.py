"""Linear layers by oneDNN's product compute what the layers do, and step aside."""

import copy
import pickle
import random
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import ACT2FN

from lighthubert_hf import LightHubertModel
from lighthubert_hf.model import fast_linear
from lighthubert_hf.model.elastic import ElasticLinear
from lighthubert_hf.model.fast_linear import can_multiply, multiply
from lighthubert_hf.model.fast_paths import has_onednn

from ..examples import examples
from ..precision import assert_as_exact, assert_rounded_alike, in_double

pytestmark = pytest.mark.numerical

if not has_onednn():
    pytest.skip("this build of torch has no oneDNN", allow_module_level=True)


@pytest.fixture
def layers():
    return [nn.Linear(6, size) for size in (4, 4, 8)]


@pytest.fixture
def products(monkeypatch):
    """How often oneDNN's product ran."""
    runs, product = [], fast_linear.product
    monkeypatch.setattr(fast_linear, "product", lambda *args: runs.append(1) or product(*args))
    return runs


def assert_as_layer(found, layer, x, gelu=None):
    """Up to rounding, however the sums are ordered; and oneDNN's own GELU is good to 5e-7."""
    wanted, width = layer(x), x.shape[-1]
    size = F.linear(x.abs(), layer.weight.abs(), layer.bias.abs()).max().item()
    assert_rounded_alike(found, gelu(wanted) if gelu else wanted, width + (10 if gelu else 1), size)


@settings(deadline=None, max_examples=examples(30))
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
def test_equals_the_layer(batch, rows, width, size):
    layer, x, gelu = nn.Linear(width, size), torch.randn(batch, rows, width), ACT2FN["gelu"]
    with torch.no_grad():
        for view in (x, x.transpose(0, 1)):
            assert can_multiply([layer], view, gelu)
            assert_as_layer(multiply(layer, view), layer, view)
            assert_as_layer(multiply(layer, view, gelu=True), layer, view, gelu)


@torch.no_grad()
@pytest.mark.parametrize("columns", [((0, 6),), ((1, 4),), ((0, 2), (4, 5))])
@pytest.mark.parametrize("rows", [((0, 8),), ((2, 7),), ((0, 3), (5, 8))])
def test_a_slice_equals_the_layer_cut_out_of_it_to_the_bit(rows, columns):
    elastic = ElasticLinear(6, 8)
    elastic.set_active(in_ranges=columns, out_ranges=rows)
    state = elastic.active_state()
    static = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
    static.load_state_dict(state)
    x = torch.randn(2, 5, static.in_features)
    assert can_multiply([elastic, static], x)
    assert torch.equal(multiply(elastic, x), multiply(static, x))


def put_aside(why, layers):
    """Layers and input as oneDNN must not multiply them, for one reason."""
    x, activation = torch.randn(2, 3, 6), None
    if why == "hook":
        layers[0].register_forward_hook(lambda *_: None)
    elif why == "adapter":
        layers[1] = nn.Sequential(layers[1], nn.Dropout(0.0))
    elif why == "no bias":
        layers[2] = nn.Linear(6, 8, bias=False)
    elif why == "activation":
        activation = nn.ReLU()
    elif why == "watched activation":
        activation = ACT2FN["gelu"]
        activation.register_forward_hook(lambda *_: None)
    elif why == "double":
        x, layers = x.double(), [layer.double() for layer in layers]
    elif why == "empty":
        x = x[:0]
    return layers, x, activation


REASONS = [
    "gradients", "hook", "adapter", "no bias", "activation", "watched activation", "double", "empty", "counted",
    "autocast", "switched off",
]  # fmt: skip


@pytest.mark.parametrize("why", [None, *REASONS])
def test_steps_aside_where_somebody_could_tell(layers, why):
    layers, x, activation = put_aside(why, layers)
    contexts = {
        "counted": lambda: FlopCounterMode(display=False),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "switched off": lambda: torch.backends.mkldnn.flags(enabled=False),
    }
    with torch.set_grad_enabled(why == "gradients"), contexts.get(why, nullcontext)():
        assert can_multiply(layers, x, activation) == (why is None)


def test_a_layer_that_steps_aside_computes_the_same(make_model, waveforms, products):
    model = make_model(LightHubertModel, search_space=None).eval()
    with torch.no_grad():
        found, exact = (twin(waveforms).last_hidden_state for twin in (model, in_double(model)))
        assert len(products) == 6 * len(model.encoder.layers)
        products.clear()
        model.encoder.layers[0].attention.k_proj.register_forward_hook(lambda *_: None)
        assert_as_exact(found, model(waveforms).last_hidden_state, exact)
        assert len(products) == 6 * len(model.encoder.layers) - 4
    model(waveforms).last_hidden_state.sum().backward()  # not with gradients
    assert len(products) == 6 * len(model.encoder.layers) - 4
    assert model.encoder.layers[0].attention.k_proj.weight.grad is not None


@torch.no_grad()
def test_a_model_survives_copies(make_model, waveforms, products):
    static = make_model(LightHubertModel, search_space=None)
    wanted = static(waveforms).last_hidden_state
    assert products
    for twin in (copy.deepcopy(static), pickle.loads(pickle.dumps(static)), static.double().float()):
        assert torch.equal(twin(waveforms).last_hidden_state, wanted)


@torch.no_grad()
def test_every_subnet_runs_as_the_static_model_to_the_bit(make_model, waveforms, products):
    supernet = make_model(LightHubertModel).eval()
    space = supernet.search_space
    for subnet in (space.smallest(), space.largest(), space.sample(random.Random(0)), space.smallest()):
        supernet.set_active_subnet(subnet)
        products.clear()
        found = supernet(waveforms).last_hidden_state
        assert len(products) == 6 * subnet.num_hidden_layers
        assert torch.equal(found, supernet.extract_subnet(subnet)(waveforms).last_hidden_state)

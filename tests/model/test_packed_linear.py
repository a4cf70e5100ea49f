"""Linear layers on packed weights compute what the layers do, follow their weights, and step aside."""

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
from lighthubert_hf.model.fast_paths import can_pack
from lighthubert_hf.model.packed_linear import PackedLinears, PackedWeight

from ..precision import assert_as_exact, assert_rounded_alike, in_double

pytestmark = pytest.mark.numerical

if not can_pack():
    pytest.skip("this build of torch has no oneDNN", allow_module_level=True)


@pytest.fixture
def layers():
    return [nn.Linear(6, size) for size in (4, 4, 8)]


@pytest.fixture
def packed(monkeypatch):
    """How often a product on packed weights ran."""
    runs, multiply = [], PackedWeight.multiply
    monkeypatch.setattr(PackedWeight, "multiply", lambda *args, **kwargs: runs.append(1) or multiply(*args, **kwargs))
    return runs


def side_by_side(layers, x):
    return torch.cat([layer(x) for layer in layers], -1)


def assert_as_layers(found, layers, x, gelu=None):
    """Up to rounding, however the sums are ordered; and oneDNN's own GELU is good to 5e-7."""
    wanted, width = side_by_side(layers, x), x.shape[-1]
    size = max(F.linear(x.abs(), layer.weight.abs(), layer.bias.abs()).max().item() for layer in layers)
    assert_rounded_alike(found, gelu(wanted) if gelu else wanted, width + (10 if gelu else 1), size)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_equals_the_layers(batch, rows, width, sizes):
    layers, last = [nn.Linear(width, size) for size in sizes], nn.Linear(sum(sizes), width)
    x, gelu = torch.randn(batch, rows, width), ACT2FN["gelu"]
    with torch.no_grad():
        first, second = PackedLinears().get([layers, [last]], x, gelu)
        for view in (x, x.transpose(0, 1)):
            assert_as_layers(first.multiply(view), layers, view)
            assert_as_layers(first.multiply(view, gelu=True), layers, view, gelu)
            wanted = side_by_side(layers, view)
            assert_as_layers(second.multiply(wanted), [last], wanted)


@torch.no_grad()
def test_follows_its_weights(layers):
    x, packed = torch.randn(2, 3, 6), PackedLinears()
    before = packed.get([layers], x)
    assert packed.get([layers], x) is before
    for change in (
        lambda: layers[1].weight.mul_(2),
        lambda: setattr(layers[2], "bias", nn.Parameter(torch.randn(8))),
        lambda: setattr(layers[0].weight, "data", torch.randn(4, 6)),
        lambda: layers[0].weight.data.add_(1),
        lambda: setattr(layers[2], "weight", nn.Parameter(layers[2].weight.data.flip(0))),
    ):
        change()
        after = packed.get([layers], x)
        assert after is not before
        assert_as_layers(after[0].multiply(x), layers, x)
        before = after


def put_aside(why, layers):
    """Layers and input as they must not run packed, for one reason."""
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
        assert (PackedLinears().get([layers], x, activation) is None) == (why is not None)


def test_a_layer_that_steps_aside_computes_the_same(make_model, waveforms, packed):
    model = make_model(LightHubertModel, search_space=None).eval()
    with torch.no_grad():
        found, exact = (twin(waveforms).last_hidden_state for twin in (model, in_double(model)))
        packed.clear()
        model.encoder.layers[0].attention.k_proj.register_forward_hook(lambda *_: None)
        assert_as_exact(found, model(waveforms).last_hidden_state, exact)
        assert len(packed) == 4 * len(model.encoder.layers) - 2
    model(waveforms).last_hidden_state.sum().backward()  # nothing is packed with gradients
    assert len(packed) == 4 * len(model.encoder.layers) - 2
    assert model.encoder.layers[0].attention.k_proj.weight.grad is not None


@torch.no_grad()
def test_a_model_runs_packed_and_survives_copies(make_model, waveforms, packed):
    static = make_model(LightHubertModel, search_space=None)
    wanted, features = static(waveforms).last_hidden_state, static.extract_features(waveforms)
    packed.clear()
    static.encode(features)
    assert len(packed) == 4 * len(static.encoder.layers)
    for twin in (copy.deepcopy(static), pickle.loads(pickle.dumps(static)), static.double().float()):
        assert torch.equal(twin(waveforms).last_hidden_state, wanted)


@torch.no_grad()
def test_the_active_slice_is_packed_anew_for_every_subnet(make_model, waveforms, packed):
    supernet = make_model(LightHubertModel).eval()
    space = supernet.search_space
    for subnet in (space.smallest(), space.largest(), space.sample(random.Random(0)), space.smallest()):
        supernet.set_active_subnet(subnet)
        packed.clear()
        found = supernet(waveforms).last_hidden_state
        assert len(packed) == 4 * subnet.num_hidden_layers
        assert torch.equal(found, supernet.extract_subnet(subnet)(waveforms).last_hidden_state)

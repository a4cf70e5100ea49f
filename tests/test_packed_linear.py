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
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import ACT2FN

from lighthubert_hf import LightHubertModel
from lighthubert_hf.fast_paths import can_pack
from lighthubert_hf.packed_linear import PackedLinears, PackedWeight

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


def assert_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_equals_the_layers(batch, rows, width, sizes):
    layers, x = [nn.Linear(width, size) for size in sizes], torch.randn(batch, rows, width)
    run, gelu = PackedLinears(), ACT2FN["gelu"]
    with torch.no_grad():
        for view in (x, x.transpose(0, 1)):
            assert_equal(run.run(layers, view), [layer(view) for layer in layers])
        assert_equal(PackedLinears().run(layers, x, gelu), [gelu(layer(x)) for layer in layers])


@torch.no_grad()
def test_follows_its_weights(layers, packed):
    x, run = torch.randn(2, 3, 6), PackedLinears()
    for change in (
        lambda: layers[1].weight.mul_(2),
        lambda: setattr(layers[2], "bias", nn.Parameter(torch.randn(8))),
        lambda: setattr(layers[0].weight, "data", torch.randn(4, 6)),
        lambda: layers[0].weight.data.add_(1),
    ):
        assert_equal(run.run(layers, x), [layer(x) for layer in layers])
        change()
        assert_equal(run.run(layers, x), [layer(x) for layer in layers])
    assert len(packed) == 8


@pytest.mark.parametrize(
    "why", ["gradients", "hook", "adapter", "no bias", "activation", "double", "counted", "autocast", "switched off"]
)
def test_runs_the_layers_where_somebody_could_tell(layers, packed, why):
    x, run, seen, activation = torch.randn(2, 3, 6), PackedLinears(), [], None
    if why == "hook":
        layers[0].register_forward_hook(lambda *_: seen.append(1))
    elif why == "adapter":
        layers[1] = nn.Sequential(layers[1], nn.Dropout(0.0))
    elif why == "no bias":
        layers[2] = nn.Linear(6, 8, bias=False)
    elif why == "activation":
        activation = nn.ReLU()
    elif why == "double":
        x, layers = x.double(), [layer.double() for layer in layers]
    contexts = {
        "counted": lambda: FlopCounterMode(display=False),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "switched off": lambda: torch.backends.mkldnn.flags(enabled=False),
    }
    with torch.set_grad_enabled(why == "gradients"), contexts.get(why, nullcontext)():
        found = run.run(layers, x, activation)
        wanted = [(activation or nn.Identity())(layer(x)) for layer in layers]
    assert not packed
    assert len(seen) == 2 * (why == "hook")
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == (why == "gradients")


@torch.no_grad()
def test_a_model_runs_packed_and_survives_copies(make_model, waveforms, packed):
    static = make_model(LightHubertModel, search_space=None)
    wanted, features = static(waveforms).last_hidden_state, static.extract_features(waveforms)
    packed.clear()
    static.encode(features)
    assert len(packed) == 4 * len(static.encoder.layers)
    for twin in (copy.deepcopy(static), pickle.loads(pickle.dumps(static)), static.double().float()):
        torch.testing.assert_close(twin(waveforms).last_hidden_state, wanted, rtol=0, atol=1e-5)


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

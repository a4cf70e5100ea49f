"""Channels of the front end as a choice: the slice that runs, the model cut out of it, and what they were without."""

import copy
import random
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertForCTC, LightHubertForPreTraining, LightHubertModel, Subnet
from lighthubert_hf.model.elastic import ElasticConv1d, ElasticGroupNorm, ElasticLayerNorm
from lighthubert_hf.model.front_end import FrontEnd

from .. import processes
from ..examples import examples
from ..precision import assert_as_exact, in_double
from ..tiny import TINY_SPACE

CHANNELS = ((5, 8, 16), (12, 16), (3, 16), (7, 16), (9, 16), (16,), (10, 16))
SPACE = replace(TINY_SPACE, conv_dim=CHANNELS)
NARROW = Subnet(48, (1, 3, 2), (96, 72, 144), (8, 12, 3, 16, 9, 16, 10))
FRONT_ENDS = {
    "layer norm": {"feat_extract_norm": "layer"},
    "layer norm, bias": {"feat_extract_norm": "layer", "conv_bias": True},
    "norms of their own": {"feat_extract_norm": "layer", "conv_norm_per_width": True},
    "group norm": {"feat_extract_norm": "group"},
    "group norm, bias": {"feat_extract_norm": "group", "conv_bias": True, "conv_norm_per_width": True},
}
every_subnet = settings(
    max_examples=examples(8), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=FRONT_ENDS)
def supernet(request, make_model):
    return make_model(LightHubertForPreTraining, search_space=SPACE, **FRONT_ENDS[request.param])


@pytest.fixture
def batch(waveforms):
    """Audio and mask: a padded row, and one of less than a frame."""
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 3000:] = mask[2, 399:] = 0
    return waveforms * mask, mask


@pytest.fixture
def plainly(monkeypatch):
    """Makes the layers of the front end run as modules."""
    return lambda: monkeypatch.setattr(FrontEnd, "_is_as_built", lambda *args: False)


@torch.no_grad()
def states(model, *args) -> list[torch.Tensor]:
    out = model(*args, output_hidden_states=True)
    return [out.predictions, *out.hidden_states] if "predictions" in out else [out[0], *out.hidden_states]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


# Active slice = extracted model, to the bit


@every_subnet
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("path", ["fast", "plain"])
def test_extracted_is_the_active_slice(supernet, batch, plainly, path, seed):
    if path == "plain":
        plainly()
    supernet.set_active_subnet(SPACE.sample(random.Random(seed)))
    static = supernet.extract_subnet()
    assert equal(states(supernet, *batch), states(static, *batch))
    assert equal(states(supernet, batch[0][:1]), states(static, batch[0][:1]))


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_gradients_are_those_of_the_extracted_model(supernet, batch, plainly, path):
    if path == "plain":
        plainly()
    model = copy.deepcopy(supernet)
    model.set_active_subnet(NARROW)
    static = model.extract_subnet()
    losses = []
    for trained in (model, static):
        features = trained.lighthubert.extract_features(*batch)
        losses.append(trained.lighthubert.feature_projection.layer_norm(features).pow(4).sum())
        losses[-1].backward()
    assert torch.equal(*losses)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    wanted = {name: tensor.grad for name, tensor in static.named_parameters() if tensor.grad is not None}
    assert len(wanted) == 11 + 7 * static.config.conv_bias + 12 * (static.config.feat_extract_norm == "layer")
    for name, grad in wanted.items():
        module, _, part = name.rpartition(".")
        own = f"{module}.per_width.{len(grad)}.{part}"
        if own in gradients:
            assert gradients[name] is None
            name = own
        full, taken = gradients[name], tuple(slice(0, size) for size in grad.shape)
        assert torch.equal(full[taken], grad), name
        rest = full.clone()
        rest[taken] = 0
        assert not rest.any(), name


def test_every_layer_of_the_front_end_matters(supernet, waveforms):
    whole = SPACE.largest()
    seen = []
    for layer, choices in enumerate(CHANNELS):
        for channels in choices:
            conv_dim = tuple(channels if index == layer else 16 for index in range(7))
            supernet.set_active_subnet(replace(whole, conv_dim=conv_dim))
            seen.append((conv_dim, states(supernet, waveforms[:1])[0]))
    for (dim, first), (other, second) in combinations(seen, 2):
        assert dim == other or (first - second).abs().max() > 1e-4


def test_norms_of_their_own_start_as_slices_and_are_folded(make_model, waveforms):
    sliced = make_model(LightHubertModel, search_space=SPACE, feat_extract_norm="layer")
    own = make_model(LightHubertModel, search_space=SPACE, feat_extract_norm="layer", conv_norm_per_width=True)
    info = own.load_state_dict(sliced.state_dict(), strict=False)
    names = {f"feature_extractor.conv_layers.0.layer_norm.per_width.{width}.{part}" for width in (5, 8)
             for part in ("weight", "bias")}  # fmt: skip
    assert names <= set(info.missing_keys)
    assert "feature_projection.layer_norm.per_width.10.bias" in info.missing_keys
    for module in own.modules():
        if isinstance(module, ElasticLayerNorm):
            module.share_with_widths()
    for model in (sliced, own):
        model.set_active_subnet(NARROW)
    assert equal(states(sliced, waveforms), states(own, waveforms))
    with torch.no_grad():
        own.feature_extractor.conv_layers[0].layer_norm.per_width["8"].weight *= 2
    changed = states(own, waveforms)
    assert not equal(states(sliced, waveforms), changed)
    static = own.extract_subnet()
    assert not any("per_width" in name for name in static.state_dict())
    assert equal(states(static, waveforms), changed)
    own.set_active_subnet(replace(NARROW, conv_dim=(16,) * 7))
    sliced.set_active_subnet(replace(NARROW, conv_dim=(16,) * 7))
    assert equal(states(sliced, waveforms), states(own, waveforms))


# What it was without a choice


def test_without_a_choice_nothing_is_elastic_but_the_encoder(make_model, waveforms):
    fixed = make_model(LightHubertModel)
    assert not any(isinstance(m, ElasticConv1d | ElasticGroupNorm) for m in fixed.modules())
    norms = [fixed.feature_projection.layer_norm, *(layer.layer_norm for layer in fixed.feature_extractor.conv_layers)]
    assert {type(norm) for norm in norms} == {torch.nn.LayerNorm}
    whole = make_model(LightHubertModel, search_space=SPACE)
    assert whole.state_dict().keys() == fixed.state_dict().keys()
    for subnet in (TINY_SPACE.smallest(), TINY_SPACE.default()):
        fixed.set_active_subnet(subnet)
        whole.set_active_subnet(subnet)
        assert equal(states(fixed, waveforms), states(whole, waveforms))
        assert whole.active_subnet == replace(subnet, conv_dim=(16,) * 7)
        assert fixed.active_subnet == subnet


def test_a_fixed_front_end_cannot_be_cut(make_model):
    fixed = make_model(LightHubertModel)
    fixed.set_active_subnet(replace(TINY_SPACE.smallest(), conv_dim=(16,) * 7))
    assert fixed.active_subnet == TINY_SPACE.smallest()
    with pytest.raises(ValueError, match="no choice of channels; load the supernet with a search_space that has"):
        fixed.set_active_subnet(replace(TINY_SPACE.smallest(), conv_dim=(8,) * 7))


def test_a_supernet_becomes_elastic_by_its_space(make_model, waveforms, tmp_path):
    fixed = make_model(LightHubertModel)
    fixed.save_pretrained(tmp_path)
    elastic, info = LightHubertModel.from_pretrained(tmp_path, search_space=SPACE, output_loading_info=True)
    assert not info["missing_keys"]
    assert elastic.active_subnet == replace(fixed.active_subnet, conv_dim=(16,) * 7)
    assert equal(states(fixed, waveforms), states(elastic, waveforms))
    opened = LightHubertModel.from_pretrained(tmp_path, search_space=SPACE, default_subnet=None)
    assert opened.active_subnet == SPACE.default()
    with pytest.raises(ValueError, match="does not fit the model: conv_dim 32 of layer 0 exceeds the supernet's 16"):
        LightHubertModel.from_pretrained(tmp_path, search_space=replace(TINY_SPACE, conv_dim=(8, 32)))
    elastic.save_pretrained(tmp_path / "elastic")
    again = LightHubertModel.from_pretrained(tmp_path / "elastic")
    assert again.search_space == SPACE


# Plain HuBERT


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FRONT_ENDS if name != "group norm, bias"])
def test_a_narrow_subnet_is_a_plain_hubert(make_model, waveforms, tmp_path, name):
    static = make_model(LightHubertForCTC, search_space=SPACE, **FRONT_ENDS[name]).extract_subnet(NARROW)
    assert static.config.conv_dim == list(NARROW.conv_dim)
    hubert = static.to_hubert()
    assert hubert.config.conv_dim == list(NARROW.conv_dim)
    wanted = static(waveforms).logits
    plain, exact = hubert(waveforms).logits, in_double(hubert)(waveforms.double()).logits
    assert_as_exact(wanted, plain, exact)
    hubert.save_pretrained(tmp_path)
    torch.save({"waveforms": waveforms.double(), "logits": exact}, tmp_path / "wanted.pt")
    code = f"""
import sys, torch
sys.modules["lighthubert_hf"] = None  # any import of it fails
from transformers import HubertForCTC
model, info = HubertForCTC.from_pretrained({str(tmp_path)!r}, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
wanted = torch.load({str(tmp_path / "wanted.pt")!r})
difference = (model.double().eval()(wanted["waveforms"]).logits - wanted["logits"]).abs().max().item()
assert difference < 1e-9, difference
"""
    if name == "layer norm":
        processes.run("-c", code, check=True)

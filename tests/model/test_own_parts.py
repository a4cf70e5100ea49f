"""What a width may have of its own: scale and shift of the encoder's norms, and the prediction head."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, Subnet

from .test_extraction import assert_equal, every_subnet, outputs

OWN = {"norm_per_width": True, "head_per_width": True}
NARROW = Subnet(48, (1, 4, 2), (96, 72, 144))


@pytest.fixture(scope="module", params=[False, True], ids=["post-norm", "pre-norm"])
def supernet(request, make_model):
    return make_model(LightHubertForPreTraining, do_stable_layer_norm=request.param, **OWN)


@pytest.mark.numerical
@every_subnet
@given(seed=st.integers(0, 2**32))
def test_extracted_is_the_active_slice(supernet, waveforms, seed):
    """To the bit, of a padded batch and of one that is not; no trace of the others is left."""
    subnet = supernet.search_space.sample(random.Random(seed))
    supernet.set_active_subnet(subnet)
    static = supernet.extract_subnet()
    assert not any("per_width" in name for name in static.state_dict())
    assert not static.config.norm_per_width and not static.config.head_per_width
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 3000:] = 0
    for arguments in ((waveforms, mask), (waveforms,)):
        assert_equal(outputs(supernet, *arguments), outputs(static, *arguments))


def test_each_width_reads_its_own_and_trains_its_own(supernet, waveforms):
    supernet.zero_grad()
    supernet.set_active_subnet(NARROW)
    supernet(waveforms).predictions.sum().backward()
    encoder = supernet.lighthubert.encoder
    norms = [encoder.layer_norm, *(encoder.layers[i].final_layer_norm for i in encoder.active_layers)]
    for module in (*norms, supernet.prediction_head):
        assert module.weight.grad is None
        assert module.per_width["32"].weight.grad is None
        assert module.per_width["48"].weight.grad is not None
    supernet.set_active_subnet(supernet.search_space.largest())
    supernet(waveforms).predictions.sum().backward()
    assert all(module.weight.grad is not None for module in (*norms, supernet.prediction_head))


def test_shared_parts_are_those_of_a_supernet_without(make_model, waveforms, tmp_path):
    """Started as slices they compute what slices do; saved and loaded they are all there."""
    plain = make_model(LightHubertForPreTraining)
    own = make_model(LightHubertForPreTraining, **OWN)
    missing = own.load_state_dict(plain.state_dict(), strict=False).missing_keys
    # Two norms in each of four layers, one before them, weight and bias for two widths; the head for two.
    assert len(missing) == (2 * 4 + 1) * 2 * 2 + 2 and all(".per_width." in name for name in missing)
    for module in own.modules():
        if hasattr(module, "share_with_widths"):
            module.share_with_widths()
    own.save_pretrained(tmp_path / "own")
    again = LightHubertForPreTraining.from_pretrained(tmp_path / "own").eval()
    for width in (32, 48, 64):
        subnet = Subnet(width, (1, 4, 2), (2 * width, width, 3 * width))
        for model in (plain, own, again):
            model.set_active_subnet(subnet)
        assert_equal(outputs(plain, waveforms), outputs(own, waveforms))
        assert_equal(outputs(plain, waveforms), outputs(again, waveforms))
    with torch.no_grad():
        own.lighthubert.encoder.layers[0].layer_norm.per_width["48"].bias += 1
    own.set_active_subnet(NARROW)
    plain.set_active_subnet(NARROW)
    assert not torch.equal(own(waveforms).predictions, plain(waveforms).predictions)


def test_a_plain_hubert_has_the_widths_own(make_model, waveforms):
    model = make_model(LightHubertModel, norm_per_width=True)
    static = model.extract_subnet(Subnet(48, (2, 2, 2, 2), (96,) * 4))
    own = model.encoder.layers[0].final_layer_norm.per_width["48"]
    hubert = static.to_hubert()
    assert torch.equal(hubert.encoder.layers[0].final_layer_norm.weight, own.weight)
    with torch.no_grad():
        torch.testing.assert_close(hubert(waveforms).last_hidden_state, static(waveforms).last_hidden_state)


def test_without_the_switches_nothing_is_there(make_model):
    model = make_model(LightHubertForPreTraining)
    assert not any("per_width" in name for name in model.state_dict())

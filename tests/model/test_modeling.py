"""The encoder: what it makes of subnets, batches, padding and odd inputs."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertForCTC, LightHubertModel, Subnet

from ..examples import examples
from ..precision import assert_as_exact, in_double

FIELD, HOP = 400, 320


@pytest.fixture(scope="module", params=["layer", "group"])
def model(request, make_model):
    """A static model with unequal layers, with either front end."""
    return make_model(LightHubertModel, feat_extract_norm=request.param).extract_subnet(
        Subnet(48, (1, 4, 2), (96, 72, 144))
    )


@pytest.fixture(scope="module")
def exact(model):
    """The model in float64."""
    return in_double(model)


def padded(rows: list[torch.Tensor], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of `rows` and its attention mask; the padding is noise, which must not matter."""
    length = length or max(map(len, rows))
    batch = torch.full((len(rows), length), 7.0).normal_()
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return batch, mask


# Subnets


def test_the_default_subnet_is_active_at_first(tiny_supernet):
    assert tiny_supernet.active_subnet == tiny_supernet.search_space.default()


@torch.no_grad()
def test_output_shapes_follow_the_subnet(tiny_supernet, waveforms, random_subnets):
    for subnet in random_subnets(tiny_supernet.search_space, 5):
        tiny_supernet.set_active_subnet(subnet)
        out = tiny_supernet(waveforms, output_hidden_states=True)
        assert out.last_hidden_state.shape == (4, 14, subnet.hidden_size)
        assert len(out.hidden_states) == subnet.num_hidden_layers + 1


@torch.no_grad()
def test_forward_changes_nothing(tiny_supernet, waveforms):
    before, config = copy.deepcopy(tiny_supernet.state_dict()), tiny_supernet.config.to_dict()
    tiny_supernet.set_active_subnet(tiny_supernet.search_space.smallest())
    first = tiny_supernet(waveforms).last_hidden_state
    assert tiny_supernet.active_subnet == tiny_supernet.search_space.smallest()
    assert tiny_supernet.config.to_dict() == config
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_supernet.state_dict().items())
    tiny_supernet.set_active_subnet(tiny_supernet.search_space.largest())
    tiny_supernet(waveforms)
    tiny_supernet.set_active_subnet(tiny_supernet.search_space.smallest())
    assert torch.equal(tiny_supernet(waveforms).last_hidden_state, first)


def test_subnet_activated_returns_to_the_one_before(tiny_supernet):
    before, other = tiny_supernet.active_subnet, tiny_supernet.search_space.smallest()
    with tiny_supernet.subnet_activated(other):
        assert tiny_supernet.active_subnet == other
    with pytest.raises(RuntimeError), tiny_supernet.subnet_activated(other):
        raise RuntimeError
    assert tiny_supernet.active_subnet == before


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet(128, (1,), (128,)), "hidden_size 128 exceeds the supernet's 64"),
        ({"hidden_size": 32}, "a Subnet has exactly the keys"),
        ("default", "expected a Subnet or a dict of its fields, got 'default'"),
    ],
)
def test_subnets_that_cannot_be_activated(tiny_supernet, subnet, message):
    before = tiny_supernet.active_subnet
    with pytest.raises(ValueError, match=message):
        tiny_supernet.set_active_subnet(subnet)
    assert tiny_supernet.active_subnet == before


def test_dropped_layers_get_no_gradient(tiny_supernet, waveforms):
    tiny_supernet.set_active_subnet(tiny_supernet.search_space.smallest())
    tiny_supernet(waveforms).last_hidden_state.square().sum().backward()
    trained = {
        int(name.split(".")[2])
        for name, parameter in tiny_supernet.named_parameters()
        if name.startswith("encoder.layers.") and parameter.grad is not None
    }
    assert trained == {0, 1}


# Batches


@pytest.mark.numerical
@torch.no_grad()
@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(FIELD, 6000), min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_a_padded_batch_equals_each_utterance_alone(model, exact, lengths, seed):
    torch.manual_seed(seed)
    rows = [torch.randn(length) for length in lengths]
    batch, mask = padded(rows, max(lengths) + 500)
    together = model(batch, mask, output_hidden_states=True)
    found, plain, precise = [], [], []  # of each row, its states
    for i, row in enumerate(rows):
        frames = model._get_feat_extract_output_lengths(len(row))
        found.append([state[i, :frames] for state in together.hidden_states])
        for twin, states in ((model, plain), (exact, precise)):
            states.append([state[0] for state in twin(row[None], output_hidden_states=True).hidden_states])
    assert_as_exact(*([torch.cat(states) for states in zip(*rows)] for rows in (found, plain, precise)))


@pytest.mark.numerical
@torch.no_grad()
def test_a_full_mask_is_no_mask(model, exact, waveforms):
    with_mask = model(waveforms, torch.ones_like(waveforms)).last_hidden_state
    assert_as_exact(with_mask, *(twin(waveforms).last_hidden_state for twin in (model, exact)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_any_kind_of_mask(model, dtype):
    """Half precision cannot count to 100,000, nor even to 3,001."""
    for samples, length in ((3001, 4000), (100_000, 100_500)):
        mask = torch.zeros(1, length)
        mask[:, :samples] = 1
        frames = model._get_feat_extract_output_lengths(length)
        valid = model._get_feature_vector_attention_mask(frames, mask.to(dtype))
        assert valid.sum() == (samples - FIELD) // HOP + 1


# Inputs at the edge


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_less_than_one_frame(model, samples):
    with pytest.raises(ValueError, match=f"input_values are {samples} samples long, one frame needs 400; pad them"):
        model(torch.randn(1, samples))
    assert model._get_feat_extract_output_lengths(samples) == 0
    assert model._get_feat_extract_output_lengths(torch.tensor([samples])).tolist() == [0]


@torch.no_grad()
def test_exactly_one_frame(model):
    assert model(torch.randn(1, 400)).last_hidden_state.shape == (1, 1, 48)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.numerical
@torch.no_grad()
def test_rows_without_a_frame_stay_finite_and_alone(model, exact, waveforms, implementation, dtype):
    model = copy.deepcopy(model).to(dtype)
    model.set_attn_implementation(implementation)
    short = [waveforms[1][:samples] for samples in (0, 1, 399)]
    batch, mask = padded([waveforms[0], *short])
    out = model(batch, mask).last_hidden_state
    assert out.isfinite().all()
    assert_as_exact(out[:1], *(twin(waveforms[:1]).last_hidden_state for twin in (model, exact)))
    nothing = model(batch, torch.zeros_like(mask)).last_hidden_state
    assert nothing.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@torch.no_grad()
def test_bad_samples_stay_in_their_row(model, waveforms, bad):
    broken = waveforms.clone()
    broken[1, 2000] = bad
    out, clean = model(broken).last_hidden_state, model(waveforms).last_hidden_state
    assert out[1].isnan().any()
    assert torch.equal(out[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.numerical
@torch.no_grad()
def test_bad_samples_in_the_padding_do_not_matter(model, exact, waveforms, bad):
    batch, mask = padded([waveforms[0], waveforms[1][:3000]])
    batch[mask == 0] = bad
    alone, precise = (twin(waveforms[1:2, :3000]).last_hidden_state for twin in (model, exact))
    out = model(batch, mask).last_hidden_state
    assert out.isfinite().all()
    assert_as_exact(out[1, : alone.shape[1]], alone[0], precise[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.randn(4000),), r"must be \(batch, samples\), got shape \(4000,\)"),
        ((torch.randn(1, 2, 4000),), r"got shape \(1, 2, 4000\); mix channels down"),
        ((torch.zeros(0, 4000),), "an empty batch"),
        ((torch.ones(1, 4000, dtype=torch.int16),), r"must be floating point, got torch\.int16"),
        ((torch.randn(1, 4000), torch.ones(1, 12)), r"must have the shape of input_values \(1, 4000\), got \(1, 12\)"),
        ((torch.randn(1, 4000), torch.ones(4000)), r"got \(4000,\)"),
    ],
)
def test_wrong_inputs(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(*inputs)


@torch.no_grad()
def test_inputs_follow_the_dtype_of_the_weights(model, waveforms):
    for dtype in (torch.float64, torch.float16):
        out = model(waveforms.to(dtype)).last_hidden_state
        assert out.dtype == torch.float32
        assert torch.equal(out, model(waveforms.to(dtype).float()).last_hidden_state)


# Hidden states


@torch.no_grad()
def test_some_hidden_states(model, waveforms):
    everything = model(waveforms, output_hidden_states=True).hidden_states
    assert model(waveforms).hidden_states is None
    some = model(waveforms, output_hidden_states=[1, -1]).hidden_states
    assert [state is not None for state in some] == [False, True, False, True]
    assert torch.equal(some[1], everything[1])
    assert torch.equal(some[3], everything[-1])


@torch.no_grad()
def test_split_forward(model, waveforms):
    """The front end, the same for every subnet, can run once for several encoders."""
    features = model.extract_features(waveforms)
    assert torch.equal(model.encode(features).last_hidden_state, model(waveforms).last_hidden_state)


# Masking


@torch.no_grad()
def test_masked_frames_are_the_embedding(model, waveforms):
    mask = torch.zeros(4, 14, dtype=torch.bool)
    mask[0, 3:9] = True
    features = model.extract_features(waveforms)
    masked = model.encode(features, None, mask).last_hidden_state
    assert torch.equal(model(waveforms, mask_time_indices=mask).last_hidden_state, masked)
    features[mask] = 7.0
    assert torch.equal(model.encode(features, None, mask).last_hidden_state, masked)
    unmasked = model(waveforms).last_hidden_state
    assert (masked[0] - unmasked[0]).abs().max() > 0.1
    assert torch.equal(masked[1:], unmasked[1:])


@pytest.mark.parametrize("samples", [400, 720, 4800])
def test_spec_augment_takes_clips_shorter_than_its_spans(make_model, samples):
    model = make_model(LightHubertModel, mask_time_prob=0.5, mask_feature_prob=0.5, mask_feature_length=100).train()
    np.random.seed(0)
    batch, mask = padded([torch.randn(samples), torch.randn(samples // 2)])
    assert model(batch, mask).last_hidden_state.isfinite().all()


def test_spec_augment_is_for_training_only(make_model, waveforms):
    model = make_model(LightHubertModel, mask_time_prob=0.9, hidden_dropout=0.0, activation_dropout=0.0)
    clean = model(waveforms).last_hidden_state
    assert torch.equal(clean, model(waveforms).last_hidden_state)
    np.random.seed(0)
    augmented = model.train()(waveforms).last_hidden_state
    assert (augmented - clean).abs().max() > 0.1
    model.config.apply_spec_augment = False
    assert torch.equal(model(waveforms).last_hidden_state, clean)


def test_layer_drop_keeps_the_number_of_states(make_model, waveforms):
    model = make_model(LightHubertModel, layerdrop=0.7).train()
    model.set_attn_implementation("eager")
    torch.manual_seed(1)
    out = model(waveforms, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 5
    assert len(out.attentions) == 4
    dropped = [weights is None for weights in out.attentions]
    assert any(dropped)
    for i, skipped in enumerate(dropped):
        assert torch.equal(out.hidden_states[i], out.hidden_states[i + 1]) == skipped


# Determinism


@pytest.mark.numerical
@torch.no_grad()
def test_batch_order_does_not_matter(model, exact, waveforms):
    order = list(range(4))
    random.Random(0).shuffle(order)
    found = model(waveforms[order]).last_hidden_state
    assert_as_exact(found, *(twin(waveforms).last_hidden_state[order] for twin in (model, exact)))


def test_initialisation_follows_the_seed(make_config):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(LightHubertForCTC(make_config()).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])


def test_adapters_on_a_supernet_are_refused_with_the_remedy(make_model):
    peft = pytest.importorskip("peft")
    for cls, place in ((LightHubertModel, "q_proj"), (LightHubertForCTC, "q_proj"), (LightHubertForCTC, "lm_head")):
        settings = peft.LoraConfig(r=2, target_modules=[place])
        model = make_model(cls)
        adapted = peft.get_peft_model(copy.deepcopy(model), settings)
        with pytest.raises(ValueError, match=r"do not fit a supernet.*; extract a subnet first"):
            adapted(torch.zeros(1, 800))
        with pytest.raises(ValueError, match="extract a subnet first"):
            adapted.base_model.model.set_active_subnet(model.search_space.smallest())
        peft.get_peft_model(model.extract_subnet(), settings)(torch.zeros(1, 800))

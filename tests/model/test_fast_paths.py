"""Fast forms inside the encoder compute what the plain ones do, and notice what they must."""

import copy
import functools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel
from lighthubert_hf.model import fast_encoder, fast_paths
from lighthubert_hf.model.elastic import ElasticLinear, ElasticWeightNormConv1d, WeightNormConv1d, take_block
from lighthubert_hf.model.fast_encoder import FRAMES_PER_GROUP, length_groups
from lighthubert_hf.model.fast_linear import activate
from lighthubert_hf.model.fast_paths import WeightCache, is_recorded

from ..examples import examples
from ..precision import assert_as_exact, assert_gradients_as_exact, gradients, in_double


def assert_same_in_double(found, wanted, tolerance):
    """Sums of some hundred products of size 1, which float64 rounds to 1e-14, and their gradients' longer ones."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def direct(conv: WeightNormConv1d, x: torch.Tensor) -> torch.Tensor:
    """The positional convolution as torch computes it."""
    state = conv.effective_state()
    out = F.conv1d(x.transpose(1, 2), **state, padding=conv.kernel_size // 2, groups=conv.groups)
    return out[:, :, : x.shape[1]].transpose(1, 2)


def assert_as_direct(found: torch.Tensor, conv: WeightNormConv1d, x: torch.Tensor) -> None:
    assert_as_exact(found, direct(conv, x), direct(in_double(conv), x.double()))


def make_conv(channels, kernel, groups, cls=WeightNormConv1d):
    conv = cls(channels, kernel, groups)
    nn.init.normal_(conv.bias)
    nn.init.uniform_(conv.parametrizations["weight"].original0, 0.5, 2)
    return conv


@pytest.fixture
def transforms(monkeypatch):
    """How often a convolution took the Fourier form."""
    runs = []
    run = WeightNormConv1d._convolve_spectrum
    monkeypatch.setattr(WeightNormConv1d, "_convolve_spectrum", lambda *args: runs.append(1) or run(*args))
    return runs


@settings(deadline=None, max_examples=examples(40))
@given(st.integers(1, 33), st.integers(1, 250), st.integers(1, 3), st.sampled_from([(8, 2), (6, 6), (5, 1)]))
def test_positional_convolution_equals_the_direct_one(kernel, frames, rows, shape):
    conv, x = make_conv(shape[0], kernel, shape[1]).double(), torch.randn(rows, frames, shape[0]).double()
    weight = torch.randn_like(x)
    wanted = direct(conv, x)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), list(conv.parameters()))
    found = conv(x)
    found_gradients = torch.autograd.grad((found * weight).sum(), list(conv.parameters()))
    with torch.no_grad():
        assert_same_in_double(conv(x), wanted, 1e-12)
    assert_same_in_double(found, wanted, 1e-12)
    for one, other in zip(found_gradients, wanted_gradients):
        assert_same_in_double(one, other, 1e-9)


@pytest.mark.numerical
@torch.no_grad()
def test_positional_convolution_at_full_size_is_as_exact_as_the_direct_one(transforms):
    conv = make_conv(384, 128, 16)
    x = torch.randn(2, 300, 384)
    assert_as_direct(conv(x), conv, x)
    assert transforms


@pytest.mark.numerical
@torch.no_grad()
def test_positional_convolution_follows_its_weights_and_its_slice(transforms):
    conv = make_conv(16, 8, 4, ElasticWeightNormConv1d)
    for size in (16, 8, 16):
        conv.active_size = size
        x = torch.randn(1, 40, size)
        assert_as_direct(conv(x), conv, x)
        conv.parametrizations["weight"].original1.normal_()
        conv.bias.normal_()
        assert_as_direct(conv(x), conv, x)
    assert len(transforms) == 6


@torch.no_grad()
def test_positional_convolution_takes_the_direct_form_where_it_must(transforms):
    conv = make_conv(8, 16, 2)
    x = torch.randn(1, 50, 8)
    conv(x)
    assert transforms
    transforms.clear()
    exported = torch.export.export(conv, (x,)).module()
    assert_as_direct(exported(x), conv, x)
    conv.float()(x[:, :5])
    assert not transforms


RANGES = {
    "everything": (((0, 10),), ((0, 12),)),
    "corner": (((0, 4),), ((0, 6),)),
    "rows in blocks": (((0, 2), (5, 7), (9, 10)), ((0, 6),)),
    "columns in blocks": (((1, 4),), ((0, 2), (4, 6), (8, 9))),
    "both": (((0, 2), (5, 7)), ((0, 2), (4, 6))),
}


@pytest.mark.parametrize("ranges", RANGES)
def test_the_gradient_of_a_slice_is_autograds(ranges):
    rows, columns = RANGES[ranges]
    layer = ElasticLinear(12, 10).double()
    layer.set_active(in_ranges=columns, out_ranges=rows)
    x = torch.randn(3, sum(stop - start for start, stop in columns)).double().requires_grad_()
    out = layer(x)
    weight = torch.randn_like(out)
    wanted = F.linear(x, **layer.active_state())
    inputs = [x, layer.weight, layer.bias]
    for one, other in zip(
        torch.autograd.grad((out * weight).sum(), inputs), torch.autograd.grad((wanted * weight).sum(), inputs)
    ):
        assert_same_in_double(one, other, 1e-12)
    assert out.grad_fn is not None
    assert torch.equal(take_block(layer.weight, rows, columns), layer.active_state()["weight"])


@pytest.mark.numerical
def test_activation_writes_over_the_linear_layers_output_only_if_nobody_holds_it():
    """With the same bits, as the kernels and shapes are the same."""
    from transformers.activations import ACT2FN

    linear, gelu, x = nn.Linear(6, 8), ACT2FN["gelu"], torch.randn(3, 6)
    wanted = F.gelu(linear(x)).detach()
    assert activate(gelu, linear, x).requires_grad
    with torch.no_grad():
        assert torch.equal(activate(gelu, linear, x), wanted)
        assert torch.equal(activate(ACT2FN["relu"], linear, x), linear(x).relu())
        held = []
        handle = linear.register_forward_hook(lambda _module, _inputs, output: held.append(output))
        assert torch.equal(activate(gelu, linear, x), wanted)
        handle.remove()
        assert torch.equal(held[0], linear(x))
        assert torch.equal(activate(gelu, nn.Identity(), x), F.gelu(x))
        assert not torch.equal(x, F.gelu(x))


def test_torchs_own_modes_record():
    assert not is_recorded()
    with FlopCounterMode(display=False):
        assert is_recorded()


def test_a_cache_keeps_what_it_has_and_computes_anew_what_changed():
    cache, tensor, calls = WeightCache(), torch.zeros(1000), []

    def value(part=None):
        return cache.get([tensor], lambda: calls.append(1) or tensor.sum().item(), part)

    assert [value(), value()] == [0, 0]
    assert len(calls) == 1
    tensor[17] = 1
    assert [value(), value()] == [1, 1]
    assert len(calls) == 2
    tensor.data.add_(1)  # not counted by torch
    assert value() == 1001
    assert value("another part") == 1001
    assert len(calls) == 4
    for other in (copy.deepcopy(cache), copy.copy(cache)):
        assert other._entry is None
    cache.clear()
    value()
    assert len(calls) == 5


@settings(deadline=None, max_examples=examples(60))
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_a_cache_sees_the_change_of_any_one_bit(dtype, shape, offset, transposed, data):
    whole = torch.randn(torch.Size(shape).numel() + 1).to(dtype)
    tensor = whole[1:] if offset else whole[:-1]
    tensor = tensor.view(shape).T if transposed and len(shape) == 2 else tensor.view(shape)
    cache, calls = WeightCache(), []
    get = functools.partial(cache.get, [tensor], lambda: calls.append(1))
    get(), get()
    assert len(calls) == 1
    index = tuple(data.draw(st.integers(0, size - 1)) for size in tensor.shape)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    tensor.data.view(kind)[index] ^= 1
    get()
    assert len(calls) == 2
    tensor.data[index] = float("nan")  # which is not equal to itself, but the same bits
    get(), get()
    assert len(calls) == 3


def test_a_cached_value_can_be_used_by_autograd_whatever_the_mode_it_came_from():
    cache, tensor = WeightCache(), torch.ones(3)
    with torch.inference_mode():
        value = cache.get([tensor], lambda: 2 * tensor)
    (value * torch.ones(3, requires_grad=True)).sum().backward()


def cost(groups, lengths):
    return sum(FRAMES_PER_GROUP + len(group) * max(lengths[row] for row in group) for group in groups)


def partitions(rows):
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for partition in partitions(rest):
        yield [[first], *partition]
        for index, group in enumerate(partition):
            yield [*partition[:index], [first, *group], *partition[index + 1 :]]


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 900)), min_size=1, max_size=7))
def test_no_grouping_costs_less(lengths):
    groups = length_groups(lengths)
    rows = [row for row, length in enumerate(lengths) if length]
    assert sorted(row for group in groups for row in group) == rows
    assert cost(groups, lengths) == min(cost(groups, lengths) for groups in partitions(rows))


@pytest.fixture
def uneven():
    """Four rows, of which no two are about the same length, and their mask over samples."""
    lengths = torch.tensor([96_000, 300, 32_000, 64_000])
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 96_000, generator=generator), (torch.arange(96_000) < lengths[:, None]).long()


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that the encoder sees."""
    from lighthubert_hf.model.modeling_lighthubert import LightHubertEncoder

    sizes, run = [], LightHubertEncoder.forward

    def forward(self, hidden_states, *args, **kwargs):
        sizes.append(tuple(hidden_states.shape[:2]))
        return run(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(LightHubertEncoder, "forward", forward)
    # This one may be run past: or the fast paths would step aside for it.
    monkeypatch.setitem(fast_paths._own_forwards, LightHubertEncoder, forward)
    return sizes


@pytest.mark.numerical
@torch.no_grad()
@pytest.mark.parametrize("window", [None, 8])
def test_rows_regrouped_by_length_come_out_as_in_one_batch(make_model, uneven, batches, window, monkeypatch):
    monkeypatch.setattr(fast_encoder, "FRAMES_PER_GROUP", 1)  # so that every length is a group of its own
    model = make_model(LightHubertModel, search_space=None, attention_window=window)
    fast = model(*uneven, output_hidden_states=True)
    assert sorted(batches) == [(1, 99), (1, 199), (1, 299)]
    with_hook = model.encoder.layers[0].register_forward_hook(lambda *_: None)
    whole = model(*uneven, output_hidden_states=True)
    exact = in_double(model)(*uneven, output_hidden_states=True)
    with_hook.remove()
    assert batches[3:] == [(4, 299)] * 2
    valid = model._get_feature_vector_attention_mask(299, uneven[1])
    assert_as_exact(*([state[valid] for state in out.hidden_states] for out in (fast, whole, exact)))
    for state in fast.hidden_states:
        assert state.shape[:2] == valid.shape
        assert not state[~valid].any()
    assert torch.equal(fast.last_hidden_state, fast.hidden_states[-1])


def test_rows_stay_together_where_it_matters(make_model, uneven, batches):
    model = make_model(LightHubertModel, search_space=None, attn_implementation="eager")
    with torch.no_grad():
        attentions = model(*uneven, output_attentions=True).attentions
    assert attentions[0].shape[0] == 4
    model(*uneven)
    with torch.no_grad():
        model.train()(*uneven)
        model.eval()(uneven[0], torch.zeros_like(uneven[1]))
    assert set(batches) == {(4, 299)}


@pytest.mark.numerical
def test_a_training_step_gives_every_form_the_same_gradients(make_model, waveforms):
    """The whole model, elastic, against itself with every fast form off."""
    model = make_model(LightHubertForPreTraining, layerdrop=0.0)
    space = model.search_space
    for seed in range(3):
        model.set_active_subnet(space.sample(random.Random(seed)))
        found = []
        for twin, plain in ((model, False), (model, True), (in_double(model), True)):
            twin.zero_grad()
            with torch.autocast("cpu", enabled=False), pytest.MonkeyPatch.context() as patch:
                if plain:
                    for name in ("elastic", "fast_paths"):
                        patch.setattr(f"lighthubert_hf.model.{name}.is_recorded", lambda: True)
                twin(waveforms).predictions.square().mean().backward()
            found.append(gradients(twin))
        assert_gradients_as_exact(*found)

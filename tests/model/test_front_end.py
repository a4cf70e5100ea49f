"""The front end's fast forms against transformers' own, and when they must not be taken."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import HubertConfig, HubertModel

from lighthubert_hf import LightHubertModel
from lighthubert_hf.model import channels_last, channels_last_autograd
from lighthubert_hf.model.front_end import FrontEnd, conv_output_lengths, receptive_field

from ..examples import examples
from ..precision import assert_as_exact, assert_gradients_as_exact, gradients, in_double

pytestmark = pytest.mark.numerical

NORMS = ("layer", "group")
SMALL = {"conv_dim": (12,) * 7, "hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}


def make_pair(seed: int = 0, **overrides):
    """Our front end and transformers' with the same random weights, affine parts of norms included."""
    torch.manual_seed(seed)
    config = HubertConfig(**SMALL | overrides)
    theirs = HubertModel(config).eval().feature_extractor
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
            else:
                parameter.mul_(2)
    ours = FrontEnd(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(params=NORMS)
def pair(request):
    return make_pair(feat_extract_norm=request.param)


@pytest.fixture
def small_tiles(monkeypatch):
    """Chunks and tiles so short that little audio has many."""
    monkeypatch.setattr(channels_last, "CHUNK_FRAMES", 5)
    monkeypatch.setattr(channels_last, "TILE_ROWS", 16)
    monkeypatch.setattr(channels_last, "TILE_CHANNELS", 1)
    monkeypatch.setattr(channels_last_autograd, "TILE_ROWS", 16)


@pytest.fixture
def packed_runs(monkeypatch):
    """How often the fast form for evaluation ran."""
    runs = []
    run = FrontEnd._run_packed
    monkeypatch.setattr(FrontEnd, "_run_packed", lambda *args: runs.append(1) or run(*args))
    return runs


def expected(theirs, audio):
    with torch.no_grad():
        return theirs(audio).transpose(1, 2)


def assert_as_transformers(found, theirs, audio, **options):
    assert_as_exact(found, expected(theirs, audio), expected(in_double(theirs), audio.double()), **options)


def assert_same_in_double(found, wanted, tolerance):
    """Within `tolerance` of the largest value, or of 1. Rounding to 1e-16 leaves room for what a stack makes of it."""
    size = wanted[wanted.isfinite()].abs().max().clamp(min=1).item() if wanted.numel() else 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * size)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("samples", [400, 401, 719, 720, 721, 5000, 16_000])
def test_equals_transformers(pair, bias, samples, small_tiles, packed_runs):
    ours, theirs = make_pair(1, feat_extract_norm=pair[0].config.feat_extract_norm, conv_bias=bias)
    audio = torch.randn(2, samples)
    before = audio.clone()
    assert_as_transformers(ours(audio), theirs, audio)
    assert packed_runs
    assert torch.equal(audio, before)


@torch.no_grad()
def test_equals_transformers_at_full_width_in_real_chunks(packed_runs):
    ours, theirs = make_pair(conv_dim=(512,) * 7, feat_extract_norm="layer")
    audio = torch.randn(1, 60_000)
    assert conv_output_lengths(60_000, ours.config) > channels_last.CHUNK_FRAMES
    assert_as_transformers(ours(audio), theirs, audio)


@st.composite
def stacks(draw):
    """Convolutions of any kernel, stride and width, and a length of audio that gives some frames."""
    depth = draw(st.integers(1, 4))
    layers = st.tuples(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3, 8]))
    kernels, strides, widths = zip(*draw(st.lists(layers, min_size=depth, max_size=depth)))
    kernels = tuple(max(kernel, stride) for kernel, stride in zip(kernels, strides))
    overrides = {"conv_kernel": kernels, "conv_stride": strides, "conv_dim": widths}
    overrides |= {"feat_extract_norm": draw(st.sampled_from(NORMS)), "conv_bias": draw(st.booleans())}
    overrides |= {"feat_extract_activation": draw(st.sampled_from(["gelu", "relu"]))}
    return overrides, draw(st.integers(0, 150)), draw(st.integers(1, 3))


@settings(deadline=None, max_examples=examples(60))
@given(stacks())
def test_any_stack_equals_the_modules(stack):
    overrides, extra, rows = stack
    ours = make_pair(**overrides)[0].double()
    samples = receptive_field(ours.config) + extra
    assume(rows * conv_output_lengths(samples, ours.config, 1) > 1)  # torch's group norm refuses a single frame
    audio = torch.randn(rows, samples, dtype=torch.float64)
    weight = torch.randn(rows, conv_output_lengths(samples, ours.config), ours.config.conv_dim[-1])
    with torch.no_grad():
        fast = ours(audio)
    trained = ours(audio)
    (trained * weight).sum().backward()
    by_hand = gradients(ours)
    ours.zero_grad()
    with watched(ours):
        plain = ours(audio)
        (plain * weight).sum().backward()
    assert_same_in_double(fast, plain.detach(), 1e-9)
    assert_same_in_double(trained, plain, 1e-9)
    for name, parameter in ours.named_parameters():
        assert_same_in_double(by_hand[name], parameter.grad, 1e-7)


class watched:
    """A hook, which keeps the front end to its modules."""

    def __init__(self, encoder):
        self.layer, self.calls = encoder.conv_layers[-1].conv, 0

    def __enter__(self):
        self.handle = self.layer.register_forward_hook(self.count)
        return self

    def count(self, *_):
        self.calls += 1

    def __exit__(self, *_):
        self.handle.remove()
        assert self.calls


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_modules(pair, dtype, packed_runs):
    ours, theirs = pair
    audio = torch.randn(1, 4000)
    exact = expected(in_double(theirs), audio.double())
    half = ours.to(dtype)
    with watched(half):
        by_modules = half(audio.to(dtype))
    found = half(audio.to(dtype))
    assert packed_runs
    assert_as_exact(found, by_modules, exact, floor=0)


def padded_batch(lengths):
    rows = [torch.randn(length) for length in lengths]
    batch = 7 * torch.randn(len(lengths), max(*lengths, 1000))  # noise where the padding is
    for row, values in zip(batch, rows):
        row[: len(values)] = values
    return rows, batch, torch.tensor(lengths)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("lengths", [(3000, 400, 399, 1111), (0, 2000), (5000,), (399, 0)])
def test_padded_rows_are_those_rows_alone(pair, lengths, gradients, small_tiles):
    ours, theirs = pair
    rows, batch, sizes = padded_batch(lengths)
    with torch.set_grad_enabled(gradients):
        found = ours(batch, sizes).detach()
    assert found.shape[1] == conv_output_lengths(batch.shape[1], ours.config)
    results = []
    for features, row in zip(found, rows):
        frames = conv_output_lengths(len(row), ours.config)
        assert not features[frames:].any()
        if frames:
            alone = expected(theirs, row[None])[0], expected(in_double(theirs), row[None].double())[0]
            results.append((features[:frames], *alone))
    if results:
        assert_as_exact(*map(torch.cat, zip(*results)))


@torch.no_grad()
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_samples_stay_where_they_are(pair, bad):
    ours, _ = pair
    _, batch, sizes = padded_batch((3000, 2000, 2500))
    clean = ours(batch, sizes)
    batch[0, 1500] = bad
    batch[1, 2000:] = bad
    found = ours(batch, sizes)
    assert not found[0].isfinite().all()
    assert torch.equal(found[1:], clean[1:])
    if ours.config.feat_extract_norm == "layer":  # only in frames that see the sample: the field is 400, the hop 320
        assert torch.equal(
            found[0].isfinite().all(-1), clean[0].isfinite().all(-1).index_fill(0, torch.tensor([4]), 0)
        )


@torch.no_grad()
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0])
def test_group_norm_of_faint_and_shifted_signals(scale, offset):
    ours, theirs = make_pair(feat_extract_norm="group")
    audio = scale * torch.randn(1, 4000) + offset
    # The modules take the mean off after the convolution, which costs them any number of digits.
    assert_as_transformers(ours(audio), theirs, audio, plain_limit=math.inf)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_equal_transformers(norm, bias, small_tiles):
    ours, theirs = make_pair(feat_extract_norm=norm, conv_bias=bias)
    audio = torch.randn(3, 3000)
    weight = torch.randn(3, conv_output_lengths(3000, ours.config), 12)
    out = ours(audio)
    assert "ConvNormGelu" in tape(out)
    assert_as_transformers(out, theirs, audio)
    exact = in_double(theirs)
    (out * weight).sum().backward()
    (theirs(audio).transpose(1, 2) * weight).sum().backward()
    (exact(audio.double()).transpose(1, 2) * weight).sum().backward()
    assert_gradients_as_exact(*map(gradients, (ours, theirs, exact)))


def tape(tensor) -> str:
    """Names of all operations that autograd recorded."""
    names, stack, seen = [], [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.append(node.name())
            stack += [parent for parent, _ in node.next_functions]
    return " ".join(names)


def test_frozen_layers_get_no_gradient_and_the_others_the_same():
    ours, _ = make_pair(feat_extract_norm="layer")
    audio = torch.randn(1, 3000)
    ours(audio).square().sum().backward()
    full = {name: parameter.grad for name, parameter in ours.named_parameters()}
    ours.zero_grad()
    for layer in ours.conv_layers[:3]:
        layer.requires_grad_(False)
    ours.conv_layers[4].conv.requires_grad_(False)
    ours(audio).square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad)
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, full[name])


def test_a_frozen_front_end_takes_the_fast_form_in_training(pair, packed_runs):
    ours, theirs = pair
    ours.train().freeze()
    audio = torch.randn(1, 3000)
    out = ours(audio)
    assert packed_runs
    assert not out.requires_grad
    nn.Linear(12, 2)(out).sum().backward()  # autograd may keep it
    assert_as_transformers(out, theirs, audio)


def test_gradient_checkpointing_gives_the_same_gradients(pair):
    ours, theirs = pair
    audio = torch.randn(1, 3000)
    exact = in_double(theirs)
    exact(audio.double()).square().sum().backward()
    ours.train()(audio).square().sum().backward()
    plain = gradients(ours)
    ours.zero_grad()
    for layer in ours.conv_layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    out = ours(audio)
    assert "ConvNormGelu" not in tape(out)
    out.square().sum().backward()
    assert_gradients_as_exact(gradients(ours), plain, gradients(exact))


def test_gradients_of_the_audio_come_from_the_modules(pair):
    ours, theirs = pair
    audio = torch.randn(1, 1000, requires_grad=True)
    found, plain = (torch.autograd.grad(encoder(audio).square().sum(), audio) for encoder in pair)
    exact = torch.autograd.grad(in_double(theirs)(audio.double()).square().sum(), audio)
    assert_as_exact(found, plain, [gradient.double() for gradient in exact])


def export(ours, audio):
    return torch.export.export(ours, (audio,)).module()(audio)


def trace(ours, audio):
    return torch.jit.trace(ours, (audio,), check_trace=False)(audio)


def compiled(ours, audio):
    return torch.compile(ours, backend="eager", fullgraph=True)(audio)


def mapped(ours, audio):
    return torch.func.vmap(lambda row: ours(row[None])[0])(audio)


def autocast(ours, audio):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return ours(audio).float()


def parametrized(ours, audio):
    nn.utils.parametrizations.weight_norm(ours.conv_layers[1].conv)
    return ours(audio)


def adapted(ours, audio):
    class Adapter(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.base, self.weight = conv, conv.weight

        def forward(self, x):
            return self.base(x)

    ours.conv_layers[2].conv = Adapter(ours.conv_layers[2].conv)
    return ours(audio)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("use", [export, trace, compiled, mapped, autocast, parametrized, adapted])
def test_modules_run_where_the_fast_form_must_not(use, packed_runs):
    ours, theirs = make_pair(feat_extract_norm="layer")
    audio = torch.randn(2, 2000)
    exact = expected(in_double(theirs), audio.double())
    plain = autocast(theirs, audio).transpose(1, 2) if use is autocast else expected(theirs, audio)
    # What autocast rounds to 8 bits comes out as float32.
    options = {"plain_limit": math.inf} if use is autocast else {}
    assert_as_exact(use(ours, audio), plain, exact, **options)
    assert not packed_runs


def test_hooks_are_called(pair, packed_runs):
    ours, theirs = pair
    audio = torch.randn(1, 2000)
    with torch.no_grad(), watched(ours):
        assert_as_transformers(ours(audio), theirs, audio)
    assert not packed_runs


def test_too_short_audio_is_refused_and_no_audio_is_none(pair):
    ours, _ = pair
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            ours(torch.randn(1, 399))
        assert ours(torch.randn(0, 1000)).shape == (0, 2, 12)


def by_optimizer(ours):
    ours(torch.randn(1, 2000)).square().sum().backward()
    torch.optim.AdamW(ours.parameters(), lr=0.1, fused=True).step()


def by_average(ours):
    for parameter in ours.parameters():
        parameter.data.mul_(0.5).add_(0.1)


def by_assignment(ours):
    for parameter in ours.parameters():
        parameter.data = parameter.data + 0.1


def by_loading(ours):
    ours.load_state_dict({name: tensor + 0.1 for name, tensor in ours.state_dict().items()})


def by_new_parameters(ours):
    for layer in ours.conv_layers:
        layer.conv.weight = nn.Parameter(torch.randn_like(layer.conv.weight))


def by_new_norms(ours):
    for layer in ours.conv_layers:
        if layer.norm:
            nn.init.normal_(layer.layer_norm.weight)
            layer.layer_norm = copy.deepcopy(layer.layer_norm)


def by_inference(ours):
    with torch.inference_mode():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    "change",
    [by_optimizer, by_average, by_assignment, by_loading, by_new_parameters, by_new_norms, by_inference],
)
def test_changed_weights_are_noticed(pair, change, packed_runs):
    ours, theirs = pair
    audio = torch.randn(1, 2000)
    for _ in range(2):
        with torch.no_grad():
            before = ours(audio)
        change(ours)
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            after = ours(audio)
        assert packed_runs
        assert (after - before).abs().max() > 1e-3
        assert_as_transformers(after, theirs, audio)


def test_a_single_changed_element_is_noticed(pair):
    ours, theirs = pair
    audio = torch.randn(1, 2000)
    with torch.no_grad():
        ours(audio)
        for encoder in (ours, theirs):
            encoder.conv_layers[3].conv.weight[1, 2, 0] += 1
        assert_as_transformers(ours(audio), theirs, audio)


@torch.no_grad()
def test_moving_copying_and_pickling(pair):
    ours, theirs = pair
    audio = torch.randn(1, 2000)
    ours(audio)
    keys = list(theirs.state_dict())
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other._packed._entry is None
        assert list(other.state_dict()) == keys
        other.conv_layers[1].conv.weight.normal_()
        assert (other(audio) - ours(audio)).abs().max() > 1e-3
    assert_as_transformers(ours.double()(audio.double()).float(), theirs, audio)
    assert_as_transformers(ours.float()(audio), theirs, audio)


def test_weights_packed_in_inference_mode_serve_outside_and_the_other_way_round(pair):
    ours, theirs = pair
    audio = torch.randn(1, 2000)
    with torch.inference_mode():
        ours(audio)
    with torch.no_grad():
        out = ours(audio)
    assert not out.is_inference()
    with torch.inference_mode():
        assert_as_transformers(ours(audio), theirs, audio)
    ours(audio).sum().backward()


@torch.no_grad()
def test_threads_may_share_a_front_end(pair):
    ours, theirs = pair
    clips = [torch.randn(1, 1000 + 100 * index) for index in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(torch.no_grad()(ours), clips))
    for features, clip in zip(found, clips):
        assert_as_transformers(features, theirs, clip)


@pytest.mark.parametrize("sigmas", [0, 30, 1000, 10_000])
@pytest.mark.parametrize("form", ["evaluation", "training", "modules", "modules, padded"])
def test_a_constant_beneath_the_signal_costs_a_group_norm_no_precision(make_model, form, sigmas):
    ours = make_model(LightHubertModel, feat_extract_norm="group", search_space=None).feature_extractor
    signal = torch.randn(1, 4096)
    signal = (signal * 2**9).round() / 2**9  # so that the sum with the constant is exact
    lengths = torch.tensor([4000]) if "padded" in form else None
    with torch.no_grad():
        exact = copy.deepcopy(ours).double()(signal.double(), lengths)
    with torch.set_grad_enabled(form == "training"), pytest.MonkeyPatch.context() as patch:
        if "modules" in form:
            patch.setattr("lighthubert_hf.model.fast_paths.is_recorded", lambda: True)
        if "padded" in form:
            signal[:, 4000:] = float("nan")
        found = ours(signal + sigmas, lengths)
    assert (found - exact).abs().max() < 2e-5 + 1e-8 * sigmas


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_samples_that_overflow_float16_are_named(make_model, norm):
    model = make_model(LightHubertModel, feat_extract_norm=norm, search_space=None).half()
    audio = torch.randn(3, 4000)
    assert model(audio).last_hidden_state.isfinite().all()
    loud = audio.clone()
    loud[1] *= 32_767 / loud[1].abs().max()
    plain = model.feature_extractor.conv_layers[0].register_forward_hook(lambda *_: None)
    for samples in (loud, 1e6 * audio):
        try:
            assert model(samples).last_hidden_state.isfinite().all()
        except ValueError as error:
            if "overflow float16" not in str(error):
                raise
    plain.remove()
    with pytest.raises(ValueError, match=r"samples of up to .* overflow float16"):
        model(1e6 * audio)
    audio[2, 7] = float("nan")  # the caller's own
    out = model(audio).last_hidden_state
    assert out[:2].isfinite().all() and not out[2].isfinite().all()

import pytest
import torch

from lighthubert_hf import LightHubertForCTC, LightHubertModel, Subnet
from lighthubert_hf.long_audio import exact_context, extract_long_features, iterate_long_features

from .precision import assert_as_exact, in_double

pytestmark = pytest.mark.numerical
SUBNET = Subnet(48, (1, 4, 2), (96, 72, 144))


@pytest.fixture(scope="module")
def recording() -> torch.Tensor:
    """6 seconds and a bit: 309 frames."""
    return torch.randn(99_123, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[{}, {"do_stable_layer_norm": True}], ids=["", "norm first"])
def sliding(request, make_model):
    """Layers with different windows; a frame depends on 8 + 3 + 2 + 5 frames to either side."""
    windows = {0: {"attention_window": 6}, 1: {"attention_window": 4}, 2: {"attention_window": 11}}
    return make_model(
        LightHubertModel, search_space=None, num_hidden_layers=3, per_layer_config=windows, **request.param
    )


def whole(model, recording, layer=-1):
    with torch.no_grad():
        out = model.base_model(recording[None], output_hidden_states=True)
    return out.last_hidden_state[0] if layer == -1 else out.hidden_states[layer][0]


def assert_as_whole(features, model, recording, layer=-1):
    """As exact as one forward over the whole recording."""
    assert_as_exact(features, *(whole(twin, recording, layer) for twin in (model, in_double(model))))


@pytest.mark.parametrize("chunk_seconds", [0.02, 0.5, 1.23, 100.0])
def test_exact_with_sliding_windows(sliding, recording, chunk_seconds):
    assert exact_context(sliding) == 18
    stop = 99_123 if chunk_seconds > 0.1 else 8_000
    features = extract_long_features(sliding, recording[:stop], chunk_seconds)
    assert_as_whole(features, sliding, recording[:stop])


def test_the_context_is_no_wider_than_needed(sliding, recording):
    """One frame less, and the chunks' edges show."""
    frame = 320 / 16_000
    exact, less = (extract_long_features(sliding, recording, 0.5, context * frame + 1e-4) for context in (18, 17))
    assert_as_whole(exact, sliding, recording)
    assert (less - exact).abs().max() > 1e-4


@pytest.mark.parametrize("layer", [0, 1, 3, -1])
def test_any_layer(sliding, recording, layer):
    features = extract_long_features(sliding, recording, 1.0, layer=layer)
    assert_as_whole(features, sliding, recording, layer)


def test_only_the_layers_that_run_count(make_model):
    windows = {i: {"attention_window": window} for i, window in enumerate((4, 6, 8))}
    supernet = make_model(LightHubertModel, per_layer_config=windows)
    supernet.set_active_subnet(SUBNET)  # runs the layers 0, 1 and 2, not the global one
    assert exact_context(supernet) == 8 + 2 + 3 + 4
    supernet.set_active_subnet(supernet.search_space.largest())
    assert exact_context(supernet) is None


def test_global_attention_is_approximated(make_model, recording):
    """More overlap is closer; with all of the recording as context it is exact."""
    model = make_model(LightHubertModel).extract_subnet(SUBNET)
    assert exact_context(model) is None
    *partly, completely = (extract_long_features(model, recording, 1.0, overlap) for overlap in (0.0, 2.0, 10.0))
    assert_as_whole(completely, model, recording)
    errors = [(features - completely).square().mean().item() for features in partly]
    assert errors[0] > errors[1] > 1e-8
    default = extract_long_features(model, recording, 1.0)
    assert torch.equal(default, extract_long_features(model, recording, 1.0, 5.0))


def test_a_group_norm_is_approximated_even_with_windows(make_model):
    """It normalises over the whole recording."""
    model = make_model(LightHubertModel, search_space=None, feat_extract_norm="group", attention_window=6)
    assert exact_context(model) is None


def test_chunks_come_one_by_one(sliding, recording):
    chunks = list(iterate_long_features(sliding, recording[None], chunk_seconds=1.0))
    assert [len(chunk) for chunk in chunks] == [50] * 6 + [9]
    assert_as_whole(torch.cat(chunks), sliding, recording)
    assert not any(chunk.requires_grad for chunk in chunks)


def test_models_with_a_head(make_model, recording):
    model = make_model(LightHubertForCTC, attention_window=4).extract_subnet(SUBNET)
    features = extract_long_features(model, recording, 1.0)
    assert_as_whole(features, model, recording)


def test_one_frame(sliding):
    assert extract_long_features(sliding, torch.randn(400)).shape == (1, 64)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ((2, 16_000), {}, r"must be one waveform, .* got \(2, 16000\)"),
        ((1, 1, 16_000), {}, "must be one waveform"),
        ((399,), {}, "the recording has 399 samples, one frame needs 400"),
        ((16_000,), {"chunk_seconds": 0.01}, r"chunk_seconds must be at least one frame \(0\.02 s\), got 0\.01"),
        ((16_000,), {"overlap_seconds": -1.0}, "overlap_seconds must not be negative"),
    ],
)
def test_what_cannot_be_done(sliding, samples, options, message):
    with pytest.raises(ValueError, match=message):
        extract_long_features(sliding, torch.randn(samples), **options)


def test_training_mode_is_refused(make_model):
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        extract_long_features(make_model(LightHubertModel).train(), torch.randn(16_000))

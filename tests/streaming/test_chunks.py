import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertModel, Subnet
from lighthubert_hf.long_audio import extract_long_features
from lighthubert_hf.streaming import StreamingEncoder
from lighthubert_hf.streaming.chunks import ChunkContext, encode_in_chunks

from ..examples import examples
from ..precision import in_double

FRAME = 320 / 16_000


@pytest.fixture(scope="module")
def model(make_model):
    return in_double(make_model(LightHubertModel).extract_subnet(Subnet(48, (1, 4), (96, 72))))


@pytest.fixture(scope="module")
def audio():
    return torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(max_examples=examples(12), deadline=None)
@given(
    context=st.tuples(st.integers(1, 60), st.integers(0, 30), st.integers(0, 30)),
    lengths=st.lists(st.integers(0, 16_000), min_size=1, max_size=3),
    padded=st.booleans(),
)
def test_every_row_is_as_its_stream(model, audio, context, lengths, padded):
    mask = None
    if padded:
        mask = (torch.arange(16_000) < torch.tensor(lengths)[:, None]).long()
    batch = audio[: len(lengths)]
    with torch.no_grad():
        features = model.extract_features(batch, mask)
        found = encode_in_chunks(model, features, ChunkContext(*context), mask).last_hidden_state
    chunk, left, right = (frames * FRAME for frames in context)
    for row, length in enumerate(lengths):
        length = length if padded else 16_000
        if length >= 400:
            wanted = extract_long_features(model, batch[row, :length], chunk, (left, right))
            torch.testing.assert_close(found[row, : len(wanted)], wanted, rtol=0, atol=1e-10)
            if max(lengths) >= 400:
                assert not found[row, len(wanted) :].any()


def test_hidden_states_and_the_streaming_encoder(model, audio):
    with torch.no_grad():
        features = model.extract_features(audio[:1])
        states = encode_in_chunks(model, features, ChunkContext(5, 20, 3), output_hidden_states=[0, 2]).hidden_states
    assert states[1] is None
    for layer in (0, 2):
        encoder = StreamingEncoder(model, 0.1, 0.4, 0.06, layer=layer)
        streamed = torch.cat([encoder.feed(audio[0]), encoder.finish()])
        torch.testing.assert_close(states[layer][0], streamed, rtol=0, atol=1e-10)


def test_gradients_stay_within_the_context(model, audio):
    features = model.extract_features(audio[:1]).detach().requires_grad_()
    out = encode_in_chunks(model, features, ChunkContext(10, 7, 2)).last_hidden_state
    out[0, 25].sum().backward()
    seen = features.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert (seen[0], seen[-1]) == (13, 31)  # the chunk of frames 20 to 29, 7 before it and 2 behind it


def test_masks_of_time_go_along(model, audio):
    with torch.no_grad():
        features = model.extract_features(audio[:2])
        masked = torch.rand(features.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.3
        whole = model.encode(features, None, masked).last_hidden_state
        found = encode_in_chunks(model, features, ChunkContext(100, 0, 0), None, masked).last_hidden_state
        cut = encode_in_chunks(model, features, ChunkContext(7, 60, 60), None, masked).last_hidden_state
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-10)


def test_a_context_that_is_none():
    with pytest.raises(ValueError, match=r"at least 1 frame and a context no less than 0, got .*chunk=0"):
        ChunkContext(0, 1, 1)

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertForAudioFrameClassification, LightHubertForCTC, LightHubertModel, Subnet
from lighthubert_hf.long_audio import extract_long_features
from lighthubert_hf.preprocessing import build_feature_extractor
from lighthubert_hf.streaming import StreamingEncoder

from ..examples import examples
from ..precision import assert_as_exact, in_double

FRAME = 320 / 16_000
SUBNET = Subnet(48, (1, 4), (96, 72))


@pytest.fixture(scope="module")
def recording() -> torch.Tensor:
    """1.5 seconds: 74 frames."""
    return torch.randn(24_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_windows(make_model, **changes):
    """Windows of 4 and 7 frames: a frame depends on 8 + 2 + 3 frames before it, 7 + 2 + 3 behind it. In float64."""
    windows = {0: {"attention_window": 4}, 1: {"attention_window": 7}}
    return in_double(
        make_model(LightHubertModel, search_space=None, num_hidden_layers=2, per_layer_config=windows, **changes)
    )


@pytest.fixture(scope="module")
def sliding(make_model):
    return with_windows(make_model)


@pytest.fixture(scope="module")
def norm_first(make_model):
    return with_windows(make_model, do_stable_layer_norm=True)


@pytest.fixture(scope="module")
def seeing_all(make_model):
    return in_double(make_model(LightHubertModel).extract_subnet(SUBNET))


def offline(model, recording, layer=-1):
    with torch.no_grad():
        out = model(recording[None], output_hidden_states=True)
    return out.last_hidden_state[0] if layer == -1 else out.hidden_states[layer][0]


def streamed(encoder, recording, cuts=()):
    """All frames of a recording that is fed in pieces that end at `cuts`."""
    bounds = [0, *sorted(cuts), len(recording)]
    parts = [encoder.feed(recording[start:stop]) for start, stop in pairwise(bounds)]
    return torch.cat([*parts, encoder.finish()])


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


cuts = st.lists(st.integers(0, 24_000), max_size=12)


@settings(max_examples=examples(12), deadline=None)
@given(cuts=cuts, samples=st.integers(0, 24_000), chunk=st.integers(1, 40), before=st.booleans())
def test_with_windows_the_output_is_the_offline_one(sliding, norm_first, recording, cuts, samples, chunk, before):
    """However the audio is cut, however long the chunks are and the recording is."""
    model = norm_first if before else sliding
    encoder = StreamingEncoder(model, chunk * FRAME)
    assert encoder.exact
    found = streamed(encoder, recording[:samples], [cut for cut in cuts if cut <= samples])
    wanted = offline(model, recording[:samples]) if samples >= 400 else recording.new_zeros(0, 64)
    close(found, wanted)


@settings(max_examples=examples(12), deadline=None)
@given(
    cuts=cuts,
    samples=st.integers(400, 24_000),
    context=st.tuples(*[st.integers(low, 30) for low in (1, 0, 0)]),
    data=st.data(),
)
def test_otherwise_the_output_is_that_of_long_audio(sliding, seeing_all, recording, cuts, samples, context, data):
    model = data.draw(st.sampled_from([sliding, seeing_all]))
    chunk, left, right = (frames * FRAME for frames in context)
    encoder = StreamingEncoder(model, chunk, left, right)
    found = streamed(encoder, recording[:samples], [cut for cut in cuts if cut <= samples])
    if model is sliding and context[1] >= 13 and context[2] >= 12:
        close(found, offline(model, recording[:samples]))
    else:
        assert not encoder.exact
        close(found, extract_long_features(model, recording[:samples], chunk, (left, right)))


@settings(max_examples=examples(12), deadline=None)
@given(
    streams=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8_000)), min_size=1, max_size=4),
    piece=st.integers(300, 3_000),
    windowed=st.booleans(),
)
def test_streams_in_one_batch_are_each_as_alone(sliding, seeing_all, recording, streams, piece, windowed):
    """They begin at different times, `(begin, samples)`, and end when their samples do."""
    model = sliding if windowed else seeing_all
    encoder = StreamingEncoder(model, 5 * FRAME, None if windowed else 9 * FRAME, None if windowed else 2 * FRAME)
    found = {number: [] for number in range(len(streams))}
    turn, opened = 0, set(found)
    while opened:
        pieces, ending = {}, []
        for number in sorted(opened):
            begin, samples = streams[number]
            start = (turn - begin) * piece
            if start >= 0:
                pieces[number] = recording[number * 1000 : number * 1000 + samples][start : start + piece]
                if start + piece >= samples:
                    ending.append(number)
        for number, frames in encoder.feed_many(pieces, ending).items():
            found[number].append(frames)
        opened -= set(ending)
        assert set(encoder.streams) == set(pieces) - set(ending)
        turn += 1
    for number, (_, samples) in enumerate(streams):
        close(torch.cat(found[number]), streamed(encoder, recording[number * 1000 : number * 1000 + samples]))


@pytest.mark.numerical
@pytest.mark.parametrize("context", [(None, None), (0.2, 0.1)], ids=["exact", "pieces"])
def test_in_single_precision_as_exact_as_offline(sliding, recording, context):
    single = sliding.float()
    try:
        found = streamed(StreamingEncoder(single, 0.1, *context), recording.float())
        if context == (None, None):
            plain = offline(single, recording.float())
        else:
            plain = extract_long_features(single, recording.float(), 0.1, context)
    finally:
        sliding.double()
    exact = StreamingEncoder(sliding, 0.1, *context)
    assert_as_exact(found, plain, streamed(exact, recording))


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2])
def test_any_layer(norm_first, seeing_all, recording, layer):
    found = streamed(StreamingEncoder(norm_first, 0.1, layer=layer), recording, [999])
    close(found, offline(norm_first, recording, layer))
    found = streamed(StreamingEncoder(seeing_all, 0.1, 0.3, 0.2, layer=layer), recording)
    close(found, extract_long_features(seeing_all, recording, 0.1, (0.3, 0.2), layer))


@pytest.mark.parametrize("kind", [LightHubertForCTC, LightHubertForAudioFrameClassification])
@pytest.mark.parametrize("weighted", [False, True])
def test_heads(make_model, recording, kind, weighted):
    model = in_double(make_model(kind, attention_window=4, use_weighted_layer_sum=weighted).extract_subnet(SUBNET))
    with torch.no_grad():
        wanted = model(recording[None]).logits[0]
    close(streamed(StreamingEncoder(model, 0.1, logits=True), recording, [5_000]), wanted)
    # The context is all there is, but too little to be sure of it.
    close(streamed(StreamingEncoder(model, 2.0, 0.0, 0.0, logits=True), recording, [5_000]), wanted)


def test_a_supernet_streams_its_active_subnet(make_model, recording):
    supernet = in_double(make_model(LightHubertModel, attention_window=4))
    supernet.set_active_subnet(Subnet(48, (1, 4, 2), (96, 72, 144)))
    encoder = StreamingEncoder(supernet, 0.1)
    close(streamed(encoder, recording), offline(supernet, recording))
    encoder.feed(recording)
    supernet.set_active_subnet(supernet.search_space.smallest())
    with pytest.raises(RuntimeError, match=r"another subnet was activated .* make a new one"):
        encoder.feed(recording)


def test_a_group_norm_sees_each_chunk_with_its_context(make_model, recording):
    model = in_double(make_model(LightHubertModel, feat_extract_norm="group").extract_subnet(SUBNET))
    found = streamed(StreamingEncoder(model, 0.2, 0.4, 0.1), recording, [77, 5_000, 5_100])
    close(found, extract_long_features(model, recording, 0.2, (0.4, 0.1)))


@pytest.mark.parametrize("context", [(None, None), (0.2, 0.1)], ids=["exact", "pieces"])
def test_no_sample_is_computed_twice(sliding, recording, context):
    rows, layers = [], sliding.feature_extractor.conv_layers
    hooks = [
        layer.register_forward_hook(lambda *a, i=i: rows.append((i, a[2].shape[2]))) for i, layer in enumerate(layers)
    ]
    try:
        streamed(StreamingEncoder(sliding, 0.1, *context), recording, range(0, 24_000, 1_000))
        streaming, rows[:] = list(rows), []
        offline(sliding, recording)
    finally:
        for hook in hooks:
            hook.remove()
    assert {i: sum(n for j, n in streaming if j == i) for i, _ in rows} == dict(rows)


@pytest.mark.parametrize("context", [(None, None), (0.2, 0.1)], ids=["exact", "pieces"])
def test_work_and_memory_do_not_grow(sliding, recording, context):
    """Every chunk gives as many frames, computes on as many, and leaves as much behind."""
    encoder = StreamingEncoder(sliding, 0.1, *context)
    seen, kept = [], []
    hook = sliding.encoder.layers[0].register_forward_hook(lambda *a: seen.append(a[2][0].shape[1]))
    encoder.feed(recording[: round(encoder.latency_ms * 16)])
    try:
        for start in range(0, 16_000, 1_600):
            assert len(encoder.feed(recording[start : start + 1_600])) == 5
            kept.append(sum(tensor.numel() for tensor in _tensors(encoder._streams[None])))
    finally:
        hook.remove()
    assert len(set(kept[2:])) == len(set(seen[3:])) == 1
    assert seen[-1] < 30


def _tensors(thing):
    if isinstance(thing, torch.Tensor):
        return [thing]
    things = thing if isinstance(thing, list) else vars(thing).values() if hasattr(thing, "__dict__") else []
    return [tensor for part in things for tensor in _tensors(part)]


@pytest.mark.parametrize(("context", "right"), [((None, None), 12), ((0.2, 0.1), 5)], ids=["exact", "pieces"])
def test_the_delay_is_what_it_says(sliding, recording, context, right):
    encoder = StreamingEncoder(sliding, 0.1, *context)
    needed = round(encoder.latency_ms * 16)
    assert needed == (5 + right - 1) * 320 + 400
    assert encoder.lookahead_ms == right * 20 + 5
    assert len(encoder.feed(recording[: needed - 1])) == 0
    assert len(encoder.feed(recording[needed - 1 : needed])) == 5


def test_given_statistics_are_those_of_the_feature_extractor(sliding, recording):
    audio = 0.1 * recording + 0.3
    normalized = build_feature_extractor()(audio.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
    wanted = streamed(StreamingEncoder(sliding, 0.1), normalized)
    given = (audio.mean().item(), audio.std(correction=0).item())
    torch.testing.assert_close(
        streamed(StreamingEncoder(sliding, 0.1, normalize=given), audio), wanted, rtol=0, atol=1e-4
    )
    # What ends within its first chunk is heard as a whole, too.
    running = streamed(StreamingEncoder(sliding, 2.0, normalize=True), audio)
    torch.testing.assert_close(running, wanted, rtol=0, atol=1e-4)


@settings(max_examples=examples(8), deadline=None)
@given(cuts=cuts)
def test_running_statistics_do_not_depend_on_the_cuts(sliding, recording, cuts):
    audio = 0.1 * recording + 0.3
    found, wanted = (streamed(StreamingEncoder(sliding, 0.1, normalize=True), audio, part) for part in (cuts, []))
    close(found, wanted)


def test_a_buffer_may_be_written_again(sliding, recording):
    """As callbacks of sound cards do."""
    encoder, buffer, parts = StreamingEncoder(sliding, 0.1), np.zeros(500), []
    for start in range(0, 24_000, 500):
        buffer[:] = recording[start : start + 500].numpy()
        parts.append(encoder.feed(buffer))
    close(torch.cat([*parts, encoder.finish()]), offline(sliding, recording))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_rate": 8_000}, "the stream has 8000 samples per second, the model hears 16000; resample"),
        ({"chunk_seconds": 0.01}, r"chunk_seconds must be at least one frame \(0\.02 s\), got 0\.01"),
        ({"right_seconds": -1}, "right_seconds must be not negative, got -1"),
        ({"layer": 3}, r"the model has the hidden states 0 to 2 .* there is no 3"),
        ({"logits": True}, r"LightHubertModel has no head that reads every frame .* `lighthubert finetune`"),
        ({"normalize": (0.0, -1.0)}, r"must be True, False or \(mean, standard deviation\), got \(0\.0, -1\.0\)"),
    ],
)
def test_what_cannot_be_streamed(sliding, options, message):
    with pytest.raises(ValueError, match=message):
        StreamingEncoder(sliding, **options)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(2, 100), r"must be one waveform, \(samples,\), got \(2, 100\)"),
        (np.zeros(100, np.int16), r"must be floating point within ±1, got torch\.int16; divide int16 by 32768"),
        (torch.tensor([0.0, float("nan")]), "hold NaN or Inf"),
    ],
)
def test_samples_that_are_none_change_nothing(sliding, recording, samples, message):
    encoder = StreamingEncoder(sliding, 0.1)
    begun = encoder.feed_many({"a": recording[:9_000]})["a"]
    with pytest.raises(ValueError, match=message):
        encoder.feed_many({"a": recording[9_000:], "b": samples})
    rest = encoder.feed_many({"a": recording[9_000:]}, ["a"])["a"]
    close(torch.cat([begun, rest]), offline(sliding, recording))


def test_other_models_and_modes_are_refused(make_model):
    hubert = make_model(LightHubertModel, search_space=None, num_hidden_layers=1).to_hubert()
    with pytest.raises(ValueError, match="runs LightHuBERTs, got a HubertModel; `lighthubert convert`"):
        StreamingEncoder(hubert)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        StreamingEncoder(make_model(LightHubertModel).train())

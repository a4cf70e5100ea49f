"""The frozen model's features, and the cache: the same bits when hit, computed anew when anything changed."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.audio.decoding import normalise
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.superb.feature_store import FeatureStore, data_fingerprint
from lighthubert_hf.training.superb.splits import CachedSplit, LiveSplit, Selection
from lighthubert_hf.training.superb.upstream import Upstream, load_upstream

from ...precision import assert_as_exact, in_double
from ..stored_speech import encode


def selection(folder, split: str = "train", **options) -> Selection:
    return Selection(AudioSource(str(folder), split, all_columns=True), **options)


def read(split) -> dict:
    return {utterance.id: (utterance.row, np.array(utterance.features)) for utterance in split.once()}


@pytest.fixture
def counted(upstream, monkeypatch):
    """The upstream, and how many waveforms it was given."""
    calls, original = [], upstream.features

    def features(waveforms, **options):
        calls.append(len(waveforms))
        return original(waveforms, **options)

    monkeypatch.setattr(upstream, "features", features)
    return upstream, calls


@torch.no_grad()
def alone_and_exact(model, waveform: torch.Tensor) -> list[torch.Tensor]:
    """All hidden states of one waveform, in float32 and in float64."""
    inputs = ((model, waveform[None]), (in_double(model), waveform[None].double()))
    return [torch.stack(twin(audio, output_hidden_states=True).hidden_states, 2)[0] for twin, audio in inputs]


@pytest.mark.numerical
def test_features_are_all_hidden_states_of_each_utterance_alone(upstream, waveforms):
    lengths = [4800, 4000, 399, 700]
    given = [row[:length].numpy() for row, length in zip(waveforms, lengths, strict=True)]
    found = upstream.features(given)
    for waveform, states in zip(given, found, strict=True):
        padded = np.pad(normalise(waveform), (0, max(0, 400 - len(waveform))))
        assert_as_exact(states, *alone_and_exact(upstream.model, torch.from_numpy(padded)))
    assert found[0].shape[1:] == (upstream.num_states, upstream.width)


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm", "data2vec-audio"])
def test_other_encoders(kind, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **convolutions)).save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    waveform = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    (states,) = upstream.features([waveform])
    assert states.shape == (12, 3, 16)
    assert states.isfinite().all()


@pytest.mark.parametrize(("kind", "batches"), [("hubert", 2), ("lighthubert", 1)])
def test_waveforms_run_together_where_padding_changes_nothing(kind, batches):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    upstream = Upstream(
        AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **convolutions, feat_extract_norm="group"))
    )
    rng, runs = np.random.default_rng(0), []
    given = [rng.standard_normal(length).astype(np.float32) for length in (4000, 3000)]
    upstream.model.register_forward_pre_hook(lambda _model, inputs: runs.append(inputs[0].shape))
    upstream.features(given)
    assert len(runs) == batches
    for together, waveform in zip(upstream.features(given), given, strict=True):
        assert_as_exact(together, *alone_and_exact(upstream.model, torch.from_numpy(normalise(waveform))))


def test_a_hit_gives_the_same_bits_and_runs_nothing(counted, superb_folder, tmp_path):
    upstream, calls = counted
    first = read(FeatureStore(tmp_path).split(upstream, selection(superb_folder), progress=False))
    assert sum(calls) == 12
    second = read(FeatureStore(tmp_path).split(upstream, selection(superb_folder), progress=False))
    assert sum(calls) == 12
    assert first.keys() == second.keys()
    for name, (row, features) in first.items():
        assert row == second[name][0]
        assert features.tobytes() == second[name][1].tobytes()
    assert first["0:0:0"][0]["segments"][0] == {"speaker": "first", "start": 0.0, "end": 0.2}


def test_changed_weights_are_another_model(counted, superb_folder, tmp_path):
    upstream, calls = counted
    store = FeatureStore(tmp_path)
    before = read(store.split(upstream, selection(superb_folder), progress=False))
    with torch.no_grad():
        upstream.model.encoder.layers[0].final_layer_norm.bias[0] += 0.5
    changed = Upstream(upstream.model)
    assert changed.fingerprint != upstream.fingerprint
    after = read(store.split(changed, selection(superb_folder), progress=False))
    assert not np.array_equal(before["0:0:0"][1], after["0:0:0"][1])


def test_a_model_is_the_same_wherever_it_lies(tiny_static, tmp_path):
    tiny_static.save_pretrained(tmp_path / "a")
    loaded = load_upstream(tmp_path / "a")
    assert loaded.fingerprint == Upstream(tiny_static).fingerprint
    assert loaded.fingerprint != Upstream(tiny_static, normalised=False).fingerprint


def test_changed_data_are_read_again(counted, superb_folder, tmp_path):
    upstream, calls = counted
    folder, store = tmp_path / "data", FeatureStore(tmp_path / "cache")
    shutil.copytree(superb_folder, folder)
    store.split(upstream, selection(folder, "test"), progress=False)
    (file,) = (folder / "data").glob("test-*")
    os.utime(file, (1, 1))
    store.split(upstream, selection(folder, "test"), progress=False)
    assert sum(calls) == 12
    assert data_fingerprint(AudioSource(str(folder))) == data_fingerprint(AudioSource(str(folder), "test"))


def test_what_does_not_fit_is_computed_on_the_fly_and_said(upstream, superb_folder, tmp_path, caplog):
    cached = FeatureStore(tmp_path / "large").split(upstream, selection(superb_folder), progress=False)
    live = FeatureStore(tmp_path / "small", 1e-6).split(upstream, selection(superb_folder), progress=False)
    assert isinstance(cached, CachedSplit)
    assert isinstance(live, LiveSplit)
    assert "anew whenever they are needed" in caplog.text
    assert not list((tmp_path / "small").iterdir()), "something half-written was left behind"
    assert live.rows == cached.rows
    for name, (row, features) in read(live).items():
        assert row == read(cached)[name][0]
        np.testing.assert_allclose(features, read(cached)[name][1], atol=2e-2)  # of values up to 20, kept in float16
    batches = live.batches(5, seed=0)
    seen = [utterance.id for _ in range(5) for utterance in next(batches)]
    assert set(seen) == set(cached.ids)


def test_old_sets_make_room_for_new_ones(upstream, superb_folder, tmp_path):
    limit = 1.5e-9 * _size(FeatureStore(tmp_path / "a").split(upstream, selection(superb_folder), progress=False))
    cache = tmp_path / "b"
    FeatureStore(cache, limit).split(upstream, selection(superb_folder), progress=False)
    (old,) = cache.iterdir()
    split = FeatureStore(cache, limit).split(upstream, selection(superb_folder, max_examples=11), progress=False)
    assert split.is_cached
    assert not old.exists()


def _size(split: CachedSplit) -> int:
    return sum(file.stat().st_size for file in split._folder.iterdir())


def test_an_interrupted_extraction_leaves_nothing_that_counts(upstream, superb_folder, tmp_path, monkeypatch):
    def fail(_waveforms, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upstream, "features", fail)
        with pytest.raises(KeyboardInterrupt):
            FeatureStore(tmp_path).split(upstream, selection(superb_folder), progress=False)
    abandoned = tmp_path / ".0123.4194305a.new"  # of a process that was killed
    abandoned.mkdir()
    assert len(FeatureStore(tmp_path).split(upstream, selection(superb_folder), progress=False)) == 12
    assert not abandoned.exists()


def test_numbers_beyond_half_precision_are_an_error(upstream, superb_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "features", lambda waveforms: [torch.full((3, 5, 64), 7e4) for _ in waveforms])
    with pytest.raises(ValueError, match="float32"):
        FeatureStore(tmp_path).split(upstream, selection(superb_folder), progress=False)
    split = FeatureStore(tmp_path, dtype="float32").split(upstream, selection(superb_folder), progress=False)
    assert split.load(0).features.max() == np.float32(7e4)


def test_a_selection_is_the_same_every_time(upstream, superb_folder, tmp_path):
    some = selection(superb_folder, max_examples=5)
    ids = [example["id"] for example in some.read()]
    assert len(ids) == 5
    assert ids == [example["id"] for example in some.read()]
    assert ids != sorted(ids)
    longest = FeatureStore(tmp_path).split(upstream, selection(superb_folder, max_seconds=0.4), progress=False)
    assert longest.counts["too_long"] == 12 - len(longest)


def test_every_epoch_has_every_utterance_once(upstream, superb_folder, tmp_path):
    split = FeatureStore(tmp_path).split(upstream, selection(superb_folder), progress=False)
    batches = split.batches(5, seed=1)
    for _ in range(2):
        epoch = [next(batches) for _ in range(3)]
        assert sorted(utterance.id for batch in epoch for utterance in batch) == sorted(split.ids)


def test_supernets_are_judged_by_a_subnet(tiny_supernet, tmp_path):
    tiny_supernet.save_pretrained(tmp_path / "supernet")
    smallest, default = (load_upstream(tmp_path / "supernet", subnet=name) for name in ("smallest", None))
    assert smallest.width == tiny_supernet.search_space.smallest().hidden_size
    assert smallest.fingerprint != default.fingerprint
    with pytest.raises(ValueError, match="supernet"):
        Upstream(tiny_supernet)


def test_a_static_model_has_no_subnet(tiny_static):
    with pytest.raises(ValueError, match="static"):
        load_upstream(tiny_static, subnet="smallest")


def test_waveforms_are_normalised_as_the_model_wants(tiny_static, tmp_path):
    LightHubertModel.save_pretrained(tiny_static, tmp_path)
    facts = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False, "sampling_rate": 16000}
    assert load_upstream(tmp_path).normalised
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    assert not load_upstream(tmp_path).normalised


def test_broken_files_at_the_end_are_counted(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.flac").write_bytes(encode(0.2) if number < 38 else b"no audio")
    counts: dict = {}
    assert len(list(selection(tmp_path).read(counts))) == 38
    assert counts == {"used": 38, "broken": 2, "too_long": 0}


@pytest.mark.parametrize("name", ["rows.jsonl", "features.bin", "set.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-9] + b"123456789",
        lambda data: re.sub(rb'("shape": \[\s*)\d+', rb"\g<1>1", data) if b'"shape"' in data else data[:-1],
    ],
)
def test_damaged_features_are_computed_again(counted, superb_folder, tmp_path, caplog, name, damage):
    upstream, calls = counted
    store = FeatureStore(tmp_path)
    before = read(store.split(upstream, selection(superb_folder, "test"), progress=False))
    (file,) = tmp_path.glob(f"*/{name}")
    file.write_bytes(damage(file.read_bytes()))
    number = len(calls)
    after = read(FeatureStore(tmp_path).split(upstream, selection(superb_folder, "test"), progress=False))
    assert len(calls) > number
    assert re.search(rf"{name} is .*computed again", caplog.text)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key][1], after[key][1]) for key in before)

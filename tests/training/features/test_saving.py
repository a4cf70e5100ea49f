"""Features and units of a data set in shards: readable, resumable, named after their files, broken ones counted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from datasets import load_dataset

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.features.encoding import AudioWindows, encode
from lighthubert_hf.training.features.opening import as_source
from lighthubert_hf.training.features.saving import read_features, save_features
from lighthubert_hf.training.superb.upstream import Upstream
from lighthubert_hf.training.units.applying import apply_units


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Eleven recordings in two folders, one of them broken."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for place in range(10):
        path = folder / f"speaker{place % 2}" / f"{place}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(3000 + 500 * place), 16_000)
    (folder / "speaker0" / "broken.flac").write_bytes(b"fLaC, but no more than that")
    return folder


@pytest.fixture(scope="module")
def encoder(make_model) -> Upstream:
    return Upstream(make_model(LightHubertModel, search_space=None), name="tiny")


@pytest.mark.parametrize("kind", ["safetensors", "parquet"])
def test_rows_are_the_models_hidden_states_by_the_names_of_files(encoder, recordings, tmp_path, kind):
    options = {"format": kind, "max_broken_share": 0.2, "progress": False, "shard_megabytes": 0.02}
    done = save_features(encoder, recordings, tmp_path / "out", (1, 4), **options)
    assert done.counts["broken"] == 1 and done.rows == 10 and done.shards > 1
    rows = list(read_features(tmp_path / "out"))
    assert {row["file"] for row in rows} == {f"speaker{place % 2}/{place}.flac" for place in range(10)}
    row = next(row for row in rows if row["file"] == "speaker1/3.flac")
    waveform, _ = soundfile.read(recordings / row["file"], dtype="float32")
    (expected,) = encoder.features([waveform], layers=(1, 4))
    for place, layer in enumerate((1, 4)):
        np.testing.assert_allclose(row["layers"][layer], expected[:, place].numpy(), atol=1e-5)
    if kind == "parquet":
        found = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(found) == 10 and np.shape(found[0]["layer_4"])[1] == 64


def test_what_was_stopped_goes_on_and_is_the_same(encoder, recordings, tmp_path, monkeypatch):
    options = {"max_broken_share": 0.2, "progress": False, "shard_megabytes": 0.006, "dtype": "float16"}
    save_features(encoder, recordings, tmp_path / "whole", 2, **options)
    features, called = Upstream.features, []

    def failing(self, *arguments, **more):
        called.append(1)
        if len(called) == 3:
            raise KeyboardInterrupt
        return features(self, *arguments, **more)

    monkeypatch.setattr(Upstream, "features", failing)
    with pytest.raises(KeyboardInterrupt):
        save_features(encoder, recordings, tmp_path / "part", 2, **options)
    before = sorted(path.name for path in (tmp_path / "part").glob("features-*"))
    monkeypatch.undo()
    done = save_features(encoder, recordings, tmp_path / "part", 2, **options)
    assert before == ["features-00000.safetensors", "features-00001.safetensors"] and done.counts["broken"] == 1
    for path in (tmp_path / "whole").glob("features-*"):
        assert path.read_bytes() == (tmp_path / "part" / path.name).read_bytes()
    with pytest.raises(
        ValueError, match=r"was written with layers \[2\], not \[3\]; name another folder, or start over"
    ):
        save_features(encoder, recordings, tmp_path / "part", 3, **options)
    assert save_features(encoder, recordings, tmp_path / "part", 2, **options).rows == 10  # nothing to do
    record = tmp_path / "part" / ".progress.json"
    record.write_text(record.read_text().replace('"rows": 10', '"rows": 11'))
    with pytest.raises(ValueError, match="is damaged: it is not what was written; start over with --overwrite"):
        save_features(encoder, recordings, tmp_path / "part", 2, **options)
    (tmp_path / "part" / "thesis.txt").write_text("mine")
    save_features(encoder, recordings, tmp_path / "part", 3, overwrite=True, **options)
    assert (tmp_path / "part" / "thesis.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "part" / "thesis.txt", tmp_path / "other")
    with pytest.raises(ValueError, match="holds something else"):
        save_features(encoder, recordings, tmp_path / "other", 3, **options)


def test_too_many_broken_files_end_it(encoder, recordings, tmp_path):
    with pytest.raises(ValueError, match=r"more than 5\.0% of the audio files cannot be decoded"):
        save_features(encoder, recordings, tmp_path / "out", 1, progress=False)


def test_long_recordings_run_in_chunks(encoder):
    waveform = 0.1 * torch.randn(16_000 * 3, generator=torch.Generator().manual_seed(0)).numpy()
    whole = encode(encoder, [waveform], (2,))[0]
    pieces = encode(encoder, [waveform, waveform[:3000]], (2,), long_seconds=1.0)
    assert pieces[0].shape == whole.shape and len(pieces[1]) == 9
    np.testing.assert_allclose(pieces[0], whole, atol=1e-4)  # one chunk of 20 s holds all of it


@pytest.mark.parametrize("kind", ["HubertModel", "WavLMModel", "LightHubertModel"])
@pytest.mark.parametrize("stable", [False, True])
def test_layers_that_nobody_wants_are_left_out_and_the_others_are_the_same(kind, stable, make_model):
    """Of every family, short recordings and long ones; with norms before the layers, too."""
    if kind == "LightHubertModel":
        model = make_model(LightHubertModel, search_space=None, do_stable_layer_norm=stable)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
        sizes |= {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
        config = getattr(transformers, kind.replace("Model", "Config"))(**sizes, do_stable_layer_norm=stable)
        model = getattr(transformers, kind)(config)
    upstream = Upstream(model)
    # No samples behind the last frame: chunks leave them out, and a group norm of transformers hears them.
    waveforms = [np.random.default_rng(seed).standard_normal(3920).astype(np.float32) for seed in range(2)]
    whole = [states.numpy() for states in upstream.features(waveforms)]
    for long_seconds in (60.0, 0.1):
        for states, found in zip(whole, encode(upstream, waveforms, (2, 0), long_seconds=long_seconds), strict=True):
            np.testing.assert_allclose(found, states[:, [2, 0]], atol=1e-5)
    assert len(upstream.features(waveforms)[0][0]) == upstream.num_states


def test_windows_end_with_a_pass_and_go_on_after_their_state(recordings):
    options = {"seed": 1, "repeat": True, "max_broken_share": 0.2}
    windows = AudioWindows(as_source(recordings), 1.0, **options)
    seen = []
    for window in windows.iterate():
        seen.append(window)
        if window.epoch == 2:
            break
    first = [row.file for window in seen if window.epoch == 0 for row in window.recordings]
    assert len(first) == len(set(first)) == 10
    again = next(
        AudioWindows(as_source(recordings), 1.0, seed=1, repeat=True, max_broken_share=0.2).iterate(seen[1].state)
    )
    assert [row.id for row in again.recordings] == [row.id for row in seen[2].recordings]


@pytest.mark.parametrize(("kind", "repeats"), [("parquet", False), ("jsonl", True)])
def test_units_are_what_the_model_says(unit_model, recordings, tmp_path, kind, repeats):
    folder, result = unit_model
    options = {"format": kind, "repeats": repeats, "layer": 3, "max_broken_share": 0.2, "progress": False}
    done = apply_units(folder, recordings, tmp_path / "out", **options)
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert done.rows == len(rows) == 10 and done.counts["broken"] == 1
    model = LightHubertModel.from_pretrained(folder).eval()
    for row in rows:
        waveform, _ = soundfile.read(recordings / row["file"], dtype="float32")
        units = model.encode_units(waveform, layer=3)
        said = row["units"] if repeats else np.repeat(row["units"], row["durations"]).tolist()
        assert len(said) == row["frames"] and np.mean(np.array(said) == units.numpy()) > 0.9, "padding moves few"
    assert json.loads((tmp_path / "out" / ".progress.json").read_text())["finished"]

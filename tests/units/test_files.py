"""Codebooks in files: read back, carried by subnets, never those of other weights; arrays of other programs."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from lighthubert_hf import LightHubertForCTC, LightHubertModel
from lighthubert_hf.hub.folder import load_facts, save_model_folder
from lighthubert_hf.hub.publishing import push_folder
from lighthubert_hf.model.codebook import Codebook, encoder_fingerprint, read_codebooks, without_repeats
from lighthubert_hf.units.files import add_codebooks
from lighthubert_hf.units.foreign import read_foreign_codebook

AUDIO = 0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32)


def codebook_of(model, layer: int = 2, clusters: int = 5, **facts) -> Codebook:
    """Centroids among the model's own features of noise."""
    values = torch.from_numpy(AUDIO)
    values = (values - values.mean()) / (values.var(unbiased=False) + 1e-7).sqrt()
    with torch.no_grad():
        states = model.base_model(values[None], output_hidden_states=True).hidden_states[layer][0]
    return Codebook(states[:clusters].clone(), layer, {"encoder": encoder_fingerprint(model), **facts})


@pytest.fixture
def static(make_model):
    return make_model(LightHubertModel, search_space=None)


def test_units_are_the_nearest_centroids(static):
    one = codebook_of(static)
    static.codebooks = {one.name: one}
    units = static.encode_units(AUDIO)
    assert units.dtype == torch.int64 and units.shape == (12,)
    assert units[:5].tolist() == [0, 1, 2, 3, 4]  # each of these frames is a centroid
    both = static.encode_units([AUDIO, AUDIO[:1000]], durations=True)
    assert both[0][1].sum() == 12 and torch.equal(both[0][0].repeat_interleave(both[0][1]), units)
    features = torch.randn(3, 7, one.width)
    exact = torch.cdist(features.double(), one.centroids.double()[None]).argmin(-1)
    assert torch.equal(one.assign(features), exact)
    assert without_repeats(torch.tensor([4, 4, 2, 4]))[0].tolist() == [4, 2, 4]


def test_models_save_and_load_with_their_codebooks(static, make_model, tmp_path, caplog):
    one, other = codebook_of(static), codebook_of(static, 3, 6)
    static.codebooks = {one.name: one, other.name: other}
    static.save_pretrained(tmp_path / "model")
    loaded = LightHubertModel.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(loaded.encode_units(AUDIO, layer=3), static.encode_units(AUDIO, layer=3))
    assert loaded.codebooks[one.name].facts == one.facts
    with_head = LightHubertForCTC.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(with_head.encode_units(AUDIO, layer=2), static.encode_units(AUDIO, layer=2))
    with torch.no_grad():
        loaded.encoder.layers[0].feed_forward.output_dense.bias += 1
    loaded.save_pretrained(tmp_path / "trained")
    assert not (tmp_path / "trained" / "units.safetensors").exists()
    assert "the codebook layer2-5 is not saved with the model, whose weights were trained" in caplog.text


def test_a_subnet_keeps_the_codebooks_that_are_its_own(tiny_supernet, caplog):
    smallest, largest = tiny_supernet.search_space.smallest(), tiny_supernet.search_space.largest()
    subnet = tiny_supernet.extract_subnet(smallest).eval()
    one = codebook_of(subnet, 1, subnet=smallest.to_dict())
    tiny_supernet.codebooks = {one.name: one}
    with tiny_supernet.subnet_activated(smallest):
        units = tiny_supernet.encode_units(AUDIO)
    assert torch.equal(tiny_supernet.extract_subnet(smallest).encode_units(AUDIO), units)
    with (
        tiny_supernet.subnet_activated(largest),
        pytest.raises(ValueError, match="another subnet than the active one"),
    ):
        tiny_supernet.encode_units(AUDIO)
    assert not tiny_supernet.extract_subnet(largest).codebooks and "is left behind" in caplog.text


def test_what_is_pushed_has_its_codebooks_and_says_so(static, tmp_path):
    agreement = {"frames": 1200, "purity": 0.5, "reference_purity": 0.25, "nmi": 0.75, "unit_error_rate": 0.125}
    one = codebook_of(static, made="k-means", frames=70_000, data="owner/speech", agreement=agreement)
    static.codebooks = {one.name: one}
    save_model_folder(static, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| 2 | 5 | k-means | 70,000 frames of [owner/speech](" in card and "NMI 0.750" in card
    assert "model.encode_units(wav)" in card
    pushed = push_folder(tmp_path / "model", "me/model", dry_run=tmp_path / "pushed")
    assert "units.safetensors" in pushed.files and load_facts(tmp_path / "pushed").parameters
    assert (tmp_path / "pushed" / "codebook.py").is_file()
    stale = one.with_facts(encoder="of other weights")
    add_codebooks(tmp_path / "model" / "units.safetensors", [stale])
    with pytest.raises(ValueError, match="has the codebook layer2-5 of other weights than those beside it"):
        push_folder(tmp_path / "model", "me/model", dry_run=tmp_path / "again")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 1}, "there is no codebook of layer 1; there is layer 2 with 5 units, layer 3 with 6 units"),
        ({}, "there are 2 codebooks to choose from"),
        ({"layer": 2, "audio": AUDIO[None]}, r"must be one waveform .* got the shape \(1, 4000\)"),
        ({"layer": 2, "audio": AUDIO[:100]}, "the audio has 100 samples, one frame needs 400"),
        ({"layer": 2, "audio": np.ones(4000, np.int16)}, "must be floating point within ±1"),
    ],
)
def test_what_cannot_be_encoded_is_said(static, options, said):
    static.codebooks = {one.name: one for one in (codebook_of(static), codebook_of(static, 3, 6))}
    with pytest.raises(ValueError, match=said):
        static.encode_units(**{"audio": AUDIO} | options)


def test_a_codebook_of_another_width_names_the_remedy(static):
    with pytest.raises(ValueError, match=r"of features of width 8, this model's have 64: .*units map"):
        Codebook(torch.zeros(3, 8), 1).assign(torch.zeros(2, 64))


def test_damaged_files_are_one_line(static, tmp_path):
    path = tmp_path / "units.safetensors"
    add_codebooks(path, [codebook_of(static)])
    whole = path.read_bytes()
    for content in (whole[:-40], b"", b"\xff" * 20, whole[8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no file of codebooks, or damaged") as error:
            read_codebooks(path)
        assert "\n" not in str(error.value)


def test_arrays_of_other_programs(tmp_path):
    centroids = np.random.default_rng(0).standard_normal((7, 4))
    np.save(tmp_path / "a.npy", centroids)
    np.save(tmp_path / "fairseq.npy", centroids.T.astype(np.float32))
    np.savez(tmp_path / "a.npz", centroids=centroids, counts=np.arange(7))
    for name in ("a.npy", "fairseq.npy", "a.npz"):
        found = read_foreign_codebook(tmp_path / name, 6, width=4)
        assert found.layer == 6 and np.allclose(found.centroids, centroids, atol=1e-6)
    with pytest.raises(ValueError, match="7 × 4, the model's features have width 9"):
        read_foreign_codebook(tmp_path / "a.npy", 6, width=9)


def test_pickles_are_refused_with_the_way_out(tmp_path):
    class Trap:
        def __reduce__(self):
            return (shutil.rmtree, (str(tmp_path / "precious"),))

    (tmp_path / "precious").mkdir()
    (tmp_path / "km.bin").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for name, said in (("km.bin", "numpy.save.'centroids.npy'"), ("trap.npy", "without running code")):
        with pytest.raises(ValueError, match=said):
            read_foreign_codebook(tmp_path / name, 6)
    assert (tmp_path / "precious").is_dir()

"""Codebooks learnt from a stream: resumable to the step, of several layers at one pass, with errors of one line."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.units.clustering import StreamedKMeans
from lighthubert_hf.training.units.fitting import _Fit, fit_codebooks


def test_kmeans_goes_on_where_its_state_was_taken():
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((60, 4)).astype(np.float32) for _ in range(5)]
    whole, first, second = (StreamedKMeans(7, seed=3) for _ in range(3))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        first.step(batch)
    second.load_state(*first.state())
    inertia = [second.step(batch) for batch in batches[2:]]
    assert np.array_equal(second.centroids, whole.centroids)
    assert second.steps == whole.steps == 5 and inertia[-1] > 0


def test_codebooks_of_two_layers_lie_in_the_folder_and_load_with_the_model(unit_model):
    folder, result = unit_model
    assert [one.layer for one in result.codebooks] == [1, 3] and result.output == folder / "units.safetensors"
    model = LightHubertModel.from_pretrained(folder).eval()
    assert sorted(model.codebooks) == ["layer1-12", "layer3-12"]
    for one in result.codebooks:
        assert torch.equal(model.codebooks[one.name].centroids, one.centroids)
        assert one.facts["frames"] > 1000 and one.facts["encoder"] and one.width == 64
    assert not list(folder.glob(".*fit*"))


def test_a_fit_that_was_stopped_gives_what_it_would_have_given(unit_model, shards, tmp_path, monkeypatch):
    folder, _ = unit_model
    options = {"steps": 3, "seed": 5, "progress": False, "output": tmp_path / "a.safetensors"}
    whole = fit_codebooks(folder, shards[0], 2, 8, **options)
    options["output"] = tmp_path / "b.safetensors"
    step, done = _Fit._step, []

    def interrupted(self, window):
        if len(done) == 2:
            self._save()
            raise KeyboardInterrupt
        step(self, window)
        done.append(1)

    monkeypatch.setattr(_Fit, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_codebooks(folder, shards[0], 2, 8, **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="interrupted fit with seed 5 instead of 6; finish that, or start over"):
        fit_codebooks(folder, shards[0], 2, 8, **options | {"seed": 6})
    (kept,) = tmp_path.glob(".b.safetensors.*.fit")
    whole_state = kept.read_bytes()
    kept.write_bytes(whole_state[:-1] + bytes([whole_state[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"is damaged .it is not what was written.; start over with --overwrite"):
        fit_codebooks(folder, shards[0], 2, 8, **options)
    kept.write_bytes(whole_state)
    again = fit_codebooks(folder, shards[0], 2, 8, **options)
    assert again.steps == 3 and torch.equal(again.codebooks[0].centroids, whole.codebooks[0].centroids)


@pytest.mark.parametrize(
    ("layers", "clusters", "said"),
    [
        (5, 12, "has no layer 5: there are 0, the input of the first layer, to 4"),
        (1, 12, "has the codebook layer1-12 already; replace it with --overwrite"),
        (1, 90_000, "frames of speech .* fewer than the 90000 clusters; give more speech, or fewer --clusters"),
        (1, 1, "--clusters must be from 2"),
    ],
)
def test_bad_input_is_one_line(unit_model, shards, layers, clusters, said):
    with pytest.raises(ValueError, match=said) as error:
        fit_codebooks(unit_model[0], shards[0], layers, clusters, progress=False)
    assert "\n" not in str(error.value)


def test_an_empty_data_set_is_named(unit_model):
    empty = Dataset.from_dict({"audio": [{"array": [0.0], "sampling_rate": 16_000}]}).select([])
    with pytest.raises(ValueError, match="has no"):
        fit_codebooks(unit_model[0], empty, 2, 12, progress=False)

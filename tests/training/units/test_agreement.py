"""The measures against what they are by definition, and two models compared."""

import numpy as np
import pytest
from datasets import Dataset

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.features.encoding import AudioRow
from lighthubert_hf.training.units.agreement import agreement, best_names, compare_units
from lighthubert_hf.training.units.mapping import map_codebook
from lighthubert_hf.training.units.phones import PhoneFrames


def test_measures_of_units_that_are_written_out():
    units = [np.array([0, 0, 1, 1, 2]), np.array([2, 2, 0])]
    reference = [np.array([5, 5, 3, 3, 3]), np.array([3, 0, 5])]
    found = agreement(units, reference)
    # unit 0: 5 5 5; unit 1: 3 3; unit 2: 3 3 0 -> 3 + 2 + 2 of 8
    assert found.purity == 7 / 8
    # 5: 0 0 0; 3: 1 1 2 2; 0: 2 -> 3 + 2 + 1 of 8
    assert found.reference_purity == 6 / 8
    assert 0 < found.nmi < 1 and found.renamed
    # renamed 0 -> 5, 1 -> 3, 2 -> 0: "5 3 0", "0 5" against "5 3", "3 0 5": an insertion and a deletion of five
    assert found.unit_error_rate == pytest.approx(2 / 5)


def test_the_same_units_agree_wholly_whatever_they_are_called():
    rng = np.random.default_rng(0)
    units = [rng.integers(0, 9, 40) for _ in range(3)]
    names = rng.permutation(9)
    found = agreement(units, [names[one] for one in units])
    assert (found.purity, found.reference_purity, found.unit_error_rate) == (1, 1, 0)
    assert found.nmi == pytest.approx(1)
    assert agreement(units, units, same_names=True).unit_error_rate == 0


def test_units_beyond_the_references_get_names_of_their_own():
    names = best_names(np.array([[4, 0], [0, 3], [1, 2]]))
    assert names[0] == 0 and names[1] == 1 and names[2] > 1


def test_phones_are_those_in_the_middle_of_each_frame():
    rows = [{"start": 0.0, "end": 0.03, "phone": "a"}, {"start": 0.05, "end": 1, "phone": "b"}]
    frames = PhoneFrames("alignment", 320, 400)
    recording = AudioRow("0:0:0", "a.flac", np.zeros(1600, np.float32), columns={"alignment": rows})
    assert frames.of(recording, 4).tolist() == [0, -1, 1, 1]  # middles at 12.5, 32.5, 52.5, 72.5 ms
    wrong = AudioRow("0:0:0", "a.flac", np.zeros(1600, np.float32), columns={"alignment": "a b"})
    with pytest.raises(ValueError, match=r"a.flac has no alignment in the column 'alignment'"):
        frames.of(wrong, 4)


def test_a_mapped_codebook_says_its_teachers_units(unit_model, make_model, shards, tmp_path):
    """Of the model itself mapping changes little; another model says the same numbers better than by chance."""
    folder, result = unit_model
    other = make_model(LightHubertModel, seed=0, search_space=None)
    output = tmp_path / "units.safetensors"
    mapped = map_codebook(folder, other, shards[0], 3, teacher_layer=3, output=output, progress=False)
    assert output.is_file() and mapped.codebook.facts["mapped_from"] == result.codebooks[1].fingerprint
    found = compare_units(other, folder, shards[0], codebook=output, reference_layer=3, progress=False)
    assert not found.renamed and found.purity > 0.5 and found.unit_error_rate < 0.5
    same = compare_units(folder, folder, shards[0], layer=3, reference_layer=3, progress=False)
    assert (same.purity, same.unit_error_rate) == (1, 0) and same.frames == mapped.codebook.facts["frames"]


def test_phones_come_from_a_column_of_the_data(unit_model):
    """Half of every recording is one phone and half another; noise tells nothing of which."""
    rng = np.random.default_rng(0)
    phones = [{"start": 0.0, "end": 0.1, "phone": "a"}, {"start": 0.1, "end": 0.2, "phone": "b"}]
    audio = [{"array": 0.1 * rng.standard_normal(3200), "sampling_rate": 16_000} for _ in range(3)]
    data = Dataset.from_dict({"audio": audio, "phones": [phones] * 3})
    options = {"layer": 3, "reference_layer": 1, "alignments": "phones", "progress": False}
    found = compare_units(unit_model[0], unit_model[0], data, **options)
    assert found.phone_frames == found.frames == 27 and 0.5 <= found.phone_purity <= 1
    assert found.reference_phone_purity != found.phone_purity and "phone purity" in str(found)

"""Folders of synthetic speech: one that is damaged or being written is named."""

import pytest

from lighthubert_hf.locks import locked
from lighthubert_hf.training.synthetic.corpus_folder import MANIFEST, write_corpus


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "{}", '{"parameters": 3, "splits": {}}', '{"parameters": {}}', "\0"]
)
def test_a_damaged_manifest_is_one_line_with_its_name(tmp_path, damaged):
    manifest = write_corpus(tmp_path / "corpus", {"seed": 0}, lambda folder: {"train": {"examples": 0}})
    assert write_corpus(tmp_path / "corpus", {"seed": 0}, None) == manifest
    (tmp_path / "corpus" / MANIFEST).write_text(damaged)
    with pytest.raises(ValueError, match=r"corpus\.json .*delete the folder to make") as error:
        write_corpus(tmp_path / "corpus", {"seed": 0}, None)
    assert "\n" not in str(error.value)


def test_it_is_locked_while_it_is_made(tmp_path):
    def write(folder):
        assert (tmp_path / ".corpus.lock").is_file()
        with locked(tmp_path / "corpus"):  # of this process
            return {}

    write_corpus(tmp_path / "corpus", {}, write)
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus"]

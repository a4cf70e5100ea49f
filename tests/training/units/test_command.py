"""The commands, as a user calls them: what they leave in the folder, on the card and on standard output."""

import json
import shutil
import sys

import numpy as np
import pytest

from lighthubert_hf.cli import main
from lighthubert_hf.model.codebook import read_codebooks


@pytest.fixture
def lighthubert(monkeypatch, capsys):
    """`lighthubert(*arguments)`: what the command prints."""

    def call(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["lighthubert", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return said.out

    return call


def test_units_from_the_command_line(unit_model, shards, tmp_path, lighthubert):
    model = tmp_path / "model"
    shutil.copytree(unit_model[0], model)
    said = json.loads(
        lighthubert("units", "fit", model, shards[0], "--layer", 2, "--clusters", 6, "--steps", 1, "--json")
    )
    assert said["codebooks"][0]["name"] == "layer2-6" and said["output"] == str(model / "units.safetensors")
    assert sorted(read_codebooks(model / "units.safetensors")) == ["layer1-12", "layer2-6", "layer3-12"]
    assert "| 2 | 6 | k-means |" in (model / "README.md").read_text()

    evaluate = ("units", "evaluate", model, unit_model[0], shards[0], "--split", "train", "--reference-layer", 1)
    lighthubert(*evaluate, "--clusters", 6, "--update-card")
    assert "units one to one" in (model / "README.md").read_text()

    np.save(tmp_path / "centroids.npy", np.eye(8, 64))
    lighthubert("units", "import", tmp_path / "centroids.npy", model, "--layer", 1)
    said = lighthubert("units", "apply", model, shards[0], tmp_path / "out", "--clusters", 8, "--text-column", "text")
    assert "65 rows in 1 shards" in said

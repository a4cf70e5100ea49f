"""The guides to units and features run from top to bottom: units.md, features.md."""

import numpy as np
import pytest
import soundfile

from lighthubert_hf import LightHubertModel
from tests.guides import ROOT, blocks


@pytest.mark.parametrize("name", ["units.md", "features.md"])
def test_guide_runs(name, make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = make_model(LightHubertModel, search_space=None)
    for folder in ("my-subnet", "my-teacher"):
        model.save_pretrained(folder)
    (tmp_path / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for called in ("one", "two", "three"):
        soundfile.write(tmp_path / "recordings" / f"{called}.wav", 0.1 * rng.standard_normal(8000), 16_000)
    namespace = {"__name__": name}
    for block in blocks(ROOT / "docs" / name, "python"):
        exec(compile("\n" * block.line + block.source, name, "exec"), namespace)
    said = capsys.readouterr().out
    assert {"units.md": "unit edit distance", "features.md": "one.wav 0.5 (24, 64)"}[name] in said

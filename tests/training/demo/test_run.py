"""The demo's parts meet: everything runs for a few steps, can be continued, and refuses what is not its own."""

import json

import pytest

from lighthubert_hf import LightHubertModel, Subnet
from lighthubert_hf.training.demo.report import render_table
from lighthubert_hf.training.demo.run import run_demo
from lighthubert_hf.training.demo.settings import DemoSettings

from ...guides import ROOT, blocks


def test_a_tiny_demo_from_nothing_to_models(tmp_path, monkeypatch):
    settings = DemoSettings.tiny()
    said = []
    results = run_demo(tmp_path / "demo", settings, say=said.append)

    stored = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert (tmp_path / "demo" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "results.md").read_text() == render_table(results)
    assert len(results["subnets"]) >= 2
    for row in results["subnets"]:
        model = LightHubertModel.from_pretrained(tmp_path / "demo" / "subnets" / row["name"])
        assert model.active_subnet == Subnet.from_dict(row["subnet"])
        assert model.num_parameters() == row["parameters"]
        assert row["ms_per_second"] > 0
        assert 0 < row["loss"] < 10
        assert row["name"] in said[-2]
    assert results["search"]["evaluated"] >= settings.search_trials

    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "README.md", "python"):
        script = block.source.replace("subnets/medium", f"subnets/{results['subnets'][0]['name']}")
        exec(compile("\n" * block.line + script, "README.md", "exec"), {})
    assert LightHubertModel.from_pretrained("my-subnet").config.hidden_size == 96

    again = run_demo(tmp_path / "demo", settings, say=said.append)
    measured = ("ms_per_second",)
    without_times = [{k: v for k, v in row.items() if k not in measured} for row in again["subnets"]]
    assert without_times == [{k: v for k, v in row.items() if k not in measured} for row in results["subnets"]]

    with pytest.raises(ValueError, match=r"other settings.*--overwrite"):
        run_demo(tmp_path / "demo", DemoSettings.tiny(seed=1))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is no demo"):
            run_demo(tmp_path, DemoSettings.tiny(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

"""The demo's parts meet: everything runs for a few steps, can be continued, and refuses what is not its own."""

import json
from dataclasses import replace

import pytest
from transformers import AutoModelForCTC, HubertConfig, WavLMConfig, WavLMModel

from lighthubert_hf import LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.hub import standalone
from lighthubert_hf.training.demo.report import render_table
from lighthubert_hf.training.demo.run import run_demo
from lighthubert_hf.training.demo.settings import DemoSettings, num_target_layers, search_space

from ...guides import ROOT, blocks


@pytest.fixture
def loaded(monkeypatch):
    """Which folders were loaded without the package. Here with it, and at once (see tests/hub/test_standalone.py)."""
    folders = []

    def load(*paths):
        folders.extend(path.name for path in paths)
        return [{"shape": [1, 49, LightHubertModel.from_pretrained(path).config.hidden_size]} for path in paths]

    monkeypatch.setattr(standalone, "load_without_package", load)
    return folders


def test_a_tiny_demo_from_nothing_to_models(tmp_path, monkeypatch, loaded):
    settings = DemoSettings.tiny()
    said = []
    results = run_demo(tmp_path / "demo", settings, say=said.append)

    stored = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert (tmp_path / "demo" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert render_table(results) in (tmp_path / "demo" / "results.md").read_text()
    names = [row["name"] for row in results["subnets"]]
    assert names == [name for name in ("small", "medium", "large") if name in names] != []
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    for row in results["subnets"]:
        model = LightHubertModel.from_pretrained(tmp_path / "demo" / "subnets" / row["name"])
        subnet = Subnet.from_dict(row["subnet"])
        assert model.active_subnet == replace(subnet, conv_dim=None) and model.config.conv_dim == list(subnet.conv_dim)
        assert model.num_parameters() == row["parameters"]
        assert row["ms_per_second"] > 0 and row["speed"] > 0
        assert row["macs_per_second"] < results["teacher"]["macs_per_second"]
        assert row["cer"].keys() == results["teacher"]["cer"].keys() == {"test_sentences", "test_voice"}
        assert AutoModelForCTC.from_pretrained(tmp_path / "demo" / "recognisers" / row["name"] / "model")
        assert 0 < row["loss"] < 10
        assert 0 <= row["units"]["nmi"] <= 1
        assert row["name"] in said[-2]
    assert results["search"]["evaluated"] >= settings.search_trials

    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "README.md", "python"):
        script = block.source.replace("subnets/medium", f"subnets/{results['subnets'][0]['name']}")
        exec(compile("\n" * block.line + script, "README.md", "exec"), {})
    assert LightHubertModel.from_pretrained("my-subnet").config.hidden_size == 96

    again = run_demo(tmp_path / "demo", settings, say=said.append)
    assert loaded == names  # once
    measured = ("ms_per_second", "speed")
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


def test_the_space_follows_from_the_teacher():
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 512}
    config = HubertConfig(**sizes, conv_dim=[64] * 7, num_conv_pos_embedding_groups=8)
    space = SearchSpace(**search_space(config))
    assert space.hidden_size == (64, 96, 128) and space.num_attention_heads == (1, 2)
    assert space.ffn_ratio == (2.0, 3.0, 4.0) and space.num_hidden_layers == (3, 4)
    assert space.conv_dim == ((16, 32, 48, 64),) * 3 + ((32, 48, 64),) * 3 + ((64,),)
    for config in (HubertConfig(), HubertConfig(hidden_size=1024, num_attention_heads=16, num_hidden_layers=24)):
        largest = SearchSpace(**search_space(config)).largest()
        assert largest.hidden_size == config.hidden_size and len(largest.conv_dim) == len(config.conv_dim)
    assert [num_target_layers(HubertConfig(num_hidden_layers=layers)) for layers in (1, 4, 12)] == [1, 3, 8]


def test_a_teacher_that_no_supernet_can_start_as_is_refused_before_anything_is_made(tmp_path):
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[4] * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    WavLMModel(config).save_pretrained(tmp_path / "wavlm")
    for name, error, message in (("wavlm", ValueError, "is a wavlm; give"), ("nowhere", FileNotFoundError, "nowhere")):
        with pytest.raises(error, match=message):
            run_demo(tmp_path / "demo", DemoSettings.tiny(teacher=str(tmp_path / name)))
    assert not (tmp_path / "demo").exists()

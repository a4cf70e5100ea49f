"""From a supernet to a model folder. Pushing is tested in tests/hub, where a server is."""

import json

import pytest
import torch
from transformers import AutoModel, HubertModel, Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertModel, Subnet
from lighthubert_hf.costs.profiling import macs_per_second, profile
from lighthubert_hf.hub.card import CardFacts, Latency
from lighthubert_hf.hub.folder import load_facts, save_model_folder
from lighthubert_hf.hub.publishing import extract_to_folder, record_latency

FACTS = CardFacts(
    teacher="acme/teacher",
    license="apache-2.0",
    loss=0.5,
    latency=Latency(1.0, "machine", "command"),
    macs_per_second=1,
)


@pytest.fixture
def supernet(tiny_supernet, tmp_path):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    return save_model_folder(tiny_supernet, tmp_path / "supernet", card=FACTS, processor=extractor)


@pytest.mark.parametrize("name", ["default", "smallest", "largest", "file"])
def test_extracting(supernet, tiny_supernet, tmp_path, name):
    space = tiny_supernet.search_space
    unequal = Subnet(48, (1, 2, 4), (72, 96, 144))
    (tmp_path / "subnet.json").write_text(json.dumps(unequal.to_dict()))
    expected = unequal if name == "file" else getattr(space, name)()
    choice = tmp_path / "subnet.json" if name == "file" else name
    folder = extract_to_folder(supernet, tmp_path / "out", subnet=choice)
    model = AutoModel.from_pretrained(folder).eval()
    assert type(model) is LightHubertModel
    assert model.active_subnet == expected
    wav = torch.randn(1, 1600)
    tiny_supernet.set_active_subnet(expected)
    assert torch.equal(model(wav)[0], tiny_supernet(wav)[0])
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"] is False


def test_the_card_has_the_origin_and_none_of_the_numbers(supernet, tmp_path):
    facts = load_facts(extract_to_folder(supernet, tmp_path / "out", subnet="smallest"))
    assert (facts.teacher, facts.license, facts.supernet) == ("acme/teacher", "apache-2.0", "supernet")
    assert facts.loss is facts.latency is None
    assert facts.macs_per_second > FACTS.macs_per_second  # counted anew
    assert facts.parameters > 0


def test_plain_hubert(supernet, tmp_path):
    subnet = Subnet(64, (4, 2), (96, 192))
    folder = extract_to_folder(supernet, tmp_path / "out", subnet=subnet, plain_hubert=True)
    assert type(AutoModel.from_pretrained(folder)) is HubertModel
    assert json.dumps(subnet.to_dict()) in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="plain HuBERT"):
        extract_to_folder(supernet, tmp_path / "wide", subnet=Subnet(32, (4,), (64,)), plain_hubert=True)
    assert not (tmp_path / "wide").exists()


def test_what_cannot_be_extracted(supernet, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model .*none; check the path") as caught:
        extract_to_folder(tmp_path / "none", tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="'middle' is not default, smallest, largest or a JSON file"):
        extract_to_folder(supernet, tmp_path / "out", subnet="middle")
    (tmp_path / "subnet.json").write_text('{"hidden_size": 3}')
    with pytest.raises(ValueError, match="describes no subnet: a Subnet has exactly the keys"):
        extract_to_folder(supernet, tmp_path / "out", subnet=tmp_path / "subnet.json")
    with pytest.raises(ValueError, match="exceeds the supernet"):
        extract_to_folder(supernet, tmp_path / "out", subnet=Subnet(512, (1,), (8,)))
    static = extract_to_folder(supernet, tmp_path / "static")
    with pytest.raises(ValueError, match="is static"):
        extract_to_folder(static, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_measured_time_goes_on_the_card(tiny_supernet, tmp_path):
    """As `lighthubert profile --update-card` does it: of the longest audio of the smallest batch."""
    model = tiny_supernet.extract_subnet()
    folder = save_model_folder(model, tmp_path / "out")
    assert load_facts(folder).macs_per_second == macs_per_second(model.config)
    measured = profile(model, (0.1, 0.2), (1, 2), repeats=1, progress=False)
    record_latency(folder, measured)
    latency = load_facts(folder).latency
    row = next(row for row in measured.rows if (row.batch, row.seconds) == (1, 0.2))
    assert latency.milliseconds_per_second == 1000 * row.real_time_factor
    assert latency.command == "lighthubert profile MODEL --seconds 0.2 --batch 1"
    assert f"on {latency.machine}, by `{latency.command}`" in (folder / "README.md").read_text()

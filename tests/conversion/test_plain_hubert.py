"""Subnets as plain HuBERT folders."""

import json
import os
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoProcessor,
    HubertForCTC,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from lighthubert_hf import LightHubertForCTC, LightHubertForPreTraining, LightHubertModel, Subnet
from lighthubert_hf.cli import main
from lighthubert_hf.conversion import ConversionError, plain_hubert, save_plain_hubert
from lighthubert_hf.training.finetuning.processors import build_processor

from ..precision import assert_as_exact, in_double


@pytest.fixture
def save_subnet(make_model, tmp_path):
    """`save_subnet(subnet, cls=LightHubertModel)`: a folder with the extracted model, and the model."""

    def save(subnet, cls=LightHubertModel, **overrides):
        model = make_model(cls, **overrides)
        model = model.extract_subnet(subnet) if subnet else model
        model.save_pretrained(tmp_path / "subnet")
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "subnet")
        return tmp_path / "subnet", model

    return save


@pytest.mark.numerical
@pytest.mark.parametrize("front", ["layer", "group"])
@pytest.mark.parametrize(
    "subnet", [Subnet(64, (4,) * 3, (192,) * 3), Subnet(48, (1, 3, 2), (72, 96, 144))], ids=["uniform", "unequal"]
)
def test_plain_folder_computes_the_same(subnet, front, save_subnet, tmp_path, waveforms):
    folder, model = save_subnet(subnet, feat_extract_norm=front)
    report = save_plain_hubert(folder, tmp_path / "plain")
    assert report.max_difference < 1e-9
    plain, info = HubertModel.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values())
    assert type(AutoModel.from_pretrained(tmp_path / "plain")) is HubertModel
    with torch.no_grad():
        found, expected = (m(waveforms, output_hidden_states=True).hidden_states for m in (model, plain))
        exact = in_double(plain)(waveforms.double(), output_hidden_states=True).hidden_states
    assert len(found) == 4
    assert_as_exact(found, expected, exact)


def test_plain_folder_is_what_s3prl_reads(save_subnet, tmp_path):
    save_plain_hubert(save_subnet(Subnet(64, (2, 2), (64, 64)))[0], tmp_path / "plain")
    extractor = json.loads((tmp_path / "plain" / "preprocessor_config.json").read_text())
    assert extractor["do_normalize"] is False
    assert extractor["feature_extractor_type"] == "Wav2Vec2FeatureExtractor"
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "hubert"
    assert not [name for name in os.listdir(tmp_path / "plain") if name.endswith(".py")]


def test_prediction_head_is_left_out(save_subnet, tmp_path):
    folder, _ = save_subnet(Subnet(64, (2, 2), (64, 64)), LightHubertForPreTraining)
    save_plain_hubert(folder, tmp_path / "plain")
    _, info = HubertModel.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values())


def test_recogniser_becomes_a_plain_recogniser(save_subnet, make_model, tmp_path, waveforms, monkeypatch, capsys):
    """By `extract --plain-hubert`: head, tokenizer and processor, for readers that know nothing of this package."""
    processor = build_processor(["<pad>", "<unk>", "|", "a", "b"])
    folder, model = save_subnet(Subnet(64, (2, 2), (64, 64)), LightHubertForCTC, vocab_size=5, pad_token_id=0)
    processor.save_pretrained(folder)
    monkeypatch.setattr(sys, "argv", ["lighthubert", "extract", str(folder), str(tmp_path / "p"), "--plain-hubert"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "LightHubertForCTC, as a plain HubertForCTC" in capsys.readouterr().out
    plain, info = HubertForCTC.from_pretrained(tmp_path / "p", output_loading_info=True)
    assert not any(info.values())
    assert json.loads((tmp_path / "p" / "config.json").read_text())["architectures"] == ["HubertForCTC"]
    with torch.no_grad():
        found, expected = model(waveforms).logits, plain(waveforms).logits
        assert_as_exact(found, expected, in_double(plain)(waveforms.double()).logits)
    read = AutoProcessor.from_pretrained(tmp_path / "p")
    assert type(read) is Wav2Vec2Processor
    assert read.batch_decode([[3, 3, 2, 4]]) == processor.batch_decode([[3, 3, 2, 4]]) == ["a b"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--subnet", "smallest"])
    with pytest.raises(SystemExit):
        main()
    assert "leave out --subnet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("subnet", "overrides", "message"),
    [
        (None, {}, "supernet"),
        (Subnet(32, (4, 2), (64, 64)), {}, "these layers have more"),
        (Subnet(64, (2, 2), (64, 64)), {"attention_window": 4}, "sliding attention_window"),
    ],
    ids=["supernet", "wide attention", "window"],
)
def test_what_no_plain_hubert_computes_is_refused(subnet, overrides, message, save_subnet, tmp_path):
    folder, _ = save_subnet(subnet, **overrides)
    with pytest.raises(ValueError, match=message):
        save_plain_hubert(folder, tmp_path / "plain")
    assert os.listdir(tmp_path) == ["subnet"]


def test_other_folders_are_refused(save_subnet, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model .*nowhere; check the path"):
        save_plain_hubert(tmp_path / "nowhere", tmp_path / "plain")
    folder, _ = save_subnet(Subnet(64, (2, 2), (64, 64)))
    save_plain_hubert(folder, tmp_path / "plain")
    with pytest.raises(ConversionError, match="'hubert' model, not a LightHuBERT"):
        save_plain_hubert(tmp_path / "plain", tmp_path / "again")
    with pytest.raises(ConversionError, match="exists"):
        save_plain_hubert(folder, tmp_path / "plain")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="preprocessor_config"):
        save_plain_hubert(folder, tmp_path / "again")


def test_wrong_result_is_noticed(save_subnet, tmp_path, monkeypatch):
    folder, _ = save_subnet(Subnet(64, (2, 2), (64, 64)))
    complete = plain_hubert.complete_folder

    def spoil(new, *_):
        model = HubertModel.from_pretrained(new)
        with torch.no_grad():
            model.encoder.layers[1].feed_forward.output_dense.weight[3, 5] += 1e-4
        model.save_pretrained(new)
        complete(new)

    monkeypatch.setattr(plain_hubert, "complete_folder", spoil)
    with pytest.raises(ConversionError, match="differs from its source"):
        save_plain_hubert(folder, tmp_path / "plain")
    assert os.listdir(tmp_path) == ["subnet"]

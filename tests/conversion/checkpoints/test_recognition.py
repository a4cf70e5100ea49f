"""Checkpoints of other programs: each is called by its name, with what to do instead."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lighthubert_hf.conversion import ConversionError, convert

SOME = {"weight": torch.zeros(2)}
TORCHAUDIO = {"encoder.transformer.layers.0.attention.k_proj.weight": torch.zeros(2, 2)}
LIGHTNING = {
    "epoch": 1,
    "global_step": 10,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": OrderedDict(SOME),
    "callbacks": {},
    "optimizer_states": [{"state": {}, "param_groups": []}],
    "lr_schedulers": [],
}
FOREIGN = {
    "lightning": (LIGHTNING, r"PyTorch Lightning.*save_pretrained"),
    "lightning with its program's objects": (
        LIGHTNING | {"hyper_parameters": {"root": Path("runs")}},
        r"PyTorch Lightning.*save_pretrained",
    ),
    "s3prl downstream": (
        {
            "Downstream": SOME,
            "Featurizer": SOME,
            "Optimizer": {},
            "Step": 3,
            "Args": argparse.Namespace(),
            "Config": {},
        },
        r"s3prl's downstream.*convert the upstream",
    ),
    "s3prl DistilHuBERT": (
        {"Distiller": SOME, "Config": {"distiller": {}}, "Args": argparse.Namespace(upstream="distiller"), "Step": 1},
        r"DistilHuBERT as s3prl saves it.*ntu-spml/distilhubert",
    ),
    "s3prl's fairseq": (
        {"task_cfg": {}, "model_cfg": {"encoder_layers": 2}, "model_weight": SOME},
        r"fairseq as s3prl stores it.*fairseq's own",
    ),
    "DPHuBERT": (
        {"state_dict": TORCHAUDIO, "config": {"extractor_mode": "group_norm", "extractor_conv_layer_config": []}},
        r"DPHuBERT.*pruned.*convert the HuBERT",
    ),
    "torchaudio": (TORCHAUDIO, r"torchaudio encoder.*transformers version"),
    "transformers' weights": (
        {
            "hubert.encoder.layers.0.attention.k_proj.weight": torch.zeros(2, 2),
            "hubert.feature_projection.projection.weight": torch.zeros(2, 2),
        },
        r"transformers model by themselves; give the folder",
    ),
    "WavLM": (
        {"cfg": {"encoder_layers": 12, "relative_position_embedding": True}, "model": SOME},
        r"Microsoft's WavLM.*as a teacher",
    ),
    "Whisper": ({"dims": {"n_mels": 80}, "model_state_dict": SOME}, "Whisper"),
    "fine-tuned fairseq": (
        {"cfg": None, "args": None, "model": {"w2v_encoder.w2v_model.mask_emb": torch.zeros(2)}},
        r"fine-tuned for recognition.*pre-trained \.pt",
    ),
    "optimiser": ({"state": {0: SOME}, "param_groups": [{"lr": 1e-3}]}, r"optimiser.*saved beside it"),
    "own program": ({"state_dict": SOME, "step": 3}, r"a training program.*save_pretrained"),
}


@pytest.mark.parametrize("old_format", [False, True], ids=["", "old format"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_it_is_and_what_to_do(name, old_format, tmp_path):
    checkpoint, message = FOREIGN[name]
    path = tmp_path / "foreign.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(path, tmp_path / "supernet")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["foreign.ckpt"]


def test_what_no_rule_knows_keeps_the_first_error(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConversionError, match=r'holds no \{"cfg"'):
        convert(tmp_path / "list.pt", tmp_path / "supernet")


def test_other_files_and_folders(tmp_path):
    save_file(SOME, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="give the folder it lies in"):
        convert(tmp_path / "model.safetensors", tmp_path / "supernet")
    (tmp_path / "model.safetensors").unlink()
    torch.save(SOME, tmp_path / "hubert.pt")
    with pytest.raises(ConversionError, match=r"no config\.json.*give the file.*hubert\.pt"):
        convert(tmp_path, tmp_path / "supernet")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"holds one; give .*run/model"):
        convert(tmp_path / "run", tmp_path / "supernet")
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConversionError, match=r"adapter.*merge"):
        convert(tmp_path / "run", tmp_path / "supernet")

"""Saved models are loaded where this package is missing, and one that does not load is named."""

import json

import pytest
from transformers import Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertModel
from lighthubert_hf.hub.standalone import load_without_package


def test_the_folder_that_does_not_load_is_named(make_model, tmp_path):
    model = make_model(LightHubertModel, search_space=None)
    for name in ("whole", "broken"):
        model.save_pretrained(tmp_path / name)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / name)
    config = tmp_path / "broken" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": -1}))
    with pytest.raises(ValueError, match=r"broken does not load without the package: \w+"):
        load_without_package(tmp_path / "whole", tmp_path / "broken")


def test_a_folder_without_a_model_starts_no_process(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no model folder"):
        load_without_package(tmp_path)

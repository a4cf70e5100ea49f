"""The names others rely on (docs/model.md). Changing one is a breaking change."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForPreTraining,
    PreTrainedModel,
)

import lighthubert_hf

PUBLIC = {
    "LightHubertConfig",
    "LightHubertForAudioFrameClassification",
    "LightHubertForCTC",
    "LightHubertForPreTraining",
    "LightHubertForSequenceClassification",
    "LightHubertForXVector",
    "LightHubertModel",
    "SearchSpace",
    "Subnet",
}
AUTO = {
    AutoModel: "LightHubertModel",
    AutoModelForPreTraining: "LightHubertForPreTraining",
    AutoModelForCTC: "LightHubertForCTC",
    AutoModelForAudioClassification: "LightHubertForSequenceClassification",
    AutoModelForAudioXVector: "LightHubertForXVector",
    AutoModelForAudioFrameClassification: "LightHubertForAudioFrameClassification",
}
MODEL_API = (
    "set_active_subnet",
    "active_subnet",
    "subnet_activated",
    "search_space",
    "extract_subnet",
    "to_hubert",
    "freeze_feature_encoder",
    "freeze_base_model",
)
SPACE_API = ("small", "base", "count", "smallest", "largest", "default", "sample", "uniform", "to_dict", "from_dict")
SUBNET_API = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "to_dict", "from_dict")


def test_names_of_the_package():
    assert set(lighthubert_hf.__all__) == PUBLIC
    assert set(dir(lighthubert_hf)) >= PUBLIC
    assert all(getattr(lighthubert_hf, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'LightBert'"):
        lighthubert_hf.LightBert  # noqa: B018


@pytest.mark.parametrize(
    "name", sorted(name for name in PUBLIC if name.startswith("LightHubert") and "Config" not in name)
)
def test_names_of_the_models(name, make_config):
    with torch.device("meta"):
        model = getattr(lighthubert_hf, name)(make_config())
    assert isinstance(model, PreTrainedModel)
    assert all(hasattr(model, attribute) for attribute in MODEL_API)
    assert model.base_model is (model if name == "LightHubertModel" else model.lighthubert)


def test_names_of_spaces_and_subnets():
    space = lighthubert_hf.SearchSpace.small()
    assert all(hasattr(space, attribute) for attribute in SPACE_API)
    assert all(hasattr(space.default(), attribute) for attribute in SUBNET_API)
    assert list(space.to_dict()) == ["hidden_size", "num_attention_heads", "ffn_ratio", "num_hidden_layers"]
    assert list(space.default().to_dict()) == ["hidden_size", "num_attention_heads", "intermediate_size"]


@pytest.mark.parametrize("auto", AUTO, ids=lambda auto: auto.__name__)
def test_auto_classes(auto, make_config):
    with torch.device("meta"):
        model = auto.from_config(make_config())
    assert type(model) is getattr(lighthubert_hf, AUTO[auto])
    assert type(AutoConfig.for_model("lighthubert")) is lighthubert_hf.LightHubertConfig

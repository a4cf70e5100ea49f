"""Who says that padding changes nothing, and whether it is true."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lighthubert_hf import LightHubertForCTC, LightHubertModel
from lighthubert_hf.padding import is_padding_invariant

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LENGTHS = (4000, 2500)


def worst_change(model) -> float:
    """How far the short row of a padded batch is from the same row alone, at most, on the frames that it has."""
    torch.manual_seed(1)
    audio, mask = torch.randn(2, LENGTHS[0]), torch.ones(2, LENGTHS[0], dtype=torch.long)
    audio[1, LENGTHS[1] :] = 0
    mask[1, LENGTHS[1] :] = 0
    with torch.no_grad():
        together = model(audio, attention_mask=mask).last_hidden_state[1]
        alone = model(audio[1:, : LENGTHS[1]]).last_hidden_state[0]
    return float((together[: len(alone)] - alone).abs().max())


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_foreign_models(family, norm):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES, feat_extract_norm=norm)).eval()
    assert is_padding_invariant(model) == (norm == "layer")
    assert (worst_change(model) < 1e-4) == is_padding_invariant(model)


def test_data2vec_is_not_though_it_has_layer_norms_only():
    sizes = SIZES | {"num_conv_pos_embeddings": 2}
    model = AutoModel.from_config(AutoConfig.for_model("data2vec-audio", **sizes)).eval()
    assert not is_padding_invariant(model)
    assert worst_change(model) > 1e-2


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_lighthuberts(norm, make_model):
    model = make_model(LightHubertModel, feat_extract_norm=norm)
    assert is_padding_invariant(model)
    assert worst_change(model) < 1e-4
    model.train().requires_grad_(True)  # the modules that training runs
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.apply_spec_augment = False
    assert worst_change(model) < 1e-4


def test_models_with_heads_answer_for_their_encoders(make_model):
    assert is_padding_invariant(make_model(LightHubertForCTC, search_space=None, feat_extract_norm="group"))

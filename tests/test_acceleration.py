import pickle

import pytest
import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from lighthubert_hf.acceleration import accelerate

SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MODELS = {HubertConfig: HubertModel, Wav2Vec2Config: Wav2Vec2Model, WavLMConfig: WavLMModel}
BOTH = ("feature_extractor", "encoder.pos_conv_embed")


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("config", MODELS)
def test_the_same_outputs_from_the_same_parameters(config, norm):
    torch.manual_seed(0)
    model = MODELS[config](config(feat_extract_norm=norm, **SMALL)).eval().requires_grad_(False)
    audio, mask = torch.randn(2, 12_000), torch.ones(2, 12_000, dtype=torch.long)
    mask[1, 9000:] = 0
    wanted = model(audio, mask).last_hidden_state
    parameters = dict(model.named_parameters())
    assert accelerate(model) == BOTH
    torch.testing.assert_close(model(audio, mask).last_hidden_state, wanted, rtol=0, atol=2e-5)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert accelerate(model) == ()
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(audio, mask).last_hidden_state, wanted, rtol=0, atol=2e-5)


def test_an_accelerated_model_saves_loads_and_trains(tmp_path):
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**SMALL, hidden_dropout=0.0, apply_spec_augment=False)).eval()
    audio = torch.randn(1, 6000)
    accelerate(model)
    model.save_pretrained(tmp_path)
    plain = HubertModel.from_pretrained(tmp_path)
    torch.testing.assert_close(model(audio).last_hidden_state, plain(audio).last_hidden_state, rtol=0, atol=2e-5)
    for each in (model, plain):
        each(audio).last_hidden_state.square().mean().backward()
    for one, other in zip(model.parameters(), plain.parameters()):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)
    model.feature_extractor._freeze_parameters()
    assert not any(p.requires_grad for p in model.feature_extractor.parameters())


def test_parts_of_another_make_or_with_hooks_are_left_alone():
    config = Data2VecAudioConfig(**SMALL | {"num_conv_pos_embeddings": 5})
    model = Data2VecAudioModel(config).eval()
    assert "encoder.pos_conv_embed" not in accelerate(model)
    hubert = HubertModel(HubertConfig(**SMALL))
    hubert.feature_extractor.conv_layers[0].register_forward_hook(lambda *_: None)
    assert accelerate(hubert) == ("encoder.pos_conv_embed",)

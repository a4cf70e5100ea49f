"""Models of the HuBERT family as supernets of their own shape."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoFeatureExtractor,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForXVector,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.conversion import ConversionError, convert
from lighthubert_hf.conversion.original.names import to_original

from ..golden import draw
from ..precision import assert_as_exact, in_double

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
MODELS = {
    "HuBERT Base": (HubertModel, HubertConfig, {}),
    "HuBERT Large": (HubertModel, HubertConfig, LARGE),
    "HuBERT without feature norm": (HubertModel, HubertConfig, {"feat_proj_layer_norm": False}),
    "HuBERT CTC": (HubertForCTC, HubertConfig, {}),
    "HuBERT that masks nothing": (HubertModel, HubertConfig, {"mask_time_prob": 0.0}),
    "wav2vec 2.0": (Wav2Vec2Model, Wav2Vec2Config, {}),
    "wav2vec 2.0 Large": (Wav2Vec2Model, Wav2Vec2Config, LARGE),
    "wav2vec 2.0 pre-training": (Wav2Vec2ForPreTraining, Wav2Vec2Config, {}),
    "wav2vec 2.0 x-vector": (Wav2Vec2ForXVector, Wav2Vec2Config, {}),
}


def make(cls, config_cls, **overrides):
    model = cls(config_cls(**SIZES | overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            name = name.replace("parametrizations.weight.original0", "weight_g")
            parameter.copy_(draw(name, tuple(parameter.shape), 3))
    return model


def save(model, folder, do_normalize=True):
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return folder


@torch.no_grad()
def assert_as_source(model, source, waveforms):
    exact = in_double(source)(waveforms.double()).last_hidden_state
    assert_as_exact(model(waveforms).last_hidden_state, source(waveforms).last_hidden_state, exact)


@pytest.mark.numerical
@pytest.mark.parametrize("importance_sorting", [False, True], ids=["", "sorted"])
@pytest.mark.parametrize("name", MODELS)
def test_largest_subnet_equals_the_source(name, importance_sorting, tmp_path, waveforms):
    cls, config_cls, overrides = MODELS[name]
    source = make(cls, config_cls, **overrides)
    save(source, tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "supernet", importance_sorting=importance_sorting)
    assert report.max_difference < 1e-9
    model, info = LightHubertModel.from_pretrained(tmp_path / "supernet", output_loading_info=True)
    assert not any(info.values())
    assert model.active_subnet == model.search_space.largest() == model.config.architecture
    assert len(model.search_space) > 1
    assert_as_source(model, source.base_model if cls is not Wav2Vec2ForXVector else source.wav2vec2, waveforms)
    heads = {key.split(".")[0] for key in report.dropped}
    assert bool(heads) == (cls not in (HubertModel, Wav2Vec2Model))
    assert not heads & {"encoder", "feature_projection", "masked_spec_embed"}
    assert any("mask embedding" in note for note in report.notes) == (name == "HuBERT that masks nothing")


def test_every_subnet_of_the_default_space_runs(tmp_path, waveforms, random_subnets):
    save(make(HubertModel, HubertConfig), tmp_path / "source", do_normalize=False)
    convert(tmp_path / "source", tmp_path / "supernet", verify=False)
    model = LightHubertModel.from_pretrained(tmp_path / "supernet")
    for subnet in [model.search_space.smallest(), *random_subnets(model.search_space, 5)]:
        model.set_active_subnet(subnet)
        assert model(waveforms).last_hidden_state.isfinite().all()
    assert not AutoFeatureExtractor.from_pretrained(tmp_path / "supernet").do_normalize


def test_given_space_and_settings(tmp_path):
    save(make(HubertModel, HubertConfig, attention_dropout=0.3, layerdrop=0.2), tmp_path / "source")
    space = SearchSpace((32, 48), (1, 2), (1.5, 2.0), (2, 3))
    report = convert(tmp_path / "source", tmp_path / "supernet", search_space=space)
    assert report.verified == ("the full model",)
    config = LightHubertConfig.from_pretrained(tmp_path / "supernet")
    assert SearchSpace.from_dict(config.search_space) == space
    assert (config.attention_dropout, config.layerdrop, config.target_size) == (0.3, 0.2, 64)


@pytest.mark.parametrize("style", ["weight_g", "bin", "shards", "bin shards"])
def test_ways_to_store_weights(style, tmp_path):
    source = make(HubertModel, HubertConfig)
    folder = save(source, tmp_path / "source")
    if style == "shards":
        (folder / "model.safetensors").unlink()
        source.save_pretrained(folder, max_shard_size="100KB")
        assert not (folder / "model.safetensors").exists()
    elif style != "weight_g":
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        halves = [dict(list(weights.items())[half::2]) for half in (0, 1)]
        if style == "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            for number, half in enumerate(halves):
                torch.save(half, folder / f"pytorch_model-{number}.bin")
            files = {name: f"pytorch_model-{number}.bin" for number, half in enumerate(halves) for name in half}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    else:
        weights = load_file(folder / "model.safetensors")
        prefix = "encoder.pos_conv_embed.conv."
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            weights[f"{prefix}{old}"] = weights.pop(f"{prefix}parametrizations.weight.{new}")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert convert(folder, tmp_path / "supernet").max_difference < 1e-9


@pytest.mark.parametrize(
    ("cls", "config_cls", "overrides", "message"),
    [
        (WavLMModel, WavLMConfig, {}, "gated relative position bias .* as a teacher"),
        (HubertModel, HubertConfig, {"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True is not supported"),
        (Wav2Vec2Model, Wav2Vec2Config, {"add_adapter": True}, "adapters"),
        (Wav2Vec2Model, Wav2Vec2Config, LARGE | {"adapter_attn_dim": 4}, "adapters"),
        (Data2VecAudioModel, Data2VecAudioConfig, {}, "'data2vec-audio' model; supernets are made of hubert"),
    ],
    ids=["WavLM", "batch norm", "adapter", "attention adapter", "data2vec"],
)
def test_refusals_say_why(cls, config_cls, overrides, message, tmp_path):
    model = cls(config_cls(**SIZES | overrides))
    with pytest.raises(ConversionError, match=message):
        convert(save(model, tmp_path / "source"), tmp_path / "supernet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_wavlm_without_position_bias(tmp_path):
    model = make(WavLMModel, WavLMConfig)
    with torch.no_grad():
        model.encoder.layers[0].attention.rel_attn_embed.weight.zero_()
    report = convert(save(model, tmp_path / "source"), tmp_path / "supernet")
    assert report.max_difference < 1e-9
    assert {name.split(".")[4].removesuffix("_const").removesuffix("_linear") for name in report.dropped} == {
        "gru_rel_pos",
        "rel_attn_embed",
    }


def test_unknown_audio_preparation_is_an_error(tmp_path):
    make(HubertModel, HubertConfig).save_pretrained(tmp_path / "source")
    with pytest.raises(ConversionError, match=r"do_normalize.*preprocessor_config\.json"):
        convert(tmp_path / "source", tmp_path / "supernet")


@pytest.mark.parametrize("overrides", [{}, LARGE], ids=["Base", "Large"])
def test_fairseq_hubert(overrides, tmp_path, waveforms):
    """A file in fairseq's layout, made from a transformers model, becomes a supernet that computes the same."""
    source = make(HubertModel, HubertConfig, **overrides)
    norm = source.config.feat_extract_norm
    weights = {
        to_original(name, num_hidden_layers=3, feat_extract_norm=norm): tensor.clone()
        for name, tensor in source.state_dict().items()
    }
    weights |= {"final_proj.weight": torch.zeros(8, 64), "final_proj.bias": torch.zeros(8)}
    cfg = {
        "_name": "hubert",
        "extractor_mode": {"layer": "layer_norm", "group": "default"}[norm],
        "encoder_layers": 3,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 160,
        "encoder_attention_heads": 4,
        "activation_fn": "gelu",
        "attention_dropout": 0.25,
        "layer_norm_first": source.config.do_stable_layer_norm,
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        "conv_bias": source.config.conv_bias,
        "conv_pos": 16,
        "conv_pos_groups": 4,
    }
    checkpoint = {"args": None, "cfg": {"model": cfg, "task": {"normalize": False}}, "model": weights}
    torch.save(checkpoint, tmp_path / "hubert.pt")
    report = convert(tmp_path / "hubert.pt", tmp_path / "supernet")
    assert report.max_difference < 1e-9
    assert report.kind == "fairseq HuBERT"
    model = LightHubertModel.from_pretrained(tmp_path / "supernet")
    assert_as_source(model, source, waveforms)
    assert (model.config.head_dim, model.config.attention_dropout) == (16, 0.25)
    assert not AutoFeatureExtractor.from_pretrained(tmp_path / "supernet").do_normalize


@pytest.mark.parametrize("cls", [HubertModel, HubertForCTC])
def test_what_rides_along_is_dropped_by_name(cls, tmp_path, waveforms):
    """As ContentVec's `final_proj` on the Hub, beside a bare encoder or beside a head."""
    source = make(cls, HubertConfig)
    folder = save(source, tmp_path / "source")
    riders = {
        "final_proj.weight": torch.ones(8, 64),
        "final_proj.bias": torch.ones(8),
        "label_embs_concat": torch.ones(5, 8),
        "quantizer.codevectors": torch.ones(1, 4, 8),
        "my_classifier.dense.weight": torch.ones(3, 64),
    }
    weights = load_file(folder / "model.safetensors")
    save_file(weights | riders, folder / "model.safetensors", metadata={"format": "pt"})
    report = convert(folder, tmp_path / "supernet")
    heads = {name for name in weights if cls is HubertForCTC and name.startswith("lm_head")}
    assert set(report.dropped) == riders.keys() | heads
    assert "final_proj.weight" in str(report)
    assert_as_source(LightHubertModel.from_pretrained(tmp_path / "supernet"), source.base_model, waveforms)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    folder = save(make(HubertModel, HubertConfig), tmp_path / "source")
    weights = load_file(folder / "model.safetensors")
    save_file({f"upstream.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ConversionError, match=r"no weights of a hubert encoder, but upstream\..*save it from there"):
        convert(folder, tmp_path / "supernet")

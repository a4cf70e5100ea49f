"""The original's checkpoints to supernet folders and back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.conversion import ConversionError, convert
from lighthubert_hf.conversion.layout.spaces import read_space
from lighthubert_hf.conversion.original.config import (
    FAIRSEQ_HUBERT,
    STAGE_1,
    STAGE_2,
    Settings,
    conv_layers,
    kind_of,
    published_space,
)
from lighthubert_hf.conversion.original.names import UnknownNameError, from_original, to_original
from lighthubert_hf.model.search_space import PUBLISHED_SPACES

from ...golden import (
    GOLDEN_VECTORS,
    SHARED,
    assert_as_the_original,
    golden_description,
    original_checkpoint,
    original_shapes,
)
from ...precision import in_double

DESCRIPTION = golden_description()
DROPPED = {"label_embs_concat", "final_proj.weight", "final_proj.bias"}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The golden checkpoint and the supernet converted from it, with the report."""
    folder = tmp_path_factory.mktemp("golden")
    path, supernet = folder / "tiny-1.pt", folder / "supernet"
    torch.save(original_checkpoint(DESCRIPTION["cfg"], 1), path)
    report = convert(path, supernet, search_space=DESCRIPTION["search_space"])
    return path, supernet, report


def test_golden_checkpoint_converts_and_verifies(golden):
    _, supernet, report = golden
    assert report.max_difference < 1e-9
    assert set(report.verified) == {"smallest", "default", "largest"}
    assert set(report.dropped) == DROPPED
    model, info = LightHubertForPreTraining.from_pretrained(supernet, output_loading_info=True)
    assert not any(info.values())
    assert report.num_parameters == model.num_parameters()
    assert model.active_subnet == SearchSpace.from_dict(DESCRIPTION["search_space"]).default()


def test_converted_golden_checkpoint_computes_what_the_original_does(golden):
    vectors, model = load_file(GOLDEN_VECTORS), LightHubertForPreTraining.from_pretrained(golden[1])
    exact = in_double(model)
    for name, entry in DESCRIPTION["subnets"].items():
        if entry["attention_window"] is None:
            for twin in (model, exact):
                twin.set_active_subnet(Subnet.from_dict(entry["subnet"]))
            with torch.no_grad():
                out, precise = (twin(vectors["wav0"][None]) for twin in (model, exact))
            for key, vector in (("last_hidden_state", "last"), ("predictions", "prediction")):
                assert_as_the_original(out[key][0], vectors[f"{name}.wav0.{vector}"], precise[key][0])


def test_golden_checkpoint_goes_back(golden, tmp_path):
    path, supernet, _ = golden
    report = convert(supernet, tmp_path / "back.pt", to_original=True)
    assert report.max_difference < 1e-9
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "back.pt"))
    assert before["model"].keys() - after["model"].keys() == DROPPED
    assert all(torch.equal(before["model"][name], weight) for name, weight in after["model"].items())
    assert after["cfg"]["task"] == {"normalize": True, "sample_rate": 16000}
    settings, original = after["cfg"]["model"], before["cfg"]["model"]
    layers = settings.pop("conv_feature_layers"), original["conv_feature_layers"]
    assert conv_layers(layers[0]) == conv_layers(layers[1])
    differ = {name for name, value in settings.items() if original.get(name) != value}
    assert differ == {"attention_dropout"}  # never applied there, and here neither
    again = convert(tmp_path / "back.pt", tmp_path / "again", search_space=DESCRIPTION["search_space"])
    assert again.dropped == ()
    weights = [load_file(folder / "model.safetensors") for folder in (supernet, tmp_path / "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())


def test_supernet_folder_is_complete(golden):
    _, supernet, _ = golden
    config = json.loads((supernet / "config.json").read_text())
    assert config["search_space"] == DESCRIPTION["search_space"]
    assert (supernet / "README.md").is_file()
    extractor = AutoFeatureExtractor.from_pretrained(supernet)
    assert extractor.do_normalize
    assert extractor.return_attention_mask
    assert (supernet / "processor_config.json").is_file()
    assert type(AutoModel.from_pretrained(supernet)) is LightHubertModel
    _, info = LightHubertModel.from_pretrained(supernet, output_loading_info=True)
    assert not info["missing_keys"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the full golden vectors are not beside the checkout")
def test_every_golden_vector_of_single_utterances(tmp_path):
    described = json.loads((SHARED / "tiny-1.json").read_text())
    vectors = load_file(SHARED / "tiny-1.safetensors")
    convert(SHARED / "tiny-1.pt", tmp_path / "supernet", search_space=SHARED / "tiny-1.json", verify=False)
    model = LightHubertForPreTraining.from_pretrained(tmp_path / "supernet")
    exact, compared = in_double(model), 0
    for name, subnet in described["subnets"].items():
        if name == "window16":
            continue
        for twin in (model, exact):
            twin.set_active_subnet(Subnet(subnet["embed_dim"], subnet["heads_num"], subnet["ffn_embed"]))
        for wav in ("wav0", "wav1", "wav2"):
            with torch.no_grad():
                states, precise = (
                    twin(vectors[wav][None], output_hidden_states=True).hidden_states for twin in (model, exact)
                )
            for index in range(1, len(states)):
                vector = vectors[f"{name}.{wav}.hidden{index}"]
                assert_as_the_original(states[index][0], vector, precise[index][0])
                compared += 1
    assert compared > 200


VARIANTS = {
    "as published": {},
    "group norm": {"extractor_mode": "default"},
    "norm first": {"layer_norm_first": True},
    "biased convolutions": {"conv_bias": True},
    "relu": {"activation_fn": "relu"},
    "odd kernel": {"conv_pos": 15},
    "other groups": {"conv_pos_groups": 4},
    "no head": {"layer_pred_num": "0,0"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_verify(name, save_original, small_space, tmp_path):
    report = convert(save_original(**VARIANTS[name]), tmp_path / "supernet", search_space=small_space)
    assert report.max_difference < 1e-9
    cls = LightHubertModel if name == "no head" else LightHubertForPreTraining
    config = LightHubertConfig.from_pretrained(tmp_path / "supernet")
    assert config.architectures == [cls.__name__]
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "supernet").do_normalize == (name != "group norm")


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
def test_name_map_is_its_own_inverse(cfg, small_cfg):
    cfg = small_cfg | cfg
    style = {
        "num_hidden_layers": cfg["encoder_layers"],
        "feat_extract_norm": {"layer_norm": "layer", "default": "group"}[cfg["extractor_mode"]],
    }
    ours = {name: from_original(name) for name in original_shapes(cfg)}
    assert {name for name, target in ours.items() if target is None} == DROPPED
    targets = [target for target in ours.values() if target]
    assert len(set(targets)) == len(targets)
    assert all(to_original(target, **style) == name for name, target in ours.items() if target)


@pytest.mark.parametrize("name", ["mask_embedding", "encoder.layers.0.fc3.weight", "encoder.layers.x.fc1.weight", ""])
def test_names_outside_the_map_are_unknown(name):
    with pytest.raises(UnknownNameError):
        from_original(name)
    with pytest.raises(UnknownNameError):
        to_original(name, num_hidden_layers=12, feat_extract_norm="layer")


def test_settings_are_taken_over(save_original, small_space, tmp_path):
    path = save_original(dropout=0.2, encoder_layerdrop=0.3, dropout_input=0.4, mask_prob=0.5, mask_length=7)
    convert(path, tmp_path / "supernet", search_space=small_space, verify=False)
    config = LightHubertConfig.from_pretrained(tmp_path / "supernet")
    assert config.attention_dropout == 0.0
    assert (config.hidden_dropout, config.layerdrop, config.feat_proj_dropout) == (0.2, 0.3, 0.4)
    assert (config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks) == (0.5, 7, 2)
    assert (config.target_size, config.head_dim) == (24, 64)


def test_defaults_are_taken_with_a_note(save_original, small_space, tmp_path):
    path = save_original(lambda checkpoint: checkpoint["cfg"]["model"].pop("encoder_layerdrop"))
    report = convert(path, tmp_path / "supernet", search_space=small_space, verify=False)
    assert any("encoder_layerdrop=0.0" in note for note in report.notes)


def test_newer_spelling_of_weight_norm(save_original, small_space, tmp_path):
    def respell(checkpoint):
        weights = checkpoint["model"]
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            weights[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = weights.pop(f"encoder.pos_conv.0.{old}")

    report = convert(save_original(respell), tmp_path / "supernet", search_space=small_space)
    assert report.max_difference < 1e-9


def test_half_precision_stays(save_original, small_space, tmp_path):
    def halve(checkpoint):
        for name, weight in checkpoint["model"].items():
            checkpoint["model"][name] = weight.half()

    assert convert(save_original(halve), tmp_path / "supernet", search_space=small_space).max_difference < 1e-9
    assert LightHubertModel.from_pretrained(tmp_path / "supernet").dtype == torch.float16


def published(name, supernet_file=""):
    return Settings({"model": {"_name": name, "pruner_supernet": f"config/supernet/{supernet_file}"}}, "model")


def test_published_kinds_are_told_apart():
    stage_1, small, base = (
        published(*args) for args in ((STAGE_1,), (STAGE_2, "Supernet-Small.yaml"), (STAGE_2, "Supernet-Base-v2.yaml"))
    )
    assert [kind_of(model) for model in (stage_1, small, base)] == [STAGE_1, STAGE_2, STAGE_2]
    spaces = [published_space(model, kind_of(model)) for model in (stage_1, small, base)]
    assert spaces == [SearchSpace.base(), SearchSpace.small(), SearchSpace.base()]
    assert kind_of(published("hubert")) == FAIRSEQ_HUBERT
    for name in ("wav2vec2", None, "hubert_ctc"):
        with pytest.raises(ConversionError, match="supported"):
            kind_of(published(name))
    with pytest.raises(ConversionError, match="--search-space"):
        published_space(published(STAGE_2, "mine.yaml"), STAGE_2)


def test_published_space_must_fit_the_weights(save_original, tmp_path):
    with pytest.raises(ConversionError, match=r"up to 512 wide, but its weights are 128 wide; pass .* --search-space"):
        convert(save_original(), tmp_path / "supernet")


def test_stage_1_starts_at_its_largest_subnet(save_original, small_space, tmp_path):
    path = save_original(_name=STAGE_1)
    report = convert(path, tmp_path / "supernet", search_space=small_space)
    assert "stage 1" in report.kind
    config = LightHubertConfig.from_pretrained(tmp_path / "supernet")
    assert Subnet.from_dict(config.default_subnet) == small_space.largest()


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"layer_pred_num": "1,1"}, "one prediction from the last of 2 layers"),
        ({"layer_pred_num": "0,2"}, "one prediction from the last of 2 layers"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer'"),
        ({"pos_conv_depth": 5}, "pos_conv_depth is '5'"),
        ({"encoder_attention_heads": 4}, "64 channels"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"activation_fn": "gelu_fast"}, "supported: 'gelu', 'relu'"),
    ],
)
def test_what_a_supernet_cannot_be_is_refused(cfg, message, save_original, small_space, tmp_path):
    with pytest.raises(ConversionError, match=message):
        convert(save_original(**cfg), tmp_path / "supernet", search_space=small_space)
    assert not (tmp_path / "supernet").exists()


@pytest.mark.parametrize(
    ("text", "layers"),
    [("[(8,10,5)]", 1), ("[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2", 7), ("[(8, 10, 5), (8, 3, 2)]", 2)],
)
def test_conv_layers(text, layers):
    parsed = conv_layers(text)
    assert len(parsed) == layers
    assert parsed[0] == (8, 10, 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "8",
        "[(8,10)]",
        "[(8,10,0)]",
        "[(8,10,5)] * 10**9",
        "__import__('os').system('x')",
        "[(8,10,5)",
        "[8]",
    ],
)
def test_conv_layers_are_not_evaluated(text):
    with pytest.raises(ConversionError, match="conv_feature_layers"):
        conv_layers(text)


def test_importance_sorting_is_for_untrained_subnets(save_original, small_space, tmp_path):
    with pytest.raises(ConversionError, match="importance sorting would undo"):
        convert(save_original(), tmp_path / "a", search_space=small_space, importance_sorting=True)
    report = convert(save_original(_name=STAGE_1), tmp_path / "b", search_space=small_space, importance_sorting=True)
    assert report.verified == ("the largest subnet",)
    assert report.max_difference < 1e-9


def test_the_original_cannot_hold_every_model(make_model, tmp_path):
    def save(model, name):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
        return tmp_path / name

    supernet = make_model(LightHubertModel)
    with pytest.raises(ConversionError, match="4 layers, not 12; heads of 16 channels, not 64"):
        convert(save(supernet, "supernet"), tmp_path / "x.pt", to_original=True)
    with pytest.raises(ConversionError, match="static subnet"):
        convert(save(supernet.extract_subnet(), "static"), tmp_path / "x.pt", to_original=True)
    with pytest.raises(ConversionError, match="do not apply"):
        convert(tmp_path / "supernet", tmp_path / "x.pt", to_original=True, importance_sorting=True)
    elastic = make_model(LightHubertModel, search_space=replace(supernet.search_space, conv_dim=(8, 16)))
    with pytest.raises(ConversionError, match="a choice of channels in the front end"):
        convert(save(elastic, "elastic"), tmp_path / "x.pt", to_original=True)
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("style", ["ours.json", "original.yaml"])
def test_search_space_files(style, save_original, small_space, tmp_path):
    file = tmp_path / style
    if style == "ours.json":
        file.write_text(json.dumps(small_space.to_dict()))
    else:
        file.write_text(
            "search_space:\n  atten_dim: [64, 128]\n  embed_dim: [64, 96, 128]\n  heads_num:\n    - 1\n    - 2\n"
            "  ffn_ratio: [1.0, 1.5, 2.0]\n  layer_num: [1, 2]\nsubnet: {}\n"
        )
    convert(save_original(), tmp_path / "supernet", search_space=file, verify=False)
    config = LightHubertConfig.from_pretrained(tmp_path / "supernet")
    assert SearchSpace.from_dict(config.search_space) == small_space


def test_a_space_with_a_choice_of_channels(save_original, small_space, tmp_path):
    """Whatever the default's channels, what is compared with the original is the whole front end."""
    source = save_original()
    convert(source, tmp_path / "fixed", search_space=small_space)
    layers = LightHubertConfig.from_pretrained(tmp_path / "fixed").conv_dim
    space = replace(small_space, conv_dim=tuple((size // 2, size) for size in layers))
    report = convert(source, tmp_path / "elastic", search_space=space)
    assert report.verified == ("smallest", "default", "largest")
    assert report.max_difference < 1e-5
    model = LightHubertModel.from_pretrained(tmp_path / "elastic")
    assert model.search_space == space
    assert model.active_subnet == space.default()
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("fixed", "elastic")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("name", PUBLISHED_SPACES)
def test_published_spaces_by_name(name):
    assert read_space(name) == read_space(Path(name)) == PUBLISHED_SPACES[name]()


@pytest.mark.parametrize("text", ["", "[1, 2", "3", '{"embed_dim": [64], "colour": [1]}', '{"hidden_size": [64]}'])
def test_search_space_files_that_are_none(text, save_original, tmp_path):
    (tmp_path / "space").write_text(text)
    with pytest.raises(ConversionError, match="space"):
        convert(save_original(), tmp_path / "supernet", search_space=tmp_path / "space")


def test_search_space_that_does_not_fit(save_original, tmp_path):
    space = SearchSpace((64, 256), (1, 2), (2.0,), (2,))
    with pytest.raises(ConversionError, match="hidden_size 256 exceeds the supernet's 128"):
        convert(save_original(), tmp_path / "supernet", search_space=space)

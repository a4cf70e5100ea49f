"""Whatever is wrong with weights, whichever command reads them: one line that names the file and what it is about."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, HubertForCTC, HubertModel, Wav2Vec2Model, WavLMModel, logging

from lighthubert_hf import LightHubertForCTC, LightHubertForPreTraining, LightHubertModel
from lighthubert_hf.conversion import convert, export_onnx, save_plain_hubert
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.publishing import extract_to_folder, load_supernet, push_folder, push_model
from lighthubert_hf.loading import (
    check_loads,
    load,
    load_config,
    load_encoder,
    load_feature_extractor,
    load_lighthubert,
)
from lighthubert_hf.training.distillation.recipe import StudentSection, TeacherSection
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import load_teacher
from lighthubert_hf.training.finetuning.model import build_model
from lighthubert_hf.training.finetuning.recipe import PretrainedSection
from lighthubert_hf.training.superb.upstream import load_upstream
from lighthubert_hf.weights import WeightsError

from .tiny import TINY

KEY = "encoder.layers.1.attention.q_proj.weight"
SHAPE_FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "conv_dim")
SMALL = {name: TINY[name] for name in (*SHAPE_FIELDS, "num_conv_pos_embeddings", "num_conv_pos_embedding_groups")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model):
    """A folder of every kind of model that is read."""
    root = tmp_path_factory.mktemp("models")
    save_model_folder(make_model(LightHubertForPreTraining), root / "supernet")
    save_model_folder(make_model(LightHubertModel, search_space=None), root / "static")
    save_model_folder(make_model(LightHubertForCTC, search_space=None), root / "ctc")
    for cls in (HubertModel, HubertForCTC, Wav2Vec2Model, WavLMModel):
        torch.manual_seed(0)
        save_model = cls(cls.config_class(**SMALL, vocab_size=12))
        save_model.save_pretrained(root / cls.__name__)
    return root


FOREIGN = ["HubertModel", "HubertForCTC", "Wav2Vec2Model", "WavLMModel"]
ALL = ["supernet", "static", "ctc", *FOREIGN]


def changed(change):
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        state = load_file(file)
        key = next(name for name in state if name.endswith(KEY))
        state = change(state, key)
        save_file(state, file, metadata={"format": "pt"})

    return apply


def rewritten(change):
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return apply


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


def infinite(state, key):
    state[key][3, 2] = float("inf")
    return state


FAULTS = {
    "one missing": (changed(lambda state, key: without(state, KEY)), "lacks 1 weights .*" + KEY),
    "a layer missing": (
        changed(lambda state, key: without(state, "encoder.layers.1.")),
        r"lacks \d+ weights .*encoder\.layers\.1\.",
    ),
    "one more": (
        changed(lambda state, key: state | {key.replace("layers.1", "layers.9"): state[key].clone()}),
        r"has 1 weights that .*encoder\.layers\.9\.",
    ),
    "another shape": (changed(lambda state, key: state | {key: torch.ones(3, 5)}), r"shapes .*q_proj.*\(3, 5\)"),
    "integers": (changed(lambda state, key: state | {key: state[key].to(torch.int8)}), "floating-point.*I8.*q_proj"),
    "8-bit floats": (
        changed(lambda state, key: state | {key: state[key].to(torch.float8_e4m3fn)}),
        "floating-point.*F8.*q_proj",
    ),
    "NaN": (changed(lambda state, key: state | {key: torch.full_like(state[key], float("nan"))}), "NaN.*q_proj"),
    "infinite": (changed(infinite), "infinite.*q_proj"),
    "cut short": (rewritten(lambda content: content[:-7]), r"model\.safetensors is truncated or damaged"),
    "no weights": (rewritten(lambda content: b"no weights at all"), r"model\.safetensors is truncated or damaged"),
    "empty": (rewritten(lambda content: b""), r"model\.safetensors is truncated or damaged"),
    "zeros": (rewritten(lambda content: bytes(len(content))), r"model\.safetensors is truncated or damaged"),
}


@pytest.fixture
def faulty(folders, tmp_path):
    """`faulty(kind, fault)`: a folder with the fault."""

    def make(kind, fault):
        shutil.copytree(folders / kind, tmp_path / kind)
        FAULTS[fault][0](tmp_path / kind)
        return tmp_path / kind

    return make


def refused(folder, fault, call):
    with pytest.raises(ValueError, match=FAULTS[fault][1]) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and f"{folder}" in message and len(message) < 900


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ALL)
def test_a_fault_is_one_line(faulty, kind, fault):
    folder = faulty(kind, fault)
    refused(folder, fault, lambda: load_encoder(folder))
    refused(folder, fault, lambda: check_loads(folder))
    if kind not in FOREIGN:
        refused(folder, fault, lambda: load_lighthubert(str(folder)))


READERS = {
    "extract": ("supernet", lambda folder, out: extract_to_folder(folder, out)),
    "push": ("static", lambda folder, out: push_folder(folder, "acme/light", dry_run=out)),
    "push a head": ("ctc", lambda folder, out: push_folder(folder, "acme/light", dry_run=out)),
    "evaluate": ("static", lambda folder, out: load_upstream(folder)),
    "evaluate another": ("WavLMModel", lambda folder, out: load_upstream(folder)),
    "teacher": ("HubertModel", lambda folder, out: load_teacher(TeacherSection(path=str(folder)))),
    "student": (
        "supernet",
        lambda folder, out: build_student(
            StudentSection(init=str(folder)), HubertModel(HubertModel.config_class(**SMALL)), 0
        ),
    ),
    "finetune": (
        "static",
        lambda folder, out: build_model(PretrainedSection(path=str(folder)), _auto_ctc(), config_changes={}),
    ),
    "finetune on": (
        "ctc",
        lambda folder, out: build_model(
            PretrainedSection(path=str(folder)), _auto_ctc(), config_changes={}, keep_head=True
        ),
    ),
    "export-onnx": ("static", lambda folder, out: export_onnx(folder, out)),
    "plain hubert": ("static", lambda folder, out: save_plain_hubert(folder, out)),
}


def _auto_ctc():
    from transformers import AutoModelForCTC

    return AutoModelForCTC


@pytest.mark.parametrize("fault", ["a layer missing", "one more", "another shape", "integers", "NaN", "cut short"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it(faulty, tmp_path, reader, fault):
    kind, call = READERS[reader]
    folder = faulty(kind, fault)
    refused(folder, fault, lambda: call(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["a layer missing", "one more", "another shape", "integers", "NaN", "cut short"])
def test_conversion_refuses_it(faulty, tmp_path, fault):
    folder = faulty("HubertModel", fault)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16000}))
    with pytest.raises(ValueError, match=str(folder)) as error:
        convert(str(folder), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_weight_under_two_names_is_refused(folders, tmp_path):
    shutil.copytree(folders / "HubertModel", tmp_path / "twice")
    file = tmp_path / "twice" / "model.safetensors"
    state = load_file(file)
    save_file(state | {f"hubert.{KEY}": torch.ones_like(state[KEY])}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=f"1 weights twice: hubert.{KEY}"):
        load_encoder(tmp_path / "twice")


@pytest.mark.parametrize("kind", ALL)
def test_what_is_whole_loads_as_it_always_did(folders, kind):
    check_loads(folders / kind)
    loaded, expected = load_encoder(folders / kind), AutoModel.from_pretrained(folders / kind).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_shards_and_old_files_load_and_a_lost_shard_is_named(folders, tmp_path):
    model = HubertModel.from_pretrained(folders / "HubertModel")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    parts = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(parts) > 2
    load_encoder(tmp_path / "shards")
    whole = parts[1].read_bytes()
    parts[1].write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match=f"{parts[1].name} is truncated"):
        load_encoder(tmp_path / "shards")
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match="shards is there, but no complete model: ") as error:
        load_encoder(tmp_path / "shards")
    assert "\n" not in str(error.value)
    (tmp_path / "old").mkdir()
    shutil.copy(folders / "HubertModel" / "config.json", tmp_path / "old")
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    load_encoder(tmp_path / "old")
    state = model.state_dict()
    torch.save(state | {KEY: state[KEY].int()}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="no floating-point numbers but int32"):
        load_encoder(tmp_path / "old")


def test_a_mask_embedding_that_was_never_published_is_not_made_up(folders, tmp_path):
    shutil.copytree(folders / "HubertForCTC", tmp_path / "model")
    changed(lambda state, key: without(state, "masked_spec_embed"))(tmp_path / "model")
    assert not hasattr(load_encoder(tmp_path / "model"), "masked_spec_embed")
    first, second = (load_upstream(tmp_path / "model").fingerprint for _ in range(2))
    assert first == second
    shutil.copytree(folders / "static", tmp_path / "ours")  # those we write ourselves have one
    changed(lambda state, key: without(state, "masked_spec_embed"))(tmp_path / "ours")
    with pytest.raises(WeightsError, match="masked_spec_embed"):
        load_encoder(tmp_path / "ours")


def test_a_new_head_is_new_and_nothing_else_is(folders):
    loaded = load(LightHubertForCTC, folders / "static", may_be_new=lambda name: name.startswith("lm_head"))
    assert loaded.absent == {"lm_head.weight", "lm_head.bias"}
    with pytest.raises(WeightsError, match=r"lacks 2 weights of a LightHubertForCTC .*lm_head\.bias"):
        load(LightHubertForCTC, folders / "static")


def test_too_small_a_number_format_is_refused(folders, tmp_path):
    shutil.copytree(folders / "static", tmp_path / "large")
    changed(lambda state, key: state | {key: torch.full_like(state[key], 1e5)})(tmp_path / "large")
    load_encoder(tmp_path / "large")
    with pytest.raises(WeightsError, match="infinite"):
        load_encoder(tmp_path / "large", dtype=torch.float16)


def test_weights_that_are_not_finite_are_never_saved(make_model, tmp_path):
    model = make_model(LightHubertModel, search_space=None)
    with torch.no_grad():
        model.encoder.layers[0].attention.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"to be saved has NaN .*encoder\.layers\.0\.attention\.q_proj\.weight"):
        save_model_folder(model, tmp_path / "model")
    with pytest.raises(WeightsError, match="NaN"):
        push_model(model, "acme/light")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["HubertModel", "HubertModelWithFinalProj"])
def test_what_lies_beside_an_encoder_of_another_family_is_left_out(folders, tmp_path, architecture):
    shutil.copytree(folders / "HubertModel", tmp_path / "model")  # as ContentVec is published
    changed(lambda state, key: state | {"final_proj.weight": torch.ones(2, 3)})(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    assert load(AutoModel, tmp_path / "model").left_out == {"final_proj.weight"}
    shutil.copytree(folders / "static", tmp_path / "ours")
    changed(lambda state, key: state | {"final_proj.weight": torch.ones(2, 3)})(tmp_path / "ours")
    with pytest.raises(WeightsError, match=r"has 1 weights that .*final_proj"):
        load_encoder(tmp_path / "ours")


@pytest.mark.parametrize("cls", [LightHubertForCTC, LightHubertForPreTraining])
@pytest.mark.parametrize(
    "loading", [load_encoder, load_supernet, lambda name: load_teacher(TeacherSection(path=name))]
)
def test_heads_are_left_out_without_a_table_and_missing_weights_are_an_error(
    loading, cls, make_model, tmp_path, caplog
):
    make_model(cls).save_pretrained(tmp_path)
    logging.enable_propagation()
    try:
        loading(str(tmp_path))
    finally:
        logging.disable_propagation()
    assert not caplog.records
    state = load_file(tmp_path / "model.safetensors")
    del state["lighthubert.encoder.layers.1.attention.q_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of .*: encoder\.layers\.1\.attention"):
        loading(str(tmp_path))


@pytest.mark.parametrize("kind", ALL)
def test_a_misspelt_key_of_a_config_is_not_the_default(folders, tmp_path, kind):
    shutil.copytree(folders / kind, tmp_path / "model")
    config = json.loads((folders / kind / "config.json").read_text())
    for key in ("layer_norm_eps", "num_hidden_layers", "hidden_act", "architectures", "conv_stride"):
        wrong = key[:-2] + "x" + key[-1]
        wanted = {name: value for name, value in (config | {wrong: config[key]}).items() if name != key}
        (tmp_path / "model" / "config.json").write_text(json.dumps(wanted))
        with pytest.raises(ValueError, match=f"config.json has '{wrong}', .*did you mean '{key}'"):
            load_encoder(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"my_notes": "on this model"}))
    load_encoder(tmp_path / "model")


def test_code_that_came_with_a_model_of_an_unknown_kind_is_not_asked_about(folders, tmp_path, capsys):
    shutil.copytree(folders / "static", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": "other"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="describes no model"):
        load_encoder(tmp_path / "model")
    assert "[y/N]" not in capsys.readouterr().out


def test_a_misspelt_key_of_a_feature_extractor_is_not_the_default(folders, tmp_path):
    shutil.copytree(folders / "static", tmp_path / "model")
    assert load_feature_extractor(tmp_path / "model").do_normalize
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = tmp_path / "model" / name
        file.write_text(file.read_text().replace("do_normalize", "do_mormalize"))
    with pytest.raises(ValueError, match="has 'do_mormalize', which means nothing; did you mean 'do_normalize'"):
        load_feature_extractor(tmp_path / "model")


@pytest.mark.parametrize("kind", FOREIGN)
def test_keys_that_published_configs_have_beside_those_of_today_are_no_mistakes(folders, tmp_path, kind):
    """Of HuBERT, wav2vec 2.0, WavLM and data2vec as published, where today's keys that are missing have defaults."""
    old = (
        "feat_extract_dropout",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "mask_channel_length",
        "mask_channel_min_space",
        "mask_channel_other",
        "mask_channel_prob",
        "mask_channel_selection",
        "mask_time_min_space",
        "mask_time_other",
        "mask_time_selection",
        "no_mask_channel_overlap",
        "no_mask_time_overlap",
        "freeze_feat_extract_train",
        "num_ctc_classes",
        "codevector_dim",
        "num_codevector_groups",
        "num_codevectors_per_group",
        "num_negatives",
        "proj_codevector_dim",
        "contrastive_logits_temperature",
        "diversity_loss_weight",
        "feat_quantizer_dropout",
        "conv_pos_kernel_size",
        "num_buckets",
        "max_bucket_distance",
        "tokenizer_class",
        "torch_dtype",
        "use_weighted_layer_sum",
        "classifier_proj_size",
        "xvector_output_dim",
        "replace_prob",
        "add_adapter",
        "adapter_kernel_size",
        "output_hidden_size",
        "finetuning_task",
    )
    config = json.loads((folders / kind / "config.json").read_text())
    unknown = set(old) - {field.name for field in dataclasses.fields(load_config(folders / kind))}
    kept = ("model_type", "architectures", *SHAPE_FIELDS, "num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
    tmp_path.joinpath("config.json").write_text(
        json.dumps({key: config[key] for key in kept} | dict.fromkeys(unknown))
    )
    assert load_config(tmp_path).model_type == config["model_type"]

"""What is missing, misspelt, private or gated is said in one way by all that load something by name."""

import json
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from lighthubert_hf import absent as home
from lighthubert_hf.absent import absent
from lighthubert_hf.conversion import convert, export_onnx, save_plain_hubert
from lighthubert_hf.hub.derived import Parent
from lighthubert_hf.hub.publishing import extract_to_folder, push_folder
from lighthubert_hf.loading import is_static, load_config, load_encoder, load_lighthubert
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream
from lighthubert_hf.training.distillation.recipe import StudentSection, TeacherSection
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import load_teacher
from lighthubert_hf.training.finetuning.processors import load_processor
from lighthubert_hf.training.superb.feature_store import data_fingerprint
from lighthubert_hf.training.superb.upstream import load_upstream

from .accounts import TOKEN

OTHER = "hf_TestOtherToken0123456789"
# Everything that takes the name of a model, a checkpoint, a tokenizer or a data set.
LOADERS = {
    "config": load_config,
    "encoder": load_encoder,
    "supernet": load_lighthubert,
    "profile": is_static,
    "evaluate": load_upstream,
    "teacher": lambda name: load_teacher(TeacherSection(path=name)),
    "student": lambda name: build_student(StudentSection(init=name), load_teacher(TINY_TEACHER), 0),
    "card": Parent.read,
    "tokenizer": load_processor,
    "extract": lambda name: extract_to_folder(name, "out"),
    "convert": lambda name: convert(name, "out"),
    "plain hubert": lambda name: save_plain_hubert(name, "out"),
    "onnx": lambda name: export_onnx(name, "out.onnx"),
    "data": lambda name: AudioStream([AudioSource(name)]),
    "features": lambda name: data_fingerprint(AudioSource(name)),
}
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
TINY_TEACHER = TeacherSection(random_config=SIZES | {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 4})


def said(load, name: str) -> str:
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    text = str(error.value)
    assert name in text and "\n" not in text and len(text) < 400, text
    return text


@pytest.fixture
def gated(hub, monkeypatch):
    """A model and a data set called acme/gated, to which alice, who is logged in, has no access."""
    alice = hub.store.account(f"Bearer {TOKEN}")
    repo = hub.store.create_repo("acme/gated", alice, private=False)
    files = [("file", {"path": name, "content": ""}) for name in ("config.json", "model.safetensors")]
    hub.store.commit(repo, "main", alice, "files", None, files)
    repo.gated = True
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "none")
    return hub


@pytest.mark.parametrize("kind", LOADERS)
def test_a_missing_private_or_gated_repository(gated, monkeypatch, kind, tmp_path):
    monkeypatch.chdir(tmp_path)
    load = LOADERS[kind]
    text = said(load, "acme/nothing")
    assert "neither here nor, for this token, on the Hub: it is misspelt or private" in text
    assert text.endswith(home.LOG_IN)
    if kind != "features":  # the commit of a gated data set is no secret
        text = said(load, "acme/gated")
        assert f"acme/gated on the Hub is gated; ask for access on {constants.ENDPOINT}/" in text
        assert text.endswith(home.LOG_IN)
    gated.store.create_repo("acme/hidden", gated.store.account(f"Bearer {TOKEN}"), private=True)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    assert "neither here nor, for this token" in said(load, "acme/hidden")
    monkeypatch.delenv("HF_TOKEN")
    assert "neither here nor, without a token, on the Hub" in said(load, "acme/hidden")
    monkeypatch.setenv("HF_TOKEN", "hf_TestWrongToken01234567890")
    text = said(load, "acme/hidden")
    assert "the Hub refuses the token for the " in text and text.endswith("with one that may read it")
    assert "hf_Test" not in text


@pytest.mark.parametrize("kind", LOADERS)
def test_here(hub, monkeypatch, kind, tmp_path):
    """Of a path the Hub is not asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_recordings").mkdir()
    requests = len(hub.requests)
    text = said(LOADERS[kind], f"{tmp_path}/my_recordngs")
    assert text.endswith(f"did you mean {tmp_path}/my_recordings?")
    assert said(LOADERS[kind], f"{tmp_path}/far/from/it").endswith("; check the path")
    assert "did you mean my_recordings?" in said(LOADERS[kind], "./my_recordngs")
    assert len(hub.requests) == requests


@pytest.mark.parametrize("kind", [kind for kind in LOADERS if kind != "card"])
def test_without_the_hub(monkeypatch, kind, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "recordings").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    text = said(LOADERS[kind], "acme/recordngs")
    assert "recordngs here, and HF_HUB_OFFLINE keeps the Hub from being asked" in text
    assert "did you mean acme/recordings? Otherwise unset HF_HUB_OFFLINE" in text


def test_the_hub_out_of_reach_or_in_trouble(hub, monkeypatch):
    hub.faults.add("acme/nothing", "status", times=100, status=503)
    assert "the Hub answered 503 for the model acme/nothing; try again later" in said(load_config, "acme/nothing")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    text = said(load_config, "acme/nothing")
    assert "here, and the Hub cannot be reached (" in text and text.endswith("check the connection")


def test_a_missing_revision(hub, model, tmp_path):
    push_folder_of(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="acme/light on the Hub has no revision v9; check its branches"):
        load_encoder("acme/light", "v9")


def push_folder_of(model, tmp_path):
    from lighthubert_hf.hub.folder import save_model_folder

    push_folder(save_model_folder(model, tmp_path / "light"), "acme/light")


def test_a_folder_that_is_incomplete(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty is there, but no complete model: it has no config.json" in said(
        load_encoder, str(tmp_path / "empty")
    )
    assert "no complete tokenizer: it has no tokenizer_config.json" in said(load_processor, str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("Corpus", "corpus"), ("corpsu/train", "corpus/train"), ("corpus/tran", "corpus/train"), ("elsewhere", None)],
)
def test_what_was_meant(tmp_path, monkeypatch, asked, meant):
    monkeypatch.chdir(tmp_path)
    Path("corpus", "train").mkdir(parents=True)
    hint = f"did you mean {meant}?" if meant else "check the path"
    assert str(absent("data set", asked)) == f"there is no data set {asked}; {hint}"


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Nothing"}))
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)) as error:
        load_processor(str(tmp_path))
    assert "\n" not in str(error.value)

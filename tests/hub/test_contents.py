"""Only what belongs to a model is published, no link, and nothing with an access token in it, however written."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lighthubert_hf import LightHubertConfig, LightHubertModel
from lighthubert_hf.hub import contents
from lighthubert_hf.hub.contents import check_no_secrets, stage
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.publishing import push_folder
from lighthubert_hf.hub.upload import PublishingError

from .test_folder import SIZES

TOKEN = "hf_AbcdefghijklmnopqrstUVWXYZ012345"
FOREIGN = (
    *("optimizer.pt", "training_args.bin", "trainer_state.json", ".git", ".env", "run.log", "credentials.json"),
    *("key.txt", "passwords.txt", "train.py", "notes.md", "outside.safetensors", "id_rsa", "scheduler.PT"),
)


@pytest.fixture
def folder(tmp_path):
    return save_model_folder(LightHubertModel(LightHubertConfig(**SIZES)), tmp_path / "model")


@pytest.fixture
def staged(folder, tmp_path):
    def call(**options) -> tuple[set[str], dict[str, str]]:
        target = tmp_path / "staged"
        target.mkdir()
        left_out = stage(folder, target, link=True, **options)
        return {path.name for path in target.iterdir()}, left_out

    return call


def test_what_is_no_part_of_a_model_stays_here_and_is_named(folder, staged):
    belongs = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    for name in FOREIGN:
        (folder / name).write_text("x")
    (folder / "checkpoint-1").mkdir()
    for name in ("LICENSE", "curve.png", "vocab.json", "tokenizer.json"):
        (folder / name).write_text("{}")
        belongs.add(name)
    published, left_out = staged()
    assert published == belongs
    assert set(left_out) == {*FOREIGN, "checkpoint-1", ".made.json"}
    assert "--include key.txt" in left_out["key.txt"]


def test_include_publishes_more_but_never_what_runs(folder, staged):
    for name in ("results.json", "notes.md", "weights.pt"):
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=r"weights\.pt, which is never published: a pickle"):
        staged(include=["*.pt"])
    folder.parent.joinpath("staged").rmdir()
    with pytest.raises(ValueError, match=r"--include result\.json fits nothing"):
        staged(include=["result.json"])
    folder.parent.joinpath("staged").rmdir()
    published, left_out = staged(include=["results.*"])
    assert "results.json" in published
    assert "notes.md" in left_out


@pytest.mark.parametrize("name", ["outside.json", "LICENSE", "config.json", "model.safetensors", "notes.md"])
@pytest.mark.parametrize("target", ["/etc/passwd", "/nowhere/at/all"])
def test_links_are_refused(folder, staged, name, target):
    if name == "config.json" and not os.path.exists(target):
        return  # then there is no model
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    if not os.path.exists(target) and name in ("outside.json", "notes.md"):
        assert name in staged()[1]
        return
    with pytest.raises(ValueError, match=f"{name} is a link to {target}"):
        staged()


def test_a_pipe_is_no_file(folder, staged):
    os.mkfifo(folder / "LICENSE")
    assert staged()[1]["LICENSE"] == "no ordinary file"


def _utf16(text: str) -> bytes:
    return text.encode("utf-16")


READ = 1 << 15  # bytes at a time, instead of megabytes
ENCODINGS = {
    "utf-8": str.encode,
    "utf-16": _utf16,
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "escaped": lambda text: json.dumps(text).replace("h", "\\u0068").encode(),
    "far in a long file": lambda text: b" " * (READ - 10) + text.encode(),
}


@pytest.fixture
def read_in_short_pieces(monkeypatch):
    monkeypatch.setattr(contents, "_READ", READ)


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("name", ["LICENSE", "README.md", "vocab.json", "tokenizer.model", "curve.svg", "key.txt"])
@pytest.mark.parametrize("token", [TOKEN, "secret-token"])
def test_tokens_are_found(tmp_path, name, encode, token, read_in_short_pieces):
    (tmp_path / name).write_bytes(encode("see hf_hubert_custom and hf_raise_for_status_of_everything"))
    check_no_secrets(tmp_path, token="secret-token")
    (tmp_path / name).write_bytes(encode(f"run with HF_TOKEN={token}"))
    if name != "vocab.json" and b"\\u0068" in encode(token):
        return
    with pytest.raises(ValueError, match=f"{name} contains an access token") as caught:
        check_no_secrets(tmp_path, token="secret-token")
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["ghp_" + "a1" * 18, "AKIA" + "ABCD1234" * 2, "sk-" + "a1b2" * 10, "-----BEGIN RSA PRIVATE KEY-----"]
)
def test_tokens_of_others_are_found(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="contains an access token"):
        check_no_secrets(tmp_path)


def test_tokens_in_the_metadata_of_weights_are_found(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", {"command": f"train --token {TOKEN}"})
    with pytest.raises(ValueError, match=r"model\.safetensors contains an access token"):
        check_no_secrets(tmp_path)


def test_an_empty_folder_is_named_not_its_copy(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/empty has no config.json"):
        push_folder(tmp_path / "empty", "me/model", token="hf_" + "x" * 30)


@pytest.mark.parametrize("file", ["model.safetensors", "model_card.json", "README.md"])
def test_what_is_broken_is_named_by_the_folder_not_by_its_copy(folder, tmp_path, file):
    (folder / file).write_text("---\na: [\n---\n")
    with pytest.raises(ValueError, match=file) as caught:
        push_folder(folder, "me/model", dry_run=tmp_path / "dry")
    assert ".new" not in str(caught.value)
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("name", ["", " ", "a/b/c", "me/mo del", "me/../x", "-me/x", "me/x.git", "x" * 200, "a\nb"])
def test_a_dry_run_refuses_impossible_names(folder, tmp_path, name):
    with pytest.raises(PublishingError, match="cannot be a repository"):
        push_folder(folder, name, dry_run=tmp_path / "dry")
    assert not Path(tmp_path / "dry").exists()

"""A command replaces only what it made itself from the same source and nobody changed; never the source itself."""

import json

import pytest
import torch

from lighthubert_hf import LightHubertConfig, LightHubertModel
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.publishing import extract_to_folder, push_folder

from .test_folder import SIZES


@pytest.fixture(scope="module")
def model():
    return LightHubertModel(LightHubertConfig(**SIZES)).eval()


@pytest.fixture
def supernet(tiny_supernet, tmp_path):
    return save_model_folder(tiny_supernet, tmp_path / "supernet")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_again_is_replaced(supernet, tmp_path):
    out = extract_to_folder(supernet, tmp_path / "out", subnet="smallest")
    extract_to_folder(supernet, out, subnet="largest")
    extract_to_folder(supernet, out, subnet="smallest")
    assert json.loads((out / "config.json").read_text())["search_space"] is None


def _edit_card(folder):
    (folder / "README.md").write_text("my own words")


def _add_notes(folder):
    (folder / "notes.txt").write_text("mine")


def _change_weights(folder):
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)


def _delete(folder):
    (folder / "architecture.svg").unlink()


def _forget(folder):
    (folder / ".made.json").unlink()


def _damage_record(folder):
    (folder / ".made.json").write_text("[" * 100_000)


CHANGES = {
    "README.md in it was changed": _edit_card,
    "notes.txt in it was added": _add_notes,
    "model.safetensors in it was changed": _change_weights,
    "architecture.svg in it was deleted": _delete,
    "was not made by this command": _forget,
    "nested too deeply": _damage_record,
}


@pytest.mark.parametrize(("reason", "change"), CHANGES.items(), ids=CHANGES)
def test_what_was_changed_since_is_refused_until_insisted(supernet, tmp_path, reason, change):
    out = extract_to_folder(supernet, tmp_path / "out")
    change(out)
    before = contents(out)
    with pytest.raises(ValueError, match=reason) as caught:
        extract_to_folder(supernet, out)
    assert "\n" not in str(caught.value)
    assert contents(out) == before
    extract_to_folder(supernet, out, overwrite=True)
    assert contents(out) != before


def test_another_source_or_another_command_is_refused(supernet, model, tiny_supernet, tmp_path):
    out = extract_to_folder(supernet, tmp_path / "out")
    with torch.no_grad():
        tiny_supernet.encoder.layer_norm.bias.add_(1)
    other = save_model_folder(tiny_supernet, tmp_path / "other")
    with pytest.raises(ValueError, match="was made from another source"):
        extract_to_folder(other, out)
    mine = save_model_folder(model, tmp_path / "mine")
    with pytest.raises(ValueError, match="was made by another command"):
        extract_to_folder(supernet, mine)
    with pytest.raises(ValueError, match="holds something else"):
        push_folder(supernet, "me/model", dry_run=out)
    dry = push_folder(supernet, "me/model", dry_run=tmp_path / "dry").folder
    push_folder(supernet, "me/model", dry_run=dry)
    with pytest.raises(ValueError, match="holds something else"):
        push_folder(other, "me/model", dry_run=dry)


@pytest.mark.parametrize("overwrite", [False, True])
def test_never_onto_the_source(supernet, tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(supernet)
    before = contents(tmp_path)
    for place in ("supernet", supernet, "./supernet/", "link"):
        with pytest.raises(ValueError, match=r"is the source"):
            extract_to_folder("supernet", place, overwrite=overwrite)
        with pytest.raises(ValueError, match=r"is the source"):
            push_folder(supernet, "me/model", dry_run=place, overwrite=overwrite)
    with pytest.raises(ValueError, match=r"holds the source"):
        extract_to_folder("supernet", tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_even_insisting_replaces_nothing_but_models(supernet, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no saved model"):
        extract_to_folder(supernet, tmp_path / "home", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        extract_to_folder(supernet, tmp_path / "home" / "thesis.txt", overwrite=True)

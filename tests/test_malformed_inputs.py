"""Every command on every malformed input: exit status 2, one line with the name, and what was there before intact."""

import json
import shutil
import sqlite3
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from lighthubert_hf import LightHubertModel
from lighthubert_hf.cli import main
from lighthubert_hf.hub.folder import save_model_folder

SCORE = ["--score", "scores.py:width", "--trials", "4", "--population-size", "2"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory, make_model):
    """A folder with one sound input of every kind."""
    place = tmp_path_factory.mktemp("originals")
    supernet = make_model(LightHubertModel)
    save_model_folder(supernet, place / "supernet")
    save_model_folder(supernet.extract_subnet(supernet.search_space.smallest()), place / "static")
    (place / "scores.py").write_text("def width(subnet):\n    return float(subnet.hidden_size)\n")
    (place / "subnet.json").write_text(json.dumps(supernet.search_space.smallest().to_dict()))
    (place / "recipe.yaml").write_text("name: x\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["lighthubert", "search", "supernet", "found", *SCORE])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    return place


@pytest.fixture
def place(originals, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(originals, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def refused(place, monkeypatch, capsys):
    """`refused(*arguments, name=…)`: ends with status 2 and one line that has the name, and changes nothing."""

    def contents() -> dict[Path, bytes]:
        files = (path for path in place.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
        return {path: path.read_bytes() for path in files if path.name != "study.lock"}

    def call(*arguments: str, name: str) -> str:
        before = contents()
        monkeypatch.setattr(sys, "argv", ["lighthubert", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("lighthubert: ")]
        assert end.value.code == 2, said
        assert "Traceback" not in said
        assert len(lines) == 1, said
        assert name in lines[0]
        assert contents() == before
        return lines[0]

    return call


# No JSON, and no YAML that is a recipe.
TEXTS = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "half": b'{"a": [1, 2',
    "deep lists": b"[" * 10_000,
    "deep objects": b'{"a":' * 10_000,
    "zeros": b"\0" * 500,
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "latin-1": '{"a": "ü"}'.encode("latin-1"),
    "noise": bytes(range(256)),
}
texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


@texts
@pytest.mark.parametrize("command", ["distill", "finetune", "cost"])
def test_recipes(place, refused, command, text):
    (place / "recipe.yaml").write_bytes(text)
    refused(command, "recipe.yaml", name="recipe")


@texts
def test_subnets(place, refused, text):
    (place / "subnet.json").write_bytes(text)
    refused("extract", "supernet", "out", "--subnet", "subnet.json", name="subnet.json")


@texts
def test_search_spaces(place, refused, text):
    (place / "space.json").write_bytes(text)
    refused("convert", "static", "out", "--search-space", "space.json", name="space.json")


@texts
@pytest.mark.parametrize("command", [["push-family", "found/pareto.json", "me/x", "--dry-run", "dry"]])
def test_reports_of_a_search(place, refused, command, text):
    (place / "found" / "pareto.json").write_bytes(text)
    refused(*command, name="pareto.json")


@texts
@pytest.mark.parametrize("file", ["config.json", "model_card.json", "preprocessor_config.json"])
def test_pushed_folders(place, refused, file, text):
    (place / "static" / file).write_bytes(text)
    refused("push", "static", "me/x", "--dry-run", "dry", name=file)


@texts
def test_results_of_an_evaluation(place, refused, text):
    tasks = place / "evaluation" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "ks.json").write_bytes(text)
    from lighthubert_hf.training.superb.harness import _stored

    with pytest.raises(ValueError, match=r"ks\.json"):
        _stored(place / "evaluation", "ks")


@texts
def test_recipes_of_runs(place, text):
    from lighthubert_hf.training.runs.run_folder import _stored

    (place / "recipe.yaml").write_bytes(text)
    if text in (b"", b"null"):
        text = None
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        _stored(place)


def _damage_pages(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    for start in range(4096, len(raw), 4096):
        raw[start : start + 64] = b"\xff" * 64
    file.write_bytes(raw)


def _change(statement: str):
    def change(file: Path) -> None:
        with sqlite3.connect(file) as connection:
            connection.execute(statement)
        connection.close()

    return change


DATABASES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "header only": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "no database": lambda file: file.write_bytes(b"not a database" * 1000),
    "pages": _damage_pages,
    "no trials": _change("DROP TABLE trials"),
    "no settings": _change("UPDATE study_user_attributes SET value_json = '[1]'"),
    "no JSON": _change("UPDATE trial_user_attributes SET value_json = '{'"),
    "other names": _change("UPDATE trial_user_attributes SET key = 'x' || trial_user_attribute_id"),
    "other distributions": _change("UPDATE trial_params SET distribution_json = '{}'"),
    "another score": _change("UPDATE trial_values SET value = value + 1 WHERE trial_value_id = 1"),
    "another choice": _change("UPDATE trial_params SET param_value = 1 - param_value WHERE param_id = 1"),
    "other version": _change("UPDATE alembic_version SET version_num = 'x'"),
}


@pytest.mark.parametrize("damage", DATABASES.values(), ids=DATABASES)
def test_databases_of_a_search(place, refused, damage):
    file = place / "found" / "study.db"
    for extra in place.glob("found/study.db-*"):
        extra.unlink()
    damage(file)
    said = refused("search", "supernet", "found", *SCORE, name="study.db")
    assert "--overwrite" in said


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta", "", "cpu:x"])
def test_devices(place, refused, device):
    refused("evaluate", "static", "--tiny", "--tasks", "ks", "--device", device, name=repr(device))


@pytest.mark.parametrize("limit", ["1e400", "0", "1e-400"])
@pytest.mark.parametrize("kind", ["params", "macs"])
def test_limits(place, refused, kind, limit):
    refused("search", "supernet", "out", *SCORE, f"--max-{kind}", limit, name=limit)


@pytest.mark.parametrize("arguments", [["--trials", "20"], ["--trials", "0"], ["--population-size", "1"]])
def test_settings_of_a_search_before_anything_is_loaded(place, refused, arguments):
    refused("search", "no-supernet", "out", "--teacher", "no-teacher", "--data", "x", *arguments, name="must be at")


MODELS = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "half a header": lambda file: file.write_bytes(file.read_bytes()[:50]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
    "long header": lambda file: file.write_bytes(b"\xff" * 8 + b"{}"),
    "deep header": lambda file: file.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
    "text": lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "pickle": lambda file: (torch.save({}, file.with_name("pytorch_model.bin")), file.unlink()),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}
COMMANDS = {
    "extract": ["extract", "supernet", "out"],
    "profile": ["profile", "supernet", "--repeats", "1"],
    "search": ["search", "supernet", "out", *SCORE],
    "evaluate": ["evaluate", "supernet", "--subnet", "smallest", "--tiny", "--tasks", "ks"],
    "to original": ["convert", "supernet", "out.pt", "--to-original"],
    "push": ["push", "supernet", "me/x", "--dry-run", "dry"],
    "export-onnx": ["export-onnx", "static", "out.onnx"],
}


@pytest.mark.parametrize("damage", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_weights(place, refused, command, damage):
    damage(place / command[1] / "model.safetensors")
    refused(*command, name=command[1])


CONFIGS = TEXTS | {
    "unknown class": {"architectures": ["X"]},
    "no class": {"architectures": "LightHubertModel"},
    "unknown kind": {"model_type": "nothing"},
    "wrong size": {"hidden_size": "wide"},
    "negative": {"num_hidden_layers": -3},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_configs(place, refused, command, config):
    file = place / command[1] / "config.json"
    text = config if isinstance(config, bytes) else json.dumps(json.loads(file.read_text()) | config).encode()
    file.write_bytes(text)
    if command[0] in ("extract", "profile", "evaluate") and isinstance(config, dict) and "architectures" in config:
        pytest.skip("reads the encoder of any class")
    refused(*command, name=command[1])

"""The commands of docs/conversion.md, run as they stand there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import HubertModel
from typer.testing import CliRunner

from lighthubert_hf import LightHubertModel
from lighthubert_hf.cli import app

from ..golden import golden_description, original_checkpoint

DOCS = Path(__file__).parents[2] / "docs" / "conversion.md"


def documented(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "lighthubert"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The commands for a checkpoint of one's own, in a folder with such a checkpoint and its search space.

    Without that of discrete units: the subnet has none.
    """
    monkeypatch.chdir(tmp_path)
    description = golden_description()
    torch.save(original_checkpoint(description["cfg"]), "checkpoint.pt")
    (space,) = documented("json")
    assert json.loads(space) == description["search_space"]
    Path("space.json").write_text(space, encoding="utf-8")
    lines = [line for block in documented("bash") for line in block.splitlines()]
    return [line for line in lines if not re.search("mechanicalsea|_base|-base|--units", line)]


def test_there_and_back(commands):
    export = [command for command in commands if "export-onnx" in command]
    before = torch.load("checkpoint.pt", weights_only=True)["model"]
    said = "".join(run(command) for command in commands if command not in export)
    assert "largest difference" in said
    assert "label_embs_concat" in said
    LightHubertModel.from_pretrained("subnet")
    HubertModel.from_pretrained("plain")
    after = torch.load("original.pt", weights_only=True)["model"]
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    assert len(export) == 2


@pytest.mark.slow
def test_onnx(commands):
    pytest.importorskip("onnxruntime")
    for command in commands:
        said = run(command)
        if "export-onnx" in command:
            assert "compared with PyTorch" in said
    assert "times as fast" in said
    assert Path("subnet-int8.onnx").stat().st_size < Path("subnet.onnx").stat().st_size


def test_every_option_is_documented():
    result = CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    text = DOCS.read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", result.output))
    assert {"--search-space", "--to-original", "--importance-sorting", "--no-verify"} <= options
    assert {option for option in options if option in text} >= options - {
        "--help",
        "--json",
        "--verify",
        "--no-to-original",
        "--no-importance-sorting",
    }

"""The steps of docs/tutorial.md, on synthetic speech: from a folder of recordings to a published recogniser."""

import csv
import json

import pytest
import soundfile
from huggingface_hub import HfApi, ModelCard
from transformers import pipeline
from typer.testing import CliRunner

from lighthubert_hf import LightHubertConfig, LightHubertModel
from lighthubert_hf.cli import app
from lighthubert_hf.training.finetuning import run as finetuning

from ..guides import ROOT, shell_lines
from ..training.finetuning.tiny_architecture import TINY

pytest.importorskip("espeakng_loader")
GUIDE = ROOT / "docs" / "tutorial.md"
SAID = ("The birch canoe slid.", "Glue the sheet.", "A pot of tea.", "Rice is served.", "The juice, of lemons!")
FEW_STEPS = ["training.steps=3", "training.evaluate_every=null", "checkpoint=null", "freezing.head_only_steps=1"]


def run(*words: str) -> str:
    done = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def record(folder) -> None:
    from lighthubert_hf.training.synthetic.espeak import speak

    folder.mkdir()
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for number, text in enumerate(SAID * 2):
            name = f"{number:04}.{'wav' if number % 2 else 'flac'}"
            soundfile.write(folder / name, speak(text, "en-us+f3"), 16000)
            table.writerow([name, text])


def test_from_recordings_to_a_published_recogniser(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "my-recordings")
    LightHubertModel(LightHubertConfig(**TINY)).save_pretrained(tmp_path / "SUBNET")
    # typer's runner leaves no process group, and a GPU is not asked for in a test of steps
    commands = [words[1:] for _, words in shell_lines(GUIDE) if words[0] == "lighthubert"]
    listing, printing, training, _, pushing = commands
    assert "finetune own-recogniser" in run(*listing)
    assert printing[2:] == [">", "my.yaml"]
    (tmp_path / "my.yaml").write_text(run(*printing[:2]), encoding="utf-8")

    run(*training, *FEW_STEPS)
    metrics = json.loads((tmp_path / "runs" / "own-recogniser" / "metrics.json").read_text())
    assert metrics["evaluation"][finetuning.HELD_OUT]["examples"] == 1
    counts = metrics["vocabulary"]["counts"]
    assert set(counts) <= set("abcdefghijklmnopqrstuvwxyz")  # in lower case, without points and commas
    recognise = pipeline("automatic-speech-recognition", "runs/own-recogniser/model")
    samples, rate = soundfile.read("my-recordings/0001.wav")
    assert isinstance(recognise({"raw": samples, "sampling_rate": rate})["text"], str)

    run(*(word.replace("OWNER", "alice") for word in pushing))
    assert "model.safetensors" in HfApi().list_repo_files("alice/my-recogniser")
    assert "character error rate" in ModelCard.load("alice/my-recogniser").content

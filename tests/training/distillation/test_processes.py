"""Runs in processes of their own: killed and resumed they do what an uninterrupted run does, to the bit; two agree."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.distillation.step import TrainingStep
from lighthubert_hf.training.runs.checkpoints import checkpoint_step, latest_checkpoint

from . import distill_worker as worker
from .tiny import TINY_SPACE

SECTIONS = {
    "training": {"steps": 8, "accumulation": 2},
    "sampler": {"kind": "sandwich", "in_place_weight": 0.3},
    "logging": {"every": 2},
    "checkpoint": {"every": 3, "keep": 2},
}


def history(recipe) -> list[dict]:
    """The log without times."""
    entries = read_log(Path(recipe.output_dir) / "log.jsonl")
    return [{key: value for key, value in entry.items() if key != "audio_per_second"} for entry in entries]


@pytest.fixture(scope="module")
def reference(make_recipe, tmp_path_factory):
    recipe = make_recipe(tmp_path_factory.mktemp("runs") / "reference", **SECTIONS)
    assert worker.run(recipe) == [0]
    assert [entry["step"] for entry in history(recipe)] == [2, 4, 6, 8]
    return recipe


def same(recipe, reference, world_size: int = 1) -> None:
    assert history(recipe) == history(reference)
    assert worker.fingerprints(recipe, world_size) == worker.fingerprints(reference, world_size)


@pytest.mark.numerical
def test_killed_twice(tiny_recipe, reference):
    """With threads that read ahead, which the reference does without."""
    recipe = tiny_recipe(**SECTIONS, data={"num_workers": 2})
    assert worker.run(recipe, kill_at_step=4) == [-signal.SIGKILL]
    assert latest_checkpoint(Path(recipe.output_dir) / "checkpoints").name == "step-00000003"
    assert worker.run(recipe, kill_at_step=7) == [-signal.SIGKILL]
    assert latest_checkpoint(Path(recipe.output_dir) / "checkpoints").name == "step-00000006"
    assert worker.run(recipe) == [0]
    same(recipe, reference)


def test_whenever_it_is_killed_a_whole_checkpoint_is_left(tiny_recipe, reference, tmp_path):
    """Before each change, the checkpoint folder holds nothing or a checkpoint as it was written."""
    recipe = tiny_recipe(**SECTIONS)
    assert worker.run(recipe, snapshots=str(tmp_path / "snapshots")) == [0]
    same(recipe, reference)
    snapshots = sorted((tmp_path / "snapshots").iterdir())
    steps = [checkpoint_step(found) if (found := latest_checkpoint(place)) else 0 for place in snapshots]
    assert steps == sorted(steps)
    assert set(steps) == {0, 3, 6, 8}
    assert len(steps) > 100


def test_killed_in_a_save(tiny_recipe, reference):
    """While the first checkpoint is written, and in the next life while the second one is."""
    recipe = tiny_recipe(**SECTIONS)
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    for event, left in ((30, None), (100, checkpoints / "step-00000003")):
        assert worker.run(recipe, kill_in_save=event) == [-signal.SIGKILL]
        assert latest_checkpoint(checkpoints) == left
    assert worker.run(recipe) == [0]
    same(recipe, reference)


@pytest.mark.slow  # a dozen lives; the two tests above try the same at less places
def test_killed_anywhere_in_a_save(tiny_recipe, reference):
    """Killed at the 1st, 6th, 11th … change of the checkpoint folder, until a life is too short to die in."""
    recipe = tiny_recipe(**SECTIONS)
    deaths, event = 0, 1
    while (code := worker.run(recipe, kill_in_save=event)[0]) != 0:
        assert code == -signal.SIGKILL
        deaths, event = deaths + 1, event + 5
    assert deaths > 4
    same(recipe, reference)
    leftovers = [path.name for path in (Path(recipe.output_dir) / "checkpoints").iterdir()]
    assert sorted(leftovers) == ["step-00000006", "step-00000008"]


def test_sigterm_saves_and_exits(tiny_recipe, reference):
    recipe = tiny_recipe(**SECTIONS)
    assert worker.run(recipe, terminate_at_step=(0, 4)) == [-signal.SIGTERM]
    # Step 4 (0-based) was finished, and saved although 5 is no multiple of checkpoint.every.
    assert latest_checkpoint(Path(recipe.output_dir) / "checkpoints").name == "step-00000005"
    assert worker.run(recipe) == [0]
    same(recipe, reference)


@pytest.mark.numerical
def test_two_processes_resume_and_stop_together(tiny_recipe, make_recipe, tmp_path):
    reference = make_recipe(tmp_path / "reference", **SECTIONS)
    assert worker.run(reference, world_size=2) == [0, 0]
    recipe = tiny_recipe(**SECTIONS)
    # Only process 1 hears the signal; both save and die by it.
    assert worker.run(recipe, world_size=2, terminate_at_step=(1, 4)) == [-signal.SIGTERM] * 2
    assert worker.run(recipe, world_size=2) == [0, 0]
    same(recipe, reference, world_size=2)


def test_another_number_of_processes_says_what_comes_twice(tiny_recipe, caplog):
    recipe = tiny_recipe(**SECTIONS)
    assert worker.run(recipe, world_size=2, terminate_at_step=(1, 4)) == [-signal.SIGTERM] * 2
    alone = tiny_recipe(**SECTIONS | {"training": {"steps": 8, "accumulation": 4}})  # as many batches a step
    distill(alone, show_progress=False)
    assert "is of 2 processes, this run has 1" in caplog.text
    repeated = int(re.search(r"at most (\d+) rows", caplog.text)[1])
    assert repeated > 0
    assert [entry["step"] for entry in history(alone)] == [2, 4, 6, 8]
    assert (
        json.loads((latest_checkpoint(Path(alone.output_dir) / "checkpoints") / "complete.json").read_text())[
            "processes"
        ]
        == 1
    )


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_recipe, reference, monkeypatch, capsys):
    recipe = tiny_recipe(**SECTIONS)
    run = TrainingStep.run

    def interrupted_in_step_4(self, step, *args):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return run(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", interrupted_in_step_4)
        with pytest.raises(KeyboardInterrupt) as end:
            distill(recipe)
    saved = Path(recipe.output_dir) / "checkpoints" / "step-00000005"
    assert str(end.value) == f"stopped after step 5 of 8, saved in {saved}; the same command goes on from there"
    assert latest_checkpoint(saved.parent) == saved
    assert "1 process on cpu, 1 thread each; 8 steps from the beginning" in capsys.readouterr().err
    assert worker.run(recipe) == [0]
    same(recipe, reference)


def test_a_start_that_failed_is_no_run(tiny_recipe, tmp_path):
    mistyped = {"teacher": {"path": str(tmp_path / "teecher")}, "training": {"steps": 1}}
    with pytest.raises(FileNotFoundError, match="teecher"):
        distill(tiny_recipe(**mistyped), show_progress=False)
    assert distill(tiny_recipe(training={"steps": 1}), show_progress=False).is_dir()


def test_another_recipe_is_refused_and_a_finished_run_is_left_alone(tiny_recipe):
    recipe = tiny_recipe(training={"steps": 2})
    final = distill(recipe, show_progress=False)
    written = (final / "model.safetensors").stat().st_mtime_ns
    assert distill(tiny_recipe(training={"steps": 2}, logging={"every": 2}), show_progress=False) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"optimizer\.lr=0\.0005, the recipe says 0\.1") as error:
        distill(tiny_recipe(training={"steps": 2}, optimizer={"lr": 0.1}), show_progress=False)
    assert "\n" not in str(error.value)


# Two processes


@pytest.mark.numerical
def test_two_processes_stay_equal_to_the_bit(tiny_recipe):
    """With depth that changes, layers recomputed, accumulation, several subnets, and one step that is not finite."""
    recipe = tiny_recipe(
        training={"steps": 4, "accumulation": 2, "gradient_checkpointing": True},
        sampler={"kind": "random", "num_random": 2},
        student={"config": {"layerdrop": 0.3}},
    )
    assert worker.run(recipe, world_size=2, poison=(1, 2)) == [0, 0]
    first, second = worker.fingerprints(recipe, 2)
    assert first == second
    assert first["step"] == 4
    assert first["skipped"] == 1
    entries = read_log(Path(recipe.output_dir) / "log.jsonl")
    assert [entry["skipped_steps"] for entry in entries] == [0, 0, 1, 1]
    assert entries[2]["loss"] is None


def test_parts_are_ordered_alike_in_all_processes(tiny_recipe):
    """By the first one's audio, also where the front end is not trained."""
    student = {"search_space": TINY_SPACE | {"conv_dim": [8, 16]}, "order_channels_on": 2.0, "freeze_front_end": True}
    student |= {"order_on": {"seconds": 1.0, "parts": ["heads", "ffn", "width"], "probes": 1}}
    recipe = tiny_recipe(student=student, training={"steps": 1})
    assert worker.run(recipe, world_size=2) == [0, 0]
    first, second = worker.fingerprints(recipe, 2)
    assert first == second


@pytest.mark.parametrize("numbers", [(3, 1), (0, 2)])
def test_processes_whose_data_end_at_different_times(tiny_recipe, numbers):
    recipe = tiny_recipe(training={"steps": 10})
    assert worker.run(recipe, world_size=2, data_ends=numbers) == [0, 0]
    first, second = worker.fingerprints(recipe, 2)
    assert first == second
    assert first["step"] == max(numbers)
    assert first["skipped"] == 0


def test_two_processes_compute_the_mean_over_all_frames(tiny_recipe, make_recipe, tmp_path):
    """Their first step has the gradient of one process that accumulates both processes' batches."""
    sections = {"masking": None, "student": {"config": {"hidden_dropout": 0.0, "activation_dropout": 0.0}}}
    pair = tiny_recipe(training={"steps": 1}, **sections)
    assert worker.run(pair, world_size=2, record_batches=str(tmp_path)) == [0, 0]
    alone = make_recipe(tmp_path / "alone", training={"steps": 1, "accumulation": 2}, **sections)
    assert worker.run(alone, replay_batches=str(tmp_path)) == [0]
    entries = [read_log(Path(recipe.output_dir) / "log.jsonl")[0] for recipe in (pair, alone)]
    for key in ("loss", "gradient_norm", "audio_seconds"):  # means and norms over thousands of terms: 84 eps
        assert entries[0][key] == pytest.approx(entries[1][key], rel=1e-5)


@pytest.mark.slow  # three programs that import torch; `worker.run` sets what a launcher does
def test_a_real_launcher(tiny_recipe, tmp_path):
    """`accelerate launch` with two processes; without GPUs they meet through gloo."""
    recipe = tiny_recipe(training={"steps": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    script = Path(__file__).parent / "distill_worker.py"
    result = subprocess.run(
        [*launcher, str(script), str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    first, second = worker.fingerprints(recipe, 2)
    assert first == second
    assert len(read_log(Path(recipe.output_dir) / "log.jsonl")) == 2

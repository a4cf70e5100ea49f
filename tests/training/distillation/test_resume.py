"""Runs that are killed, pre-empted and resumed do what an uninterrupted run does, to the bit."""

import json
import re
import signal
from pathlib import Path

import pytest

from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.distillation.step import TrainingStep
from lighthubert_hf.training.runs.checkpoints import latest_checkpoint

from . import distill_worker as worker

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


def test_killed_twice(tiny_recipe, reference):
    """With threads that read ahead, which the reference does without."""
    recipe = tiny_recipe(**SECTIONS, data={"num_workers": 2})
    assert worker.run(recipe, kill_at_step=4) == [-signal.SIGKILL]
    assert latest_checkpoint(Path(recipe.output_dir) / "checkpoints").name == "step-00000003"
    assert worker.run(recipe, kill_at_step=7) == [-signal.SIGKILL]
    assert latest_checkpoint(Path(recipe.output_dir) / "checkpoints").name == "step-00000006"
    assert worker.run(recipe) == [0]
    same(recipe, reference)


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

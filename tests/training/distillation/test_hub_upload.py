"""Pushing while training, to a Hub-compatible server on this machine."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from transformers.utils import hub as transformers_hub

from lighthubert_hf import LightHubertModel
from lighthubert_hf.hub.folder import load_facts
from lighthubert_hf.training.distillation.run import distill


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The test server, in a process of its own; this process is logged in to it."""
    command = [sys.executable, "-m", "tests.hub.server"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as process:
        settings = dict(setting.split("=") for setting in process.stdout.readline().split()[1:])
        monkeypatch.setattr(constants, "ENDPOINT", settings["HF_ENDPOINT"])
        template = settings["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # a client that it keeps, of an earlier server
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", settings["HF_TOKEN"])
        yield settings["HF_ENDPOINT"]
        process.terminate()


def test_every_checkpoint_and_the_final_model_are_pushed(hub, tiny_recipe):
    recipe = tiny_recipe(training={"steps": 6}, hub={"repo_id": "alice/distilled"}, checkpoint={"every": 2, "keep": 1})
    final = distill(recipe, show_progress=False)
    titles = [commit.title for commit in HfApi().list_repo_commits("alice/distilled")]
    assert "Step 2" in titles  # those after it may find it still running
    assert titles[0] in ("Step 6", "Final model")  # the same model: one commit
    loaded = LightHubertModel.from_pretrained("alice/distilled")
    local = LightHubertModel.from_pretrained(final)
    assert all((a == b).all() for a, b in zip(loaded.parameters(), local.parameters(), strict=True))
    assert sorted(path.name for path in (Path(recipe.output_dir) / "checkpoints").iterdir())[-1] == "step-00000006"


def test_the_licence_of_a_teacher_on_the_hub_is_carried_on(hub, tiny_recipe, tiny_teacher, monkeypatch):
    """It is asked for once: a later life of the run finds it in the checkpoint."""
    api = HfApi()
    api.create_repo("alice/teacher")
    api.upload_folder(repo_id="alice/teacher", folder_path=tiny_teacher)
    card = b"---\nlicense: cc-by-nc-4.0\n---\n# A teacher\n"
    api.upload_file(repo_id="alice/teacher", path_or_fileobj=card, path_in_repo="README.md")
    recipe = tiny_recipe(teacher={"path": "alice/teacher"}, training={"steps": 2})
    final = distill(recipe, show_progress=False)
    assert load_facts(final).license == "cc-by-nc-4.0"
    assert ModelCard.load(final / "README.md").data.license == "cc-by-nc-4.0"
    shutil.rmtree(final)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_facts(distill(recipe, show_progress=False)).license == "cc-by-nc-4.0"


def test_a_failing_push_does_not_stop_the_training(hub, tiny_recipe, monkeypatch, caplog):
    from lighthubert_hf.training.runs import hub_upload

    pushed = []

    def unreliable(folder, repo_id, **options):
        pushed.append(options["commit_message"])
        if options["commit_message"] != "Final model":
            raise ConnectionError("no network today")

    monkeypatch.setattr(hub_upload, "push_folder", unreliable)
    recipe = tiny_recipe(training={"steps": 4}, hub={"repo_id": "alice/distilled"})
    with caplog.at_level(logging.WARNING):
        assert distill(recipe, show_progress=False).is_dir()
    assert pushed[-1] == "Final model"
    assert "is not pushed: no network today" in caplog.text


def test_no_permission_shows_before_training(hub, tiny_recipe):
    recipe = tiny_recipe(hub={"repo_id": "somebody-else/distilled"})
    with pytest.raises(ValueError, match="could not push to somebody-else/distilled") as error:
        distill(recipe, show_progress=False)
    assert "\n" not in str(error.value)
    assert not (Path(recipe.output_dir) / "checkpoints").exists()

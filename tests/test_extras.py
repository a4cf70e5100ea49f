"""What is missing is said before work begins, in one line, with the command that installs it here."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from lighthubert_hf import extras

ROOT = Path(__file__).parents[1]


def test_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, requirements in project["optional-dependencies"].items():
        names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
        own = tuple(name for name in names if name != extras.DISTRIBUTION)
        if extra not in ("docs", "dev"):
            assert extras.EXTRAS[extra] == own
    assert extras.EXTRAS.keys() == project["optional-dependencies"].keys() - {"docs", "dev"}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("search SUPERNET OUT --score a:b", "optuna", "search"),
        ("search SUPERNET OUT", "matplotlib", "search"),
        ("finetune finetune-ctc", "jiwer", "train"),
        ("distill economical", "datasets", "train"),
        ("evaluate MODEL", "evaluate", "train"),
        ("cost economical", "yaml", "train"),
        ("demo", "espeakng_loader", "demo"),
        ("recipes", "pydantic", "train"),
    ],
)
def test_a_missing_package_is_one_line_before_anything_else(command, package, extra, tmp_path):
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['lighthubert', *{command.split()!r}]; "
        "from lighthubert_command import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert re.search(rf"needs .*; install with: pip install (-e )?'.*\[{extra}\]'$", done.stderr.strip())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("lighthubert_hf.search.run", "optuna", "search"),
        ("lighthubert_hf.search.studies", "sqlalchemy", "search"),
        ("lighthubert_hf.training.audio.streaming", "soundfile", "train"),
        ("lighthubert_hf.metrics", "evaluate", "train"),
    ],
)
def test_python_says_what_the_command_says(monkeypatch, module, package, extra):
    """Imported anew without the package: nothing of it is taken from what other tests imported."""
    inside = tuple(
        f"{name}." for name in ("lighthubert_hf.search", "lighthubert_hf.training", "lighthubert_hf.metrics")
    )
    for name in [name for name in sys.modules if f"{name}.".startswith(inside)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs .*{package}.*; install with: pip install .*\[{extra}\]'$") as error:
        importlib.import_module(module)
    assert not isinstance(error.value, ModuleNotFoundError)


class Installed:
    """A distribution that was installed from `url`."""

    def __init__(self, url, **how):
        self.text = None if url is None else json.dumps({"url": url, **how})

    def read_text(self, name):
        return self.text if name == "direct_url.json" else None


def test_the_command_installs_from_where_the_package_came_from(monkeypatch, tmp_path):
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()

    def command(*how, **options):
        monkeypatch.setattr(metadata, "distribution", lambda name: Installed(*how, **options))
        return extras.install_command(["train", "search"])

    assert command(None) == f"pip install -e '{ROOT}[train,search]'"  # this is one
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "lighthubert_hf" / "extras.py"))
    assert command(None) == "pip install 'lighthubert-hf[train,search]'"
    assert command(checkout.as_uri(), dir_info={}) == f"pip install '{checkout}[train,search]'"
    assert command((tmp_path / "gone").as_uri(), dir_info={}) == "pip install 'lighthubert-hf[train,search]'"


def test_trackers_are_asked_for_before_data_are_read(monkeypatch):
    extras.require_trackers([])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"names wandb, which is not installed: pip install wandb"):
        extras.require_trackers(["wandb"])

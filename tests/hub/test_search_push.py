"""`lighthubert search … --push`, and what it refuses before it searches."""

import json

import pytest
from typer.testing import CliRunner

from lighthubert_hf.cli import app
from lighthubert_hf.hub.folder import save_model_folder

pytest.importorskip("optuna")

SCORE = "def score(subnet):\n    return float(sum(subnet.intermediate_size))\n"


@pytest.fixture
def search(supernet, tmp_path):
    """`search(*arguments)`: a search of four subnets over the tiny supernet."""
    save_model_folder(supernet, tmp_path / "supernet")
    (tmp_path / "wide.py").write_text(SCORE)

    def run(*arguments):
        fixed = [
            "search",
            str(tmp_path / "supernet"),
            str(tmp_path / "out"),
            "--score",
            f"{tmp_path / 'wide.py'}:score",
        ]
        return CliRunner().invoke(app, [*fixed, "--trials", "4", "--population-size", "2", "--json", *arguments])

    return run


def test_what_a_search_has_found_is_published(hub, search, tmp_path):
    result = search("--extract", "1", "--push", "acme/found", "--private")
    assert result.exit_code == 0, result.output
    saved = [entry for entry in json.loads((tmp_path / "out/pareto.json").read_text())["subnets"] if entry["folder"]]
    assert len(saved) == 1
    assert {name.partition("-")[0] for name in hub.store.repos} == {"acme/found"}
    assert len(hub.store.repos) == 2  # the subnet and its supernet
    assert all(repo.private for repo in hub.store.repos.values())
    assert [found["name"] for found in json.loads(result.stdout)]  # JSON alone on standard output


@pytest.mark.parametrize(("prefix", "message"), [("found", "OWNER/NAME"), ("acme/found", "401")])
def test_nothing_is_searched_for_if_nothing_could_be_pushed(hub, search, tmp_path, monkeypatch, prefix, message):
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    result = search("--push", prefix)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()

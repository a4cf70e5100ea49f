"""The page's data, its errors, its file and its Space."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from lighthubert_hf.cli import app
from lighthubert_hf.explore import write_page, write_space
from lighthubert_hf.explore.pages import page_data

from .conftest import NAME


def embedded(text):
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_a_search_as_data(searched):
    data, report = page_data(searched), json.loads((searched / "pareto.json").read_text())
    assert page_data(searched / "pareto.json") == data
    assert [s["name"] for s in data["subnets"]] == [entry["name"] for entry in report["scored"]]
    assert data["axis"] == "macs@10s"
    assert data["teacher"]["costs"] == {"parameters": report["teacher"]["parameters"], "macs@10s": 10**8}
    words = shlex.split(data["subnets"][0]["command"])
    assert words[:3] == ["lighthubert", "extract", NAME]
    assert json.loads(words[words.index("--subnet") + 1]) == report["scored"][0]["subnet"]
    elsewhere = page_data(searched, "acme/light-supernet")
    assert shlex.split(elsewhere["subnets"][0]["command"])[2] == "acme/light-supernet"


def test_a_run_as_data(trained):
    data = page_data(trained)
    assert data["curves"]["loss"] == [[10, 0.5]]
    assert data["curves"]["lr"] == [[10, 1e-3], [20, 5e-4]]
    assert data["validation"] == {"smallest": [[10, 0.6]], "largest": [[10, 0.4]]}
    assert (data["step"], data["skipped_steps"]) == (20, 1)


def test_the_page_holds_all_and_ends_no_script_early(searched, tmp_path):
    path = write_page(searched, tmp_path / "new" / "page.html")
    text = path.read_text()
    assert embedded(text) == page_data(searched)
    assert NAME not in text and "&lt;b&gt;my supernet" in text
    assert "<script src" not in text and '<link rel="stylesheet' not in text


def test_a_space_is_a_page_with_a_card(searched, tmp_path):
    folder = write_space(searched, tmp_path / "space")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "index.html"]
    assert (
        (folder / "README.md")
        .read_text()
        .startswith('---\ntitle: "Subnets of </script><b>my supernet</b>"\nsdk: "static"\n')
    )


def test_what_cannot_be_shown_is_named(searched, trained, tmp_path):
    def refusal(run, **changes):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            page_data(run, **changes)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "there is no folder" in refusal(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither a search (pareto.json) nor a distillation (log.jsonl)" in refusal(empty)
    (empty / "study.db").touch()
    assert "a search that has not ended; run the same" in refusal(empty)
    (empty / "pareto.json").write_text("{")
    assert "is not JSON" in refusal(empty)
    report = json.loads((searched / "pareto.json").read_text())
    for missing in ("scored", "teacher", "score", "limits", "hypervolume_history"):
        (empty / "pareto.json").write_text(json.dumps({k: v for k, v in report.items() if k != missing}))
        assert f"no '{missing}'" in refusal(empty)
    (empty / "pareto.json").write_text(json.dumps(report | {"scored": [1]}))
    assert "is not the report of a search" in refusal(empty)
    (trained / "log.jsonl").write_text("")
    assert "has no line yet" in refusal(trained)


def test_the_command(searched, tmp_path):
    result = CliRunner().invoke(app, ["explore", str(searched), "--output", str(tmp_path / "page.html")])
    assert result.stdout.strip() == str(tmp_path / "page.html")
    assert embedded((tmp_path / "page.html").read_text())["kind"] == "search"
    both = CliRunner().invoke(app, ["explore", str(searched), "--serve", "--output", "x"])
    assert "leave it out" in str(both.exception)

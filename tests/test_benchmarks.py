"""What the programs in benchmarks/ share: tables find their place, and name no place on this machine."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
RESULTS = {"machine": {"date": "2026-01-01", "device": "a processor", "threads": 2, "torch": "2"}}


@pytest.fixture
def contenders(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("contenders")


def test_a_table_replaces_the_one_in_the_guide_and_shows_a_command_for_others(contenders, tmp_path, monkeypatch):
    guide, results = tmp_path / "guide.md", tmp_path / "results.json"
    guide.write_text("before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
    command = ["--original", "/home/me/checkout", "--rounds", "3", "--json", str(results), "--docs", str(guide)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *command])
    options = contenders.arguments("", rounds=5).parse_args(command)
    table = contenders.markdown(["", "ms"], [["ours", "1"]])
    for _ in range(2):
        contenders.publish("speed", RESULTS, table, options)
    text = guide.read_text()
    assert text.startswith("before\n<!-- speed: begin -->\n2026-01-01, a processor")
    assert text.endswith("<!-- speed: end -->\nafter\n")
    assert "`python benchmarks/speed.py --original CHECKOUT --rounds 3`" in text
    assert text.count(table) == 1
    assert "old" not in text and "/home/me" not in text
    assert json.loads(results.read_text()) == RESULTS
    with pytest.raises(ValueError, match="add the lines"):
        contenders.publish("another", RESULTS, table, options)


def test_contenders_take_turns_beside_a_matrix_product(contenders):
    order = []
    times = contenders.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 4  # two rounds warm up
    assert {name: len(values) for name, values in times.items()} == {contenders.MATMUL: 2, "a": 2, "b": 2}
    assert contenders.matmul_rate(times) > 0
    assert contenders.summary([3.0, 1.0, 2.0, 4.0, 5.0]) == {"median_ms": 3.0, "least_ms": 1.0, "spread": 0.667}


def test_an_uneven_batch_is_audio_and_padding(contenders):
    inference = importlib.import_module("inference")
    audio, valid = inference.batch_of(4, 0.1, uneven=True)
    assert valid.sum(1).tolist() == [400, 800, 1200, 1600]
    assert not audio[~valid].any()
    assert inference.batch_of(2, 0.1, uneven=False)[1].all()


def test_every_program_is_listed():
    programs = {path.name for path in FOLDER.glob("*.py")} - {"contenders.py"}
    listed = (FOLDER / "README.md").read_text()
    assert [name for name in programs if f"benchmarks/{name}" not in listed] == []

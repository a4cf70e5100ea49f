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


@pytest.fixture
def attempts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "reliability"))
    return importlib.import_module("attempts")


SAFE = (2).to_bytes(8, "little") + b"{}" + bytes(8)


@pytest.mark.parametrize(
    ("name", "sound", "changed", "reason"),
    [
        ("m.safetensors", SAFE, SAFE[:-1] + b"\1", "other weights"),
        ("m.safetensors", SAFE, SAFE[:8] + b"[]" + SAFE[10:], None),
        ("m.safetensors", SAFE, SAFE[:-1], None),
        ("a.flac", bytes(60), b"\1" + bytes(59), "other values"),
        ("a.flac", bytes(60), bytes(59) + b"\1", None),
        ("c.json", b'{"a": 1, "b": "x"}', b'{"a": 2, "b": "y"}', "other values"),
        ("c.json", b'{"a": 1}', b'{"b": 1}', None),
        ("c.json", b'{"a": 1}', b'{"a":  1}', None),
        ("c.json", b'{"a": 1}', b'{"a": "1"}', None),
        ("c.json", b'{"a": 1}', b"{", None),
        ("r.yaml", b"a: {b: 1}", b"a: {b: 2}", "other values"),
        ("d.jsonl", b'{"a": 1}\n{"a": 2}\n', b'{"a": 1}\n', None),
        ("README.md", b"word", b"wird", "other values"),
        ("study.db", b"word", b"wird", None),
    ],
)
def test_what_nothing_can_see_is_told_by_the_place(attempts, tmp_path, name, sound, changed, reason):
    (tmp_path / name).write_bytes(changed)
    assert attempts.unseeable(tmp_path / name, sound) == reason


def test_an_attempt_is_a_process_of_its_own(attempts, monkeypatch, tmp_path):
    assert attempts.attempt(("--version",)).status == 0
    end = attempts.attempt(("extract", str(tmp_path / "none"), str(tmp_path / "out")))
    assert end.is_one_line, end
    assert attempts.attempt(("--version",), kill_after=0.0).status is None


def test_the_demos_tables_find_their_places(contenders, tmp_path, monkeypatch):
    demo = importlib.import_module("demo")
    costs = {"parameters": 1e6, "macs_per_second": 9e7, "ms_per_second": 2.0, "speed": 1.0}
    teacher = costs | {"ms_per_second_in_transformers": 4.0, "cer": {"test_voice": 0.03}}
    subnet = {"name": "small", "description": "tiny", "loss": 0.1, "losses_of_random_subnets": [0.2, 0.3]}
    search = {"evaluated": 5, "subnets": 9000, "seconds": 3.0, "predicting_the_mean": 0.5}
    results = {
        "settings": {"units": 100},
        "teacher": teacher,
        "search": search,
        "subnets": [costs | subnet | {"speed": 2.5, "cer": {"test_voice": 0.055}, "units": {"unit_error_rate": 0.25}}],
        "seconds": {"speech": 5.0, "teacher": 61.0},
    }
    level = {"seconds": 90.0, "peak_bytes": 2e9, "results": results}
    for name in ("README.md", "docs/demo.md", "native/pareto.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("a\n<!-- demo: begin -->\nold\n<!-- demo: end -->\nz\n")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "RESULTS", tmp_path / "demo.json")
    monkeypatch.setattr(demo, "PICTURE", tmp_path / "picture.png")
    levels = {"native": level, "avx2": level | {"seconds": 150.0}}
    demo.publish(levels, tmp_path, RESULTS["machine"])
    row = "| small | 1.00M | 90M | 2.00 | 2.50 | 0.100 | 5.5% | 25% |"
    for name in ("README.md", "docs/demo.md"):
        text = (tmp_path / name).read_text()
        assert row in text and "old" not in text and demo.COMMAND in text
    assert "1.5 minutes as it is, 2.5 minutes without AVX-512" in (tmp_path / "README.md").read_text()
    assert "| teacher | 61 | 61 |" in (tmp_path / "docs" / "demo.md").read_text()
    assert json.loads((tmp_path / "demo.json").read_text())["levels"].keys() == levels.keys()
    assert (tmp_path / "picture.png").is_file()

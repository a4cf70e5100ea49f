"""benchmarks/gpu.py on the CPU, tiny: the very program that measures on a GPU, up to the first call of CUDA."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parents[1]
TINY = ["--device", "cpu", "--tiny"]


@pytest.fixture
def program(monkeypatch):
    """The module. Its accelerator is for bf16, and there is one state of accelerators in a process."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    AcceleratorState._reset_state(reset_partial_state=True)
    yield importlib.import_module("gpu")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def guides(tmp_path):
    return Path(shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images")))


def as_measured(results: dict, file: Path) -> Path:
    """Results of tiny models in the clothes of real ones, which the guides take."""
    file.write_text(json.dumps({name: part | {"tiny": False} for name, part in results.items()}), encoding="utf-8")
    return file


def test_a_part_runs_once_and_fills_its_tables(program, guides, tmp_path):
    folder = tmp_path / "out"
    arguments = [str(folder), *TINY, "--parts", "training-economical"]
    assert program.main(arguments) == 0
    results = json.loads((folder / "gpu.json").read_text())
    assert list(results) == ["training-economical"]
    assert program.main(arguments) == 0
    assert json.loads((folder / "gpu.json").read_text()) == results  # with the times of the first run
    result = results["training-economical"]["result"]
    assert len(result["batches"]) == 1  # its own; the other size in a tiny run is the same
    (row,) = result["batches"].values()
    assert row["audio_per_second"] > 0 and row["share"] > 0
    with pytest.raises(ValueError, match="--tiny, which only tries the program out"):
        program.main(["--tables", str(folder / "gpu.json"), "--docs", str(guides)])
    file = as_measured(results, tmp_path / "results.json")
    assert program.main(["--tables", str(file), "--docs", str(guides)]) == 0
    assert "| `economical`, 6 |" in (guides / "performance.md").read_text()
    assert "| `economical` |" in (guides / "training.md").read_text().partition("<!-- gpu_recipes: begin -->")[2]


def test_a_part_that_fails_is_not_done(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "train_recipe", lambda *_: 1 / 0)
    arguments = [str(tmp_path), *TINY, "--parts", "training-economical"]
    assert program.main(arguments) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert json.loads((tmp_path / "gpu.json").read_text()) == {}


def test_contenders_that_fail_say_why(program, monkeypatch):
    """One whose kernels are missing does not stop the others."""

    def make(name, audio, options):
        if name != "ours":
            raise ImportError("no kernels\nof that kind")
        return lambda: audio @ audio.T, 1

    monkeypatch.setattr(program, "make_encoder", make)
    result = program.encode_audio(1, 1, program.parse(TINY))
    assert list(result["contenders"]) == ["ours"]
    assert result["failed"]["ours, flash attention 2"] == "ImportError: no kernels"


def test_where_there_is_no_gpu_it_says_so(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program.torch.cuda, "is_available", lambda: False)
    assert program.main([str(tmp_path / "out")]) == 2
    assert "`--device cpu --tiny` tries the program out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts(program, guides, tmp_path):
    assert program.main([str(tmp_path), *TINY]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results) == list(program.all_parts({}, program.parse(TINY)))
    assert results["tests"]["result"]["failed"] == {}
    assert results["economical"]["complete"]
    assert program.main(["--tables", str(as_measured(results, tmp_path / "r.json")), "--docs", str(guides)]) == 0
    for guide in ("performance.md", "training.md"):
        for part in (guides / guide).read_text().split("<!-- gpu_")[1:]:
            name, _, text = part.partition(": begin -->")
            assert not text or text.count("\n| ") > 2, name


def test_the_wheels_to_carry_are_pinned(program):
    bundle = importlib.import_module("gpu_bundle")
    lines = bundle.pinned((ROOT / "constraints.txt").read_text())
    assert len(lines) == len(bundle.MISSING) and all("==" in line for line in lines)
    with pytest.raises(ValueError, match="names no version of accelerate"):
        bundle.pinned("torch==2.13.0")

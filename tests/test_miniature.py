"""The miniature of the paper's claims: its rules on made-up results, and its parts in a few steps."""
# ruff: noqa: E402 (benchmarks are programs, not a package)

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "miniature"), str(ROOT / "benchmarks")]

import claims
import distilling
import parts
from report import write_report
from run import main
from settings import SETTINGS

from .precision import assert_as_exact, in_double

SETTING = replace(SETTINGS["tiny"], seeds=(0,))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.1, 0.0, 3.0), claims.HOLDS),
        ((-0.1, -2.0, -3.0), claims.FAILS),
        ((-0.1, 0.0, 3.0), claims.UNDECIDED),
        ((5.0,), claims.UNDECIDED),
        ((), claims.UNDECIDED),
    ],
)
def test_rule(values, expected):
    row = claims.Row("1", "", "", values, 0.0)
    assert row.verdict == expected
    held = claims.Row("1", "", "", (1.0, 1.0), 0.0)
    assert claims.verdict([held, row]) == expected


def test_share_to_reach():
    curve = [(0.25, 4.0), (0.5, 2.0), (1.0, 1.0)]
    assert claims.share_to_reach(curve, 3.0) == 0.375
    assert claims.share_to_reach(curve, 1.0) == 1.0
    assert claims.share_to_reach(curve, 5.0) == 0.25  # earlier is not known
    assert claims.share_to_reach(curve, 0.9) is None


def test_rank_correlation():
    def ranking(scores):
        return [{"loss": loss, "scores": {"ks": score, "asv": score}} for loss, score in enumerate(scores)]

    assert claims.rank_correlation(ranking([0.9, 0.8, 0.7]), "ks") == pytest.approx(1)
    assert claims.rank_correlation(ranking([0.1, 0.2, 0.3]), "asv") == pytest.approx(1)  # an error rate
    assert claims.rank_correlation(ranking([0.5, 0.5, 0.5]), "ks") == 0


def seed(plain: float, sandwich: float) -> dict:
    """Records of a stage 2 that ends at `plain`, and of the sandwich rule, which ends at `sandwich`, from loss 2."""

    def record(loss):
        points = [{"flop": 10.0 * n, "seconds": 1.0 * n, "random": 2 + (loss - 2) * n / 4} for n in (1, 2, 3, 4)]
        return {"flop": 40.0, "seconds": 4.0, "curve": points, "random": [[1, loss]]}

    return {"stage1": record(3), "stage2": record(plain), "sandwich": record(sandwich)}


def test_winner_saves_work_in_every_seed():
    assert claims.winner({"0": seed(1.5, 1.0), "1": seed(1.5, 1.2)}) == "sandwich"
    assert claims.winner({"0": seed(1.5, 1.0), "1": seed(1.5, 1.6)}) is None
    # Half the way in stage 2 reaches the loss: a quarter of the work of both stages is saved.
    assert claims.additions({"0": seed(1.5, 1.0)})["sandwich"]["flop"] == [pytest.approx(0.75)]


def test_verdicts_do_not_depend_on_what_is_missing():
    assert {claims.verdict(rows) for rows in claims.all_claims({"seeds": {}}).values()} == {claims.UNDECIDED}


@pytest.mark.parametrize("name", SETTINGS)
def test_named_subnets_lie_in_the_space(name):
    architecture = SETTINGS[name].architecture
    assert all(subnet in architecture.search_space for subnet in architecture.named_subnets().values())


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A run with everything up to stage 2 of its seed."""
    folder = tmp_path_factory.mktemp("miniature") / "run"
    parts.Results(folder).claim(SETTING)
    for part in parts.all_parts(SETTING):
        if part.name in ("corpus", "teacher", "stage1", "stage2"):
            parts.run_part(part, SETTING, folder)
    return folder


@pytest.mark.slow
def test_additions_get_the_plain_recipes_work(output):
    results, shop = parts.Results(output), distilling.Workshop(output, SETTING, 0)
    plain, before = results.of("stage2", 0), results.of("stage1", 0)
    for name, budget in (("sorting", plain["flop"]), ("teacher-init-in-place", plain["flop"] + before["flop"])):
        record = distilling.addition(shop, name, plain, before)
        step = record["flop"] / record["steps"]
        assert abs(record["flop"] - budget) < 1.5 * step
        assert record["curve"][-1]["step"] == record["steps"]


@pytest.mark.slow
def test_sorting_keeps_the_largest_subnet(output):
    shop = distilling.Workshop(output, SETTING, 0)
    folder = distilling._sorted_stage1(shop)
    before, after = (
        type(shop.model("stage1")).from_pretrained(path) for path in (shop.folder("stage1/model"), folder)
    )
    audio = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        models = after.eval(), before.eval(), in_double(before)
        assert_as_exact(*(model.lighthubert(audio).last_hidden_state for model in models))


@pytest.mark.slow
def test_front_end_is_the_teachers_in_every_run(output):
    shop = distilling.Workshop(output, SETTING, 0)
    teacher = distilling.load_encoder(distilling.TeacherSection(path=str(shop.teacher)))
    for part in ("stage1", "stage2"):
        own = shop.model(part).lighthubert.feature_extractor.state_dict()
        assert all(torch.equal(own[key], value) for key, value in teacher.feature_extractor.state_dict().items())


@pytest.mark.slow
def test_finished_part_is_not_done_again(output):
    part = next(part for part in parts.all_parts(SETTING) if part.name == "stage1")
    path = parts.Results(output).path(part)
    before = path.stat().st_mtime_ns
    parts.run_part(part, SETTING, output)
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_part_names_what_it_needs(output):
    part = next(part for part in parts.all_parts(SETTING) if part.name == "probes")
    with pytest.raises(ValueError, match="probes-0 needs stage2-alone-0, alone-71-0, alone-29-0"):
        parts.run_part(part, SETTING, output)


def test_folder_of_another_setting_is_refused(tmp_path):
    parts.Results(tmp_path / "run").claim(SETTING)
    with pytest.raises(ValueError, match="another setting"):
        parts.Results(tmp_path / "run").claim(replace(SETTING, batch_seconds=5.0))


@pytest.mark.slow  # the run before it; test_everything is slow, too
def test_report_of_a_part_of_the_run(output, tmp_path):
    docs = tmp_path / "miniature.md"
    docs.write_text("Before\n<!-- miniature/run: begin -->\nstale\n<!-- miniature/run: end -->\nAfter\n")
    text = write_report(SETTING, output, tmp_path / "results" / "miniature.json", docs)
    written = docs.read_text()
    assert text in written
    assert "stale" not in written
    assert (tmp_path / "images" / "miniature-additions.png").is_file()
    stored = json.loads((tmp_path / "results" / "miniature.json").read_text())
    assert set(stored["seeds"]["0"]) == {"stage1", "stage2"}


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "miniature" / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_unknown_part_is_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["--setting", "tiny", "--output", str(tmp_path / "run"), "--part", "stage3"]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no part 'stage3'" in line


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything(tmp_path):
    folder = tmp_path / "run"
    done = run("--setting", "tiny", "--output", folder, "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert set(results["seeds"]["0"]) == {part.name for part in parts.all_parts(SETTING) if part.seed == 0}
    rows = [row for rows in claims.all_claims(results).values() for row in rows]
    assert all(len(row.values) == 1 for row in rows)
    again = run("--setting", "tiny", "--output", folder, "--seed", "0")
    assert "done" not in again.stdout.split("###")[0].splitlines()[0]

"""The miniature's studies of training: rules on made-up results, what they count, and every part in a few steps."""
# ruff: noqa: E402 (benchmarks are programs, not a package)

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "miniature"), str(ROOT / "benchmarks")]

import front_end
import front_end_report
import label_free
import recipe
import recipe_report
import studies
from claims import TITLES
from distilling import Workshop
from front_end_setting import FRONT_END_SETTINGS
from parts import Results
from publishing import publish_study
from recipe_setting import ALONE, IDEAS, RECIPE_SETTINGS, WINNER

from lighthubert_hf.training.distillation.cost import count_cost
from lighthubert_hf.training.distillation.objectives.base import TeacherRequest

from .training.distillation.encoders import make_encoder

STUDIES = {"front_end": front_end.study, "recipe": recipe.study}


def run(losses: list[float], macs: list[float]) -> dict:
    front = [{"loss": loss, "macs": size} for loss, size in zip(losses, macs, strict=True)]
    return {"front": front, "sizes": {"largest, whole": {"macs": 100.0}}, "predicting_the_mean": 1.0}


def test_fronts_are_compared_at_budgets_that_both_can_keep():
    narrow, wide = run([0.8, 0.5], [20.0, 45.0]), run([0.6, 0.3], [40.0, 60.0])
    assert front_end_report.loss_at(narrow, 44.9) == 0.8
    assert front_end_report.loss_at(wide, 39.0) is None
    gains = front_end_report.gains(narrow, wide)
    assert len(gains) == front_end_report.BUDGETS
    assert gains[0] == pytest.approx(100 * (1 - 0.8 / 0.6))  # at 40, the least that both have
    assert gains[-1] == pytest.approx(100 * (1 - 0.5 / 0.6))  # at half of the teacher's
    assert front_end_report.volume(wide) == pytest.approx(0.2 * 0.4 + 0.4 * 0.7)
    assert front_end_report.gains(narrow, run([0.3], [60.0])) == []  # nothing of the other is that small


def test_a_score_is_better_if_it_is_so_in_every_seed():
    def seed(scores: list[float]) -> dict:
        label_free_scores = dict.fromkeys(label_free.SCORES, 0.0)
        first, *_ = label_free.SCORES
        rows = []
        for index, score in enumerate(scores):
            probes = {task: 1 - index / 10 if task in ("pr", "asv") else index / 10 for task in TITLES}
            row = {"loss": [0.3, 0.1, 0.2][index], "scores": probes, "label_free": label_free_scores | {first: score}}
            rows.append(row)
        return {"ranking": rows}

    first, *_ = label_free.SCORES
    good, bad = seed([1.0, 2.0, 3.0]), seed([3.0, 2.0, 1.0])
    assert recipe_report.correlations(good["ranking"])[first]["mean"] == pytest.approx(1)
    assert recipe_report.correlations(good["ranking"])["loss"]["pr"] == pytest.approx(0.5)
    assert first in recipe_report.better_scores({"0": good, "1": good})
    assert first not in recipe_report.better_scores({"0": good, "1": bad})
    assert recipe_report.better_scores({"0": good}) == []


def test_label_free_scores_of_what_is_known():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    turned = states @ torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    other = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    assert label_free.readable(states, turned) > 0.99
    assert label_free.readable(states, other) < 0.1
    assert label_free.similarity(states, 3 * turned + 1) == pytest.approx(1)
    assert label_free.similarity(states, other) < 0.1
    assert label_free.agreement(states, states) == pytest.approx(1)
    flat = states.clone()
    flat[:, 2:] = 0
    assert label_free.effective_rank(flat) == pytest.approx(2, abs=0.05)
    assert label_free.effective_rank(states) > 5


def test_the_remembering_teacher_answers_alike_and_is_asked_once(tmp_path, monkeypatch):
    request = TeacherRequest(layer_results=(1, 2), projected=True)
    audio = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 4000, dtype=torch.long)
    mask[1, 3000:] = 0
    kind = type("Remembering", (studies.RememberingTeacher,), {"folder": tmp_path})
    teacher = kind(make_encoder("hubert"), request)
    said = teacher(audio, mask)
    monkeypatch.setattr(studies.Teacher, "_run", lambda *_: pytest.fail("asked again"))
    again = teacher(audio, mask)
    assert torch.equal(said.projected, again.projected) and said.layer_results.keys() == again.layer_results.keys()
    assert all(torch.equal(said.layer_results[index], again.layer_results[index]) for index in (1, 2))
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        teacher(audio + 1, mask)


@pytest.mark.parametrize("frozen", [True, False])
def test_work_is_counted_as_the_package_counts_it(tmp_path, monkeypatch, frozen):
    monkeypatch.setattr(studies, "CLIP_SECONDS", 10.0)  # as there: attention makes long clips dearer
    setting = RECIPE_SETTINGS["tiny"]
    shop = Workshop(tmp_path, setting, 0)
    make_encoder("hubert", **setting.architecture.config | {"num_conv_pos_embeddings": 32}).save_pretrained(
        shop.teacher
    )
    student = {"init": "teacher", "search_space": setting.architecture.space, "freeze_front_end": frozen}
    made = studies.Run("any", 12, {"student": student}).recipe(shop)
    counted = studies.step_flop(shop, made) / made.data.batch_seconds
    assert counted == pytest.approx(count_cost(made).total, rel=0.05)  # without the head


def test_every_idea_is_a_recipe(tmp_path):
    shop = Workshop(tmp_path, RECIPE_SETTINGS["tiny"], 0)
    for name, idea in IDEAS.items():
        if not {"start", "widths"} & set(idea):
            assert studies.Run("any", 10, recipe._sections(shop, name)).recipe(shop).seed == 0
    assert {*ALONE, WINNER} <= set(IDEAS)


@pytest.mark.parametrize("name", FRONT_END_SETTINGS)
def test_front_ends_lie_in_the_elastic_space(name):
    setting = FRONT_END_SETTINGS[name]
    for channels in setting.front_ends.values():
        assert all(own in choices for own, choices in zip(channels, setting.channel_choices, strict=True))


def test_unknown_parts_and_other_settings_are_named(tmp_path):
    study = recipe.study("tiny")
    with pytest.raises(ValueError, match=r"no part .winer.; parts: report, .*winner"):
        studies.wanted_parts(study.parts, ["winer"], None)
    (winner,) = studies.wanted_parts(study.parts, ["winner"], 1)
    with pytest.raises(ValueError, match="winner-1 needs teacher"):
        studies.run_study(study, tmp_path, [winner])
    with pytest.raises(ValueError, match="another setting"):
        studies.run_study(recipe.study("default"), tmp_path, [])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STUDIES)
def test_everything(name, tmp_path):
    study, output, docs = STUDIES[name]("tiny"), tmp_path / "run", tmp_path / "guide.md"
    docs.write_text(f"<!-- miniature/{name}: begin -->\n<!-- miniature/{name}: end -->\n")
    parts = studies.wanted_parts(study.parts, None, 0)
    assert studies.run_study(study, output, parts)
    assert all(Results(output).done(part) for part in parts)
    text = publish_study(name, study, output, tmp_path / "results.json", docs)
    assert text in docs.read_text()
    assert studies.run_study(study, output, parts, minutes=0)  # nothing is left to begin

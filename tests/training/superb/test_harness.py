"""The whole of it: ten tasks on a tiny model, what is written, what is not done twice, and the command line."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.training.recipes.loading import parse_recipe
from lighthubert_hf.training.superb import harness, tiny
from lighthubert_hf.training.superb.harness import evaluate_model
from lighthubert_hf.training.superb.published import COLUMNS, SCORES
from lighthubert_hf.training.superb.registry import KINDS
from lighthubert_hf.training.superb.report import card_entries, update_card
from lighthubert_hf.training.superb.settings import SUPERB_RATES, TASKS, EvaluationSettings, load_data

SHORT = EvaluationSettings(preset="tiny", steps=2, validations=1, batch_size=6)


def evaluate(model, tasks, data, output, settings=SHORT, **options):
    return evaluate_model(model, tasks, data, output, settings, progress=False, device="cpu", **options)


def test_all_tasks(tiny_static, superb_data, superb_folder, tmp_path):
    before = {name: value.clone() for name, value in tiny_static.state_dict().items()}
    results = evaluate(tiny_static, "all", superb_data, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in tiny_static.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_static.parameters())
    assert list(results["tasks"]) == list(TASKS)
    for name, result in results["tasks"].items():
        for metric in KINDS[name].metrics:
            assert 0 <= result["metrics"][metric.name] <= 3
        assert result["data"]["splits"]["test"] == {
            "name": "test", "examples": 6, "dropped": {}, "seconds": pytest.approx(2.1), "cached": True
        }  # fmt: skip
        assert result["seed"] == 0
        assert result["steps"] == (0 if name == "qbe" else 2)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["parameters"] == sum(parameter.numel() for parameter in tiny_static.parameters())
    assert {"fingerprint", "machine", "package_version", "revision", "settings"} <= results.keys()
    # Ten tasks share one set of audio: four sets of features, one for each split.
    assert len(list((tmp_path / "features").iterdir())) == 4
    measured, published = (tmp_path / "results.md").read_text().split("## Published")
    assert "tones" in measured
    assert "HuBERT Base" in published and "HuBERT Base" not in measured


def test_finished_tasks_are_not_done_again(tiny_static, superb_data, tmp_path, monkeypatch):
    results = evaluate(tiny_static, "ks pr", superb_data, tmp_path)
    done, original = [], harness.train_head

    def train(task, *args, **options):
        done.append(task.name)
        return original(task, *args, **options)

    monkeypatch.setattr(harness, "train_head", train)
    assert evaluate(tiny_static, "ks pr", superb_data, tmp_path) == results
    assert not done
    other = SHORT.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match=r"holds pr with another seed; .*--overwrite"):
        evaluate(tiny_static, "ks pr", superb_data, tmp_path, other)
    assert not done
    evaluate(tiny_static, "ks pr", superb_data, tmp_path, other, overwrite=True)
    assert done == ["pr", "ks"]
    again = evaluate(tiny_static, "ks pr", superb_data, tmp_path / "elsewhere")
    for name, result in again["tasks"].items():
        assert result["metrics"] == results["tasks"][name]["metrics"]
        assert result["loss"] == results["tasks"][name]["loss"]


def test_a_folder_of_something_else_is_refused(tiny_static, superb_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"something else \(it has 'thesis.txt'"):
            evaluate(tiny_static, "ks", superb_data, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_features_that_do_not_fit_give_results_as_well(tiny_static, superb_data, tmp_path):
    settings = SHORT.model_copy(update={"cache_gigabytes": 0.0})
    result = evaluate(tiny_static, "ks", superb_data, tmp_path, settings)["tasks"]["ks"]
    assert not result["data"]["splits"]["train"]["cached"]
    assert result["data"]["splits"]["test"]["examples"] == 6
    with pytest.raises(ValueError, match="must fit the cache"):
        evaluate(tiny_static, "qbe", superb_data, tmp_path, settings)


def test_the_card_states_the_scores(tiny_static, superb_data, tmp_path):
    folder = save_model_folder(tiny_static, tmp_path / "model")
    results = evaluate(folder, "pr asr ks", superb_data, tmp_path / "out")
    update_card(folder, results)
    update_card(folder, results)  # replaces, does not pile up
    entries = ModelCard.load(folder / "README.md").data.eval_results
    wanted = {(entry.task_name, entry.metric_type, entry.metric_value) for entry in card_entries(results)}
    assert {(entry.task_name, entry.metric_type, entry.metric_value) for entry in entries} == wanted
    assert len(entries) == len(wanted) == 4
    assert {entry.dataset_name for entry in entries} == {"tones"}


def test_an_edited_card_keeps_its_text(tiny_static, superb_data, tmp_path):
    folder = save_model_folder(tiny_static, tmp_path / "model")
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\nMy own words.\n")
    update_card(folder, evaluate(folder, "ks", superb_data, tmp_path / "out"))
    card = ModelCard.load(readme)
    assert "My own words." in card.text
    assert [entry.metric_type for entry in card.data.eval_results] == ["accuracy"]


def test_a_supernets_card_is_not_its_subnets(tiny_supernet, superb_data, tmp_path):
    folder = save_model_folder(tiny_supernet, tmp_path / "supernet")
    results = evaluate(folder, "ks", superb_data, tmp_path / "out", subnet="smallest")
    assert results["subnet"] == tiny_supernet.search_space.smallest().to_dict()
    with pytest.raises(ValueError, match="extract it"):
        update_card(folder, results)


@pytest.mark.slow  # every task is run on stored tones above; the columns are tested where they are made
def test_synthetic_speech_has_what_every_task_reads(tiny_static, tmp_path):
    data = tiny.synthetic_data(tmp_path / "data", list(TASKS), examples=24, held_out_examples=6)
    results = evaluate(tiny_static, "all", data, tmp_path / "out")
    assert all(result["data"]["name"] == "synthetic speech" for result in results["tasks"].values())
    assert results["tasks"]["pr"]["data"]["splits"] == results["tasks"]["asr"]["data"]["splits"]


def test_data_are_named_by_overrides():
    table = load_data(["ks=my/folder", "ks.columns.label=keyword", "asr.train=train.360", "er={path: x, test: fold1}"])
    assert table.ks.path == "my/folder"
    assert table.ks.columns == {"label": "keyword"}
    assert (table.asr.path, table.asr.train) == ("openslr/librispeech_asr", "train.360")
    assert table.er.test == "fold1"
    with pytest.raises(ValueError, match="kws"):
        load_data(["kws=folder"])


def test_a_task_without_data_says_what_to_do(tiny_static, tmp_path):
    with pytest.raises(ValueError, match="--data ks=FOLDER_OR_HUB_ID"):
        evaluate(tiny_static, "asr ks", (), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(tiny_static, "ks", [f"ks={tmp_path}/nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rates():
    assert EvaluationSettings().rates_of("pr") == SUPERB_RATES["pr"]
    assert EvaluationSettings(preset="lighthubert-base").rates_of("sid").learning_rate == 5e-2
    assert EvaluationSettings(preset="lighthubert-small").rates_of("asv").learning_rate == 5e-5
    scaled = EvaluationSettings(scale=0.01, rates={"ks": {"steps": 500}})
    assert (scaled.rates_of("pr").steps, scaled.rates_of("ks").steps) == (1000, 5)
    for mistake in ({"preset": "suberb"}, {"rates": {"ks": {"stepps": 1}}}, {"scale": 0}, {"rates": {"qbe": {}}}):
        with pytest.raises(ValueError):  # noqa: PT011 (pydantic's)
            parse_recipe(EvaluationSettings, mistake)


def test_every_published_row_has_every_column():
    assert all(len(row) == 1 + len(COLUMNS) for row in SCORES.values())
    assert {task for task, _ in COLUMNS} == set(TASKS)


def test_a_damaged_task_is_named(tiny_static, superb_data, tmp_path):
    results = evaluate(tiny_static, "ks", superb_data, tmp_path)
    file = tmp_path / "tasks" / "ks.json"
    whole = file.read_text(encoding="utf-8")
    accuracy = json.dumps(results["tasks"]["ks"]["metrics"]["accuracy"])
    for damaged in (
        whole[: len(whole) // 2],
        "",
        "[]",
        whole.replace(f'"accuracy": {accuracy}', '"accuracy": 0.123', 1),
    ):
        assert damaged != whole
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match=r"ks\.json.*delete it to do the task again"):
            evaluate(tiny_static, "ks", superb_data, tmp_path)

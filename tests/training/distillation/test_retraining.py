"""Retraining a chosen subnet: what is taken over, and that one command does it."""

import json

import pytest
from typer.testing import CliRunner

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.cli import app
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.retraining import retraining_recipe
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.weights import weight_files

NARROW = {"hidden_size": 16, "num_attention_heads": [1, 2], "intermediate_size": [16, 32]}


@pytest.fixture(scope="module")
def run(make_recipe, tmp_path_factory):
    """A finished distillation, with much that a retraining does without."""
    recipe = make_recipe(
        tmp_path_factory.mktemp("runs") / "supernet",
        training={"steps": 20},
        checkpoint={"every": 20},
        sampler={"kind": "sandwich"},
        deep_targets={"share": 0.1},
        objective={"name": "lighthubert", "num_target_layers": 3, "unmasked_weight": 0.5},
    )
    distill(recipe, show_progress=False)
    return recipe


@pytest.fixture
def search(run, tmp_path):
    """As `lighthubert search` leaves it."""
    scored = [{"name": "tiny-a", "subnet": NARROW, "on_front": True}, {"name": "tiny-b", "on_front": False}]
    content = {"supernet": f"{run.output_dir}/model", "revision": None, "scored": scored, "subnets": scored[:1]}
    (tmp_path / "pareto.json").write_text(json.dumps(content))
    return tmp_path


def test_the_command_retrains_and_goes_on(run, search):
    output = search / "retrained"
    arguments = [
        "retrain",
        str(search),
        str(output),
        "--subnet",
        "tiny-a",
        "data.batch_seconds=2",
        "student.fit_head_on=2",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output / "model")
    static = LightHubertForPreTraining.from_pretrained(output / "model")
    assert static.config.search_space is None and static.active_subnet.to_dict() == NARROW
    losses = [entry["loss"] for entry in read_log(output / "log.jsonl")]
    assert len(losses) == 2  # a tenth of twenty steps
    written = weight_files(output / "model")[0].stat().st_mtime_ns
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert weight_files(output / "model")[0].stat().st_mtime_ns == written


def test_what_is_taken_over(run, tmp_path):
    for source in (run.output_dir, f"{run.output_dir}/model"):
        made = retraining_recipe(source, tmp_path, subnet="smallest", share=0.5, overrides=["logging.every=7"])
        for name in ("teacher", "objective", "masking", "data", "seed"):
            assert getattr(made, name) == getattr(run, name)
        assert (made.training.steps, made.checkpoint.every, made.logging.every) == (10, 10, 7)
        assert made.optimizer == run.optimizer and made.schedule.final_scale == 0
        assert made.deep_targets is None and made.sampler.kind == "random"
        assert made.student.subnet.hidden_size == 16 and made.student.init == f"{run.output_dir}/model"


def test_a_supernet_elsewhere_needs_its_recipe(run, search):
    content = json.loads((search / "pareto.json").read_text()) | {"supernet": "someone/supernet", "revision": "v1"}
    (search / "pareto.json").write_text(json.dumps(content))
    with pytest.raises(
        FileNotFoundError, match=r"beside the supernet someone/supernet; name its recipe with --recipe"
    ):
        retraining_recipe(search, search / "new", subnet="tiny-a")
    made = retraining_recipe(search, search / "new", subnet="tiny-a", recipe="economical")
    assert (made.student.init, made.student.revision) == ("someone/supernet", "v1")
    assert made.student.freeze_front_end and made.training.steps == 17500


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"which subnet of .*On its front are tiny-a; choose one with --subnet"),
        ({"subnet": "tiny-z"}, "knows no subnet 'tiny-z'; on its front are tiny-a"),
        ({"subnet": "tiny-a", "share": 0.0}, "above 0 and at most 1, got 0"),
        ({"subnet": "tiny-a", "overrides": ["optimizer.rate=1"]}, "unknown recipe key 'optimizer.rate'"),
        ({"subnet": "tiny-a", "recipe": "front-end"}, "trained the front end alone"),
    ],
)
def test_what_does_not_fit_is_named(search, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        retraining_recipe(search, search / "new", **options)
    assert "\n" not in str(caught.value)


def test_folders_that_are_neither(tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"neither the folder of a finished distillation .* nor of a search"):
        retraining_recipe(tmp_path, tmp_path / "new")

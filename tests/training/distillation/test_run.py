"""The whole loop: from a recipe to a model folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_wandb_available
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, SearchSpace
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.recipes.loading import load_recipe, shipped_recipes
from lighthubert_hf.weights import WeightsError

SHORT = ["training.steps=3", "data.synthetic_minutes=0.3"]  # enough for a checkpoint and a validation of a tiny twin


def losses(recipe) -> list[float]:
    return [entry["loss"] for entry in read_log(Path(recipe.output_dir) / "log.jsonl") if "loss" in entry]


def test_two_stages_and_a_retrained_subnet(tiny_recipe, make_recipe, tmp_path, tiny_corpus):
    validation = {
        "sources": [{"path": str(tiny_corpus), "split": "validation"}],
        "every": 15,
        "batch_seconds": 4,
        "crop_seconds": 2,
        "num_random": 1,
    }
    fast = {"lr": 3e-3}
    first = tiny_recipe(
        sampler={"kind": "largest"},
        training={"steps": 30},
        validation=validation,
        optimizer=fast,
        logging={"every": 10},
        checkpoint={"every": 15},
    )
    stage1 = distill(first, show_progress=False)
    assert losses(first)[-1] < 0.8 * losses(first)[0]
    second = make_recipe(
        tmp_path / "stage2",
        student={"init": str(stage1), "search_space": None},
        sampler={"kind": "sandwich", "in_place_weight": 0.2},
        training={"steps": 15},
        validation=validation,
        optimizer=fast,
        checkpoint={"every": 15},
    )
    stage2 = distill(second, show_progress=False)
    validated = [
        [entry["validation"] for entry in read_log(Path(recipe.output_dir) / "log.jsonl") if "validation" in entry]
        for recipe in (first, second)
    ]
    assert validated[0][0].keys() == {"smallest", "default", "largest", "random-0"}
    # Stage 1 helps the largest; only stage 2 teaches the smallest.
    assert validated[0][1]["largest"] < validated[0][0]["largest"]
    assert validated[1][0]["smallest"] < 0.8 * validated[0][1]["smallest"]
    for cls in (LightHubertForPreTraining, LightHubertModel, AutoModel):
        model = cls.from_pretrained(stage2)
        assert model.search_space == SearchSpace(**first.student.search_space.model_dump())
    extractor = AutoFeatureExtractor.from_pretrained(stage2)
    assert extractor.do_normalize
    assert extractor.return_attention_mask
    assert json.loads((stage2 / "preprocessor_config.json").read_text())["sampling_rate"] == 16000
    third = make_recipe(
        tmp_path / "subnet",
        student={"init": str(stage2), "search_space": None, "subnet": "smallest"},
        training={"steps": 2},
        validation=validation | {"every": 1},
    )
    static = LightHubertModel.from_pretrained(distill(third, show_progress=False))
    assert static.search_space is None
    assert static.config.hidden_size == 16
    assert losses(third)[0] < losses(first)[0]


@pytest.mark.parametrize("objective", ["dphubert", "armhubert", "distilhubert"])
def test_other_objectives_learn(tiny_recipe, objective):
    settings = {
        "dphubert": {"layer_groups": [[0], [2, 4]]},
        "armhubert": {},
        "distilhubert": {"layers": [2, 4]},
    }[objective]
    masking = {} if objective == "armhubert" else None
    recipe = tiny_recipe(
        objective={"name": objective, **settings},
        masking=masking,
        training={"steps": 16},
        optimizer={"lr": 3e-3},
        logging={"every": 4},
        checkpoint={"every": 16},
    )
    distill(recipe, show_progress=False)
    assert losses(recipe)[-1] < losses(recipe)[0]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_endless_failure_stops(tiny_recipe, monkeypatch):
    from lighthubert_hf.training.distillation.step import TrainingStep

    recipe = tiny_recipe(training={"steps": 50, "max_skipped_in_a_row": 3})
    run = TrainingStep.run

    def poisoned(self, step, batches, *args):
        batches[0]["input_values"][:] = float("nan")
        return run(self, step, batches, *args)

    monkeypatch.setattr(TrainingStep, "run", poisoned)
    with pytest.raises(ValueError, match=r"3 steps in a row were not finite \(up to step 3\); lower optimizer.lr"):
        distill(recipe, show_progress=False)


@pytest.fixture(scope="module")
def six_steps(make_recipe, tmp_path_factory):
    """The folder of a whole run, with checkpoints after steps 4 and 6."""
    folder = tmp_path_factory.mktemp("six") / "run"
    distill(make_recipe(folder), show_progress=False)
    return folder


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("complete.json", lambda content: b""),
        ("pretrained_model/model.safetensors", lambda content: bytes(len(content))),
        ("training_state/optimizer.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 64])),
        ("training_state/trainer.json", None),
    ],
)
def test_a_damaged_checkpoint_changes_no_result(six_steps, tiny_recipe, caplog, name, damage):
    recipe = tiny_recipe()
    model = Path(shutil.copytree(six_steps, recipe.output_dir)) / "model"
    expected, log = load_file(model / "model.safetensors"), losses(recipe)
    shutil.rmtree(model)
    file = model.parent / "checkpoints" / "step-00000006" / name
    file.write_bytes(damage(file.read_bytes())) if damage else file.unlink()
    with caplog.at_level("WARNING"):
        distill(recipe, show_progress=False)
    assert any("step-00000006" in line and name in line and "step-00000004" in line for line in caplog.messages)
    found = load_file(model / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert losses(recipe) == log
    shutil.rmtree(model)
    for mark in model.parent.glob("checkpoints/*/complete.json"):
        mark.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be gone on from.*--overwrite"):
        distill(recipe, show_progress=False)
    assert not model.exists()


def test_weights_that_are_not_finite_are_no_result(tiny_recipe, monkeypatch):
    from lighthubert_hf.training.distillation.step import TrainingStep

    run = TrainingStep.run

    def overflowing(self, step, *args):
        result = run(self, step, *args)
        if step == 2:
            self.parameters[0].data.view(-1)[0] = float("inf")
        return result

    recipe = tiny_recipe(training={"steps": 3}, checkpoint={"every": 2})
    monkeypatch.setattr(TrainingStep, "run", overflowing)
    with pytest.raises(WeightsError, match="trained model has NaN or infinite values in 1 weights") as error:
        distill(recipe, show_progress=False)
    assert "\n" not in str(error.value)
    output = Path(recipe.output_dir)
    assert not (output / "model").exists()
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000002"]


def test_trackers_only_if_asked_for(tiny_recipe, make_recipe, tmp_path):
    recipe = tiny_recipe(training={"steps": 2})
    distill(recipe, show_progress=False)
    usual = {"recipe.yaml", "log.jsonl", "checkpoints", "model"}
    assert {path.name for path in Path(recipe.output_dir).iterdir()} == usual
    pytest.importorskip("tensorboard")
    tracked = make_recipe(tmp_path / "tracked", training={"steps": 2}, logging={"trackers": ["tensorboard"]})
    distill(tracked, show_progress=False)
    assert {path.name for path in Path(tracked.output_dir).iterdir()} == usual | {"logs"}
    assert list((tmp_path / "tracked" / "logs").glob("events.out.tfevents.*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_fp16_without_a_gpu(tiny_recipe):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        distill(tiny_recipe(training={"steps": 2, "mixed_precision": "fp16"}), show_progress=False)


@pytest.mark.skipif(is_wandb_available(), reason="wandb is installed")
def test_missing_tracker(tiny_recipe):
    with pytest.raises(ImportError, match="names wandb, which is not installed: pip install wandb"):
        distill(tiny_recipe(logging={"trackers": ["wandb"]}), show_progress=False)


@pytest.mark.parametrize("name", [name for name in shipped_recipes(DistillationRecipe) if name.endswith("-tiny")])
def test_tiny_twins_run_to_the_end(name, tmp_path, tiny_stage1):
    overrides = [f"output_dir={tmp_path}/run", *SHORT]
    if load_recipe(DistillationRecipe, name).student.init.startswith("runs/"):
        overrides.append(f"student.init={tiny_stage1}")
    final = distill(load_recipe(DistillationRecipe, name, overrides), show_progress=False)
    model = LightHubertModel.from_pretrained(final)
    if name == "retrain-subnet-tiny":
        supernet = LightHubertModel.from_pretrained(tiny_stage1)
        assert model.search_space is None
        assert model.active_subnet.to_dict() == supernet.config.default_subnet
    else:
        model.set_active_subnet(model.search_space.smallest())
    assert torch.isfinite(model(torch.randn(1, 4000)).last_hidden_state).all()


@pytest.fixture(scope="module")
def tiny_stage1(tmp_path_factory):
    recipe = load_recipe(
        DistillationRecipe, "lighthubert-stage1-tiny", [f"output_dir={tmp_path_factory.mktemp('stage1')}/run", *SHORT]
    )
    return distill(recipe, show_progress=False)

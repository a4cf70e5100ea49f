"""Averages of the last weights: what they are, what becomes of them, and that interrupted runs have the same."""

import pytest
import torch
from safetensors.torch import load_file

from lighthubert_hf.training.distillation.averaging import WeightAverage
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.recipe import AveragingSection
from lighthubert_hf.training.distillation.run import distill

from .rewinding import rewind
from .test_step import make_batch, make_step

HEAD = "prediction_head.weight"


@pytest.mark.parametrize("kind", ["uniform", "ema"])
def test_the_average_by_hand(tiny_recipe, kind):
    step = make_step(tiny_recipe(optimizer={"lr": 1e-2}))
    average = WeightAverage(AveragingSection(kind=kind, share=0.5, every=2, decay=0.75), 10)
    taken = []
    for done in range(1, 11):
        step.run(done - 1, [make_batch([2000])], (step.model.student.search_space.largest(),))
        average.after_step(done, step.model)
        if done in (6, 8, 10):
            taken.append(step.model.student.state_dict()[HEAD].clone())
        assert (average.model(step.model) is step.model) == (done < 6)
    expected = sum(taken) / 3 if kind == "uniform" else 0.75**2 * taken[0] + 0.25 * (0.75 * taken[1] + taken[2])
    found = average.model(step.model).student.state_dict()[HEAD]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, taken[-1], rtol=1e-3)


def test_the_model_is_the_average_and_the_checkpoint_is_not(tiny_recipe, make_recipe, tmp_path, tiny_corpus):
    """An interrupted run's too, to the bit; the weights in training are what they are without averaging."""
    held_out = {"sources": [{"path": str(tiny_corpus), "split": "validation"}], "every": 3, "batch_seconds": 4}
    held_out |= {"crop_seconds": 2, "num_random": 0}
    options = {"optimizer": {"lr": 1e-2}, "training": {"steps": 6}, "checkpoint": {"every": 2, "keep": 3}}
    runs = {}
    for name, averaging in (("with", {"share": 0.5}), ("cut short", {"share": 0.5}), ("without", None)):
        recipe = make_recipe(tmp_path / name, averaging=averaging, validation=held_out, **options)
        runs[name] = distill(recipe, show_progress=False)
        if name == "cut short":  # of the average of steps 4 to 6 the first part is in the checkpoint
            rewind(recipe, 4)
            distill(recipe, show_progress=False)
    models = {name: load_file(folder / "model.safetensors") for name, folder in runs.items()}
    last = {
        name: load_file(f"{tmp_path}/{name}/checkpoints/step-00000006/pretrained_model/model.safetensors")
        for name in runs
    }
    for key, tensor in models["without"].items():
        assert torch.equal(models["with"][key], models["cut short"][key])
        assert torch.equal(last["with"][key], tensor) and torch.equal(last["without"][key], tensor)
    assert not torch.equal(models["with"][HEAD], last["with"][HEAD])
    losses = {
        name: [
            entry["validation"]["largest"]
            for entry in read_log(tmp_path / name / "log.jsonl")
            if "validation" in entry
        ]
        for name in runs
    }
    assert losses["with"] == losses["cut short"]
    assert losses["with"][0] == losses["without"][0] and losses["with"][1] != losses["without"][1]
    assert not (tmp_path / "with/checkpoints/step-00000002/training_state/average.safetensors").exists()


@pytest.mark.parametrize("averaging", [{"share": 0}, {"kind": "ema", "decay": 1.0}, {"every": 0}])
def test_what_is_no_average_is_named(tiny_recipe, averaging):
    with pytest.raises(ValueError, match="averaging"):
        tiny_recipe(averaging=averaging)

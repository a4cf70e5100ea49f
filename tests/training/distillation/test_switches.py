"""Runs with all switches of a recipe on: interrupted ones end as others do, to the bit; what they leave behind."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.run import distill

from .rewinding import rewind
from .tiny import TINY_SPACE

HEAD = "prediction_head.weight"
ORDER = {"seconds": 0.5, "parts": ["heads", "ffn", "channels", "width"], "probes": 1}
SWITCHES = {
    "student": {
        "search_space": TINY_SPACE | {"conv_dim": [8, 16]},
        "order_on": ORDER,
        "config": {"norm_per_width": True, "head_per_width": True, "conv_norm_per_width": True},
    },
    "sampler": {
        "kind": "sandwich",
        "in_place_weight": 0.3,
        "spread": 0.2,
        "subspaces": [{"hidden_size": [16]}, {"hidden_size": [24, 32], "weight": 2.0}],
        "width_exponent": 0.5,
    },
    "deep_targets": {"share": 0.75, "layers": [2, 4]},
    "averaging": {"share": 0.75},
    "schedule": {"kind": "cosine", "final_scale": 0.0},
    "optimizer": {"lr": 1e-2},
    "data": {"batch_seconds": 2, "crop_seconds": 1},
    "training": {"steps": 4},
    "checkpoint": {"every": 1, "keep": 4},
}


@pytest.fixture(scope="module")
def runs(make_recipe, tmp_path_factory, tiny_corpus):
    """The same run twice: at a stretch, and killed while it has deep targets and averages."""
    held_out = {"sources": [{"path": str(tiny_corpus), "split": "validation"}], "every": 3, "batch_seconds": 2}
    held_out |= {"crop_seconds": 1, "num_random": 0, "max_examples": 4}
    recipes = {}
    for name, step in (("whole", None), ("killed", 2)):
        recipe = make_recipe(tmp_path_factory.mktemp("switches") / name, validation=held_out, **SWITCHES)
        distill(recipe, show_progress=False)
        if step:
            rewind(recipe, step)
            distill(recipe, show_progress=False)
        recipes[name] = recipe
    return recipes


def weights(recipe, of: str) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.output_dir) / of / "model.safetensors")


@pytest.mark.numerical
def test_an_interrupted_run_ends_as_a_whole_one(runs):
    whole, other = (weights(recipe, "model") for recipe in runs.values())
    assert whole.keys() == other.keys() and all(torch.equal(whole[key], other[key]) for key in whole)
    logs = [read_log(Path(recipe.output_dir) / "log.jsonl") for recipe in runs.values()]
    for entry in (entry for log in logs for entry in log):
        entry.pop("audio_per_second", None)
    assert logs[0] == logs[1]


def test_the_model_is_the_average_and_checkpoints_hold_the_weights_in_training(runs):
    recipe = runs["whole"]
    taken = [weights(recipe, f"checkpoints/step-0000000{step}/pretrained_model")[HEAD] for step in (2, 3, 4)]
    torch.testing.assert_close(weights(recipe, "model")[HEAD], sum(taken) / 3)
    states = [Path(recipe.output_dir) / f"checkpoints/step-0000000{step}/training_state" for step in (1, 2)]
    assert [(state / "average.safetensors").exists() for state in states] == [False, True]


def test_the_last_validation_is_of_the_model(runs):
    """One of the step before sees the weights in training."""
    recipe = runs["whole"]
    averaging = recipe.averaging.model_copy(update={"share": 0.25})  # the last step's weights alone
    found = [e["validation"] for e in read_log(Path(recipe.output_dir) / "log.jsonl") if "validation" in e]
    alone = recipe.model_copy(update={"output_dir": f"{recipe.output_dir}-alone", "averaging": averaging})
    distill(alone, show_progress=False)
    last = [e["validation"] for e in read_log(Path(alone.output_dir) / "log.jsonl") if "validation" in e]
    assert found[0] == last[0] and found[1] != last[1]


def test_nothing_but_the_supernet_is_in_the_model(runs):
    """The heads of the deep targets are gone; what each width has of its own is there, and extraction folds it."""
    model = LightHubertForPreTraining.from_pretrained(Path(runs["whole"].output_dir) / "model").eval()
    stored = weights(runs["whole"], "model")
    assert stored.keys() == model.state_dict().keys() and "prediction_head.per_width.16.weight" in stored
    subnet = model.search_space.smallest()
    model.set_active_subnet(subnet)
    static, audio = model.extract_subnet(), torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(static(audio).predictions, model(audio).predictions)


def test_a_subnet_is_cut_after_the_order_is_made(make_recipe, tmp_path):
    """The supernet's start, and that of its smallest subnet trained alone, are the same weights."""
    order = ORDER | {"parts": ["heads", "ffn", "width"]}
    still = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "training": {"steps": 1}, "data": SWITCHES["data"]}
    models = []
    for name, subnet in (("supernet", None), ("alone", "smallest")):
        student = {"search_space": TINY_SPACE, "order_on": order, "subnet": subnet}
        recipe = make_recipe(tmp_path / name, student=student, **still)
        models.append(LightHubertForPreTraining.from_pretrained(distill(recipe, show_progress=False)))
    cut = models[0].extract_subnet(models[0].search_space.smallest())
    assert cut.state_dict().keys() == models[1].state_dict().keys()
    for name, tensor in models[1].state_dict().items():
        torch.testing.assert_close(tensor, cut.state_dict()[name])

"""Every recipe on two processes: nobody waits for a gradient that does not come, both end with the same weights."""

import json
import os
from pathlib import Path

import pytest

from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.finetuning.recipe import FineTuningRecipe
from lighthubert_hf.training.recipes.loading import load_recipe, shipped_recipes

from ..processes import start_world

pytest.importorskip("espeakng_loader")
CTC = "finetune-ctc-tiny"
SHORT = ["training.steps=3", "data.synthetic_minutes=0.3", "training.evaluate_every=null", "checkpoint=null"]
SHORT += ["training.early_stopping_patience=null"]
ALL_AT_ONCE = "freezing.head_only_steps=0"
# What leaves parameters of a model without a gradient, or draws differently on each process.
VARIANTS = {
    "no masks": ["spec_augment=null", ALL_AT_ONCE],
    "masks of features alone": ["spec_augment={mask_time_prob: 0.0, mask_feature_prob: 0.1}", ALL_AT_ONCE],
    "a frozen encoder": ["freezing={freeze: encoder}"],
    "nothing frozen": ["freezing={freeze: none}"],
    "layers that thaw": ["freezing={freeze: none, head_only_steps: 1, thaw_layers_every: 1}"],
    "layerdrop": ["model.layerdrop=0.5", ALL_AT_ONCE],
    "checkpointing": ["training.gradient_checkpointing=true", ALL_AT_ONCE],
    "all of it": [
        "training.gradient_checkpointing=true",
        "model.layerdrop=0.5",
        "freezing={freeze: none, head_only_steps: 1, thaw_layers_every: 1}",
        "training.accumulation=2",
        "training.mixed_precision=bf16",
    ],
    "adapters": ["lora={rank: 2}", "model.layerdrop=0.5", ALL_AT_ONCE],
}


def run_all(runs: list, folder: Path) -> None:
    """Each run on two processes, in a folder of its own."""
    runs = [
        [kind, recipe, [*overrides, f"output_dir={folder}/{i}"]] for i, (kind, recipe, overrides) in enumerate(runs)
    ]
    (folder / "runs.json").write_text(json.dumps(runs))
    worker = Path(__file__).with_name("two_process_worker.py")
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    preload = ("accelerate", "datasets", "transformers.trainer")
    for process in start_world(2, worker, folder / "runs.json", env=env, preload=preload):
        assert process.wait(900) == 0, "".join(text[-4000:] for text in process.output())


def test_parameters_without_gradients_hold_nobody_up(tmp_path):
    pytest.importorskip("peft")
    chosen = ("masks of features alone", "all of it")
    run_all([("finetune", CTC, SHORT + VARIANTS[name]) for name in chosen], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_recipe_of_fine_tuning_and_every_variant(tmp_path):
    pytest.importorskip("peft")
    runs = [("finetune", CTC, SHORT + overrides) for overrides in VARIANTS.values()]
    tiny = [name for name in shipped_recipes(FineTuningRecipe) if name.endswith("-tiny")]
    run_all(runs + [("finetune", name, ["training.steps=4"]) for name in tiny], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_recipe_of_distillation(tmp_path):
    tiny = [name for name in shipped_recipes(DistillationRecipe) if name.endswith("-tiny")]
    tiny.sort(key=lambda name: load_recipe(DistillationRecipe, name).student.init.startswith("runs/"))
    runs = []
    for name in tiny:
        init = load_recipe(DistillationRecipe, name).student.init
        own = []
        if init.startswith("runs/"):  # from the model of another recipe
            first = init.split("/")[1]
            own = [f"student.init={tmp_path}/{next(i for i, run in enumerate(runs) if run[1] == first)}/model"]
        runs.append(("distill", name, ["training.steps=2", "data.synthetic_minutes=0.5", *own]))
    more = ["training.gradient_checkpointing=true", "student.config={layerdrop: 0.3}"]
    runs.append(("distill", "economical-tiny", ["training.steps=2", "data.synthetic_minutes=0.5", *more]))
    run_all(runs, tmp_path)

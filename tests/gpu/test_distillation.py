"""A distillation step on a device against the CPU's in float64, and runs that are resumed on it."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.runs.checkpoints import latest_checkpoint

from ..training.distillation import distill_worker as worker
from ..training.distillation.encoders import make_encoder
from ..training.distillation.test_processes import SECTIONS, history
from ..training.distillation.test_step import NO_DROPOUT, SPACE, make_batch, make_step
from .comparing import relative_error
from .conftest import CUDA, SLOW_CPU

# An L1 loss: an error so near zero that rounding changes its sign turns a whole gradient, of one output in thousands.
GRADIENT_BOUND = 1e-3


@pytest.fixture
def accelerator_on():
    """`accelerator_on(device)`: accelerate's state, of which there is one in a process, is made anew."""

    def make(device: torch.device) -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=device.type == "cpu")

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_step(device, accelerator_on, tiny_recipe, norm):
    recipe = tiny_recipe(
        student={"config": NO_DROPOUT, "init": "random"}, sampler={"kind": "sandwich", "in_place_weight": 0.3}
    )
    lengths = [8000, 8000, 6000, 2500] if norm == "layer" else [8000, 8000]

    def run(device, dtype):
        encoder = make_encoder("hubert", feat_extract_norm=norm).to(device, dtype)
        student = build_student(recipe.student, encoder, 0).to(device, dtype)
        step = make_step(recipe, student=student, encoder=encoder, accelerator=accelerator_on(device))
        result = step.run(0, [make_batch(lengths)], [SPACE.largest(), SPACE.smallest(), SPACE.default()])
        assert {parameter.device.type for parameter in step.parameters} == {device.type}
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in step.parameters]
        return result, torch.cat([gradient.flatten() for gradient in gradients]).double().cpu()

    exact, gradients = run(torch.device("cpu"), torch.float64)
    found, ours = run(device, torch.float32)
    assert not found.skipped
    assert found.loss == pytest.approx(exact.loss, rel=1e-5)
    assert found.gradient_norm == pytest.approx(exact.gradient_norm, rel=GRADIENT_BOUND)
    assert relative_error(ours, gradients) < GRADIENT_BOUND


@pytest.mark.parametrize("device", [SLOW_CPU, CUDA], indirect=True)
def test_a_killed_run_is_resumed_to_the_bit(device, tiny_recipe, make_recipe, tmp_path):
    """On a GPU with torch's deterministic algorithms; in bf16, as the recipes are there."""
    sections = SECTIONS | {"training": SECTIONS["training"] | {"steps": 5, "mixed_precision": "bf16"}}
    reference, recipe = make_recipe(tmp_path / "reference", **sections), tiny_recipe(**sections)
    assert worker.run(reference, device=device.type) == [0]
    assert worker.run(recipe, device=device.type, kill_at_step=4) != [0]
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000003"
    assert worker.run(recipe, device=device.type) == [0]
    assert history(recipe) == history(reference)
    assert worker.fingerprints(recipe) == worker.fingerprints(reference)

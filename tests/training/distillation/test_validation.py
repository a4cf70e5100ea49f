"""Validation losses."""

import copy

import pytest
import torch

from lighthubert_hf import SearchSpace
from lighthubert_hf.training.distillation.validation import evaluate, validation_subnets

from .test_step import make_batch, make_step
from .tiny import TINY_SPACE

SPACE = SearchSpace(**TINY_SPACE)


def test_losses_are_the_models_own_over_all_frames(tiny_recipe):
    """Batches of different length: the mean is over frames, not over batches; dropout and masks are off."""
    recipe = tiny_recipe(objective={"name": "lighthubert", "num_target_layers": 2, "unmasked_weight": 0.0})
    step = make_step(recipe)
    model, student = step.model, step.model.student
    batches = [make_batch([8000, 8000], seed=1), make_batch([3000], seed=2)]
    subnets = validation_subnets(student.config, 2, seed=0)
    assert list(subnets) == ["smallest", "default", "largest", "random-0", "random-1"]
    active = student.active_subnet
    losses = evaluate(model, [(batch, {}) for batch in batches], subnets)
    assert student.training
    assert student.active_subnet == active
    twin = copy.deepcopy(student).eval()
    for name, subnet in subnets.items():
        twin.set_active_subnet(subnet)
        total = frames = 0
        for batch in batches:
            targets = model.prepare(batch, None, seed=0, step=0).targets[0]
            with torch.no_grad():
                total += twin(batch["input_values"], targets=targets).loss.item() * targets.shape[:2].numel()
            frames += targets.shape[:2].numel()
        assert losses[name] == pytest.approx(total / frames, rel=1e-5)


def test_no_audio(tiny_recipe):
    step = make_step(tiny_recipe())
    with pytest.raises(ValueError, match="hold no audio"):
        evaluate(step.model, [], {"smallest": SPACE.smallest()})

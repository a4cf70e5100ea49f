"""Targets at several depths first, then the objective alone."""

import pytest
import torch

from lighthubert_hf.training.distillation.objectives import make_objective
from lighthubert_hf.training.distillation.optimizer import make_optimizer
from lighthubert_hf.training.distillation.step import DistillationModel, TrainingStep
from lighthubert_hf.training.distillation.teacher import Teacher

from .encoders import make_encoder
from .test_step import NO_DROPOUT, gradients, make_batch, make_step

DEEP = {"deep_targets": {"share": 0.5, "layers": [2, 4]}}


def deep_step(recipe, num_steps: int = 2):
    """As the run makes it."""
    plain = make_step(recipe)
    student, encoder = plain.model.student, make_encoder("hubert")
    objective = make_objective(recipe.objective, encoder.config, student.config, recipe.deep_targets, num_steps)
    model = DistillationModel(Teacher(encoder, objective.request), student, objective, plain.accelerator)
    return TrainingStep(model, plain.accelerator.prepare(make_optimizer(model, recipe)[0]), recipe)


def test_the_first_loss_by_hand(tiny_recipe):
    """The objective's own, and the mean distance to the hidden states, of unmasked audio."""
    weight = {"deep_targets": DEEP["deep_targets"] | {"weight": 0.5}}
    step = deep_step(tiny_recipe(**weight, student={"config": NO_DROPOUT}, optimizer={"lr": 1e-30}))
    student, batch = step.model.student, make_batch([4000, 4000])
    subnet = student.search_space.smallest()
    found = step.run(0, [batch], (subnet,)).loss
    teacher = step.model.teacher.model
    with torch.no_grad():
        student.eval().set_active_subnet(subnet)
        wanted = teacher(batch["input_values"], output_hidden_states=True).hidden_states
        results = step.model.teacher(batch["input_values"]).layer_results
        seen = student(batch["input_values"], output_hidden_states=True)
        base = (seen.predictions - (results[2] + results[3]) / 2).abs().mean()
        # Depth 2 of 4 leaves two layers out: what has passed by their place in the whole network answers.
        kept = student.lighthubert.encoder.active_layers
        places = [sum(index < depth for index in kept) for depth in (2, 4)]
        width = subnet.hidden_size
        deep = 0
        for place, layer in zip(places, (2, 4), strict=True):
            mapped = torch.zeros_like(wanted[layer])  # the identity's first columns
            mapped[..., :width] = seen.hidden_states[place]
            deep += (mapped - wanted[layer]).abs().mean() / 2
    assert found == pytest.approx((base + 0.5 * deep).item(), rel=1e-4)


def test_afterwards_everything_is_as_without(tiny_recipe):
    """Masks, loss and gradients; the heads rest."""
    steps = [make_step(tiny_recipe()), deep_step(tiny_recipe(**DEEP))]
    losses = []
    for step in steps:
        losses.append(step.run(1, [make_batch([4000, 3000])], (step.model.student.search_space.smallest(),)).loss)
    assert losses[0] == losses[1]
    plain, deep = map(gradients, steps)
    assert plain.keys() == deep.keys() and all(torch.equal(plain[name], deep[name]) for name in plain)
    heads = steps[1].model.objective.parameters()
    assert all(parameter.grad is None for parameter in heads)


def test_heads_of_a_stream_in_another_order_still_begin_as_the_identity(tiny_recipe):
    """Also of a narrower student, which has the first channels of that order."""
    objective = deep_step(tiny_recipe(**DEEP)).model.objective
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    objective.follow(order)
    states = torch.randn(2, 32)
    for head in objective.deep.heads:
        with torch.no_grad():
            assert torch.equal(head(states[:, order]), states)
            found = head(states[:, order][:, :24])
        assert torch.equal(found[:, order[:24]], states[:, order[:24]]) and not found[:, order[24:]].any()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (DEEP | {"objective": {"name": "dphubert"}, "masking": None}, "targets of its own"),
        ({"deep_targets": {"layers": [5]}}, r"layers are \[5\], the teacher has layers 1 to 4"),
    ],
)
def test_what_does_not_fit_is_named(tiny_recipe, sections, words):
    with pytest.raises(ValueError, match=words) as caught:
        deep_step(tiny_recipe(**sections))
    assert "\n" not in str(caught.value)

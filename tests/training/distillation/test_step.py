"""One optimiser step: what it computes, whatever way the work is divided."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from lighthubert_hf import SearchSpace, Subnet
from lighthubert_hf.training.distillation.objectives import make_objective
from lighthubert_hf.training.distillation.optimizer import make_optimizer
from lighthubert_hf.training.distillation.recipe import StudentSection
from lighthubert_hf.training.distillation.step import DistillationModel, TrainingStep
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import Teacher

from ...precision import assert_gradients_as_exact
from .encoders import make_encoder
from .tiny import TINY_SPACE

NO_DROPOUT = {"hidden_dropout": 0.0, "activation_dropout": 0.0}
SPACE = SearchSpace(**TINY_SPACE)


def make_batch(lengths, seed=0, first=0):
    torch.manual_seed(seed)
    audio, mask = torch.randn(len(lengths), max(lengths)), torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        audio[row, length:] = 0
        mask[row, :length] = 1
    names = [f"clip-{first + row}" for row in range(len(lengths))]
    return {"input_values": audio, "attention_mask": mask, "ids": names, "texts": [None] * len(lengths)}


def rows(batch, start, stop):
    return {key: value[start:stop] for key, value in batch.items()}


def make_step(recipe, student=None, encoder=None, accelerator=None, dtype=torch.float32) -> TrainingStep:
    """In float64 all but the losses, which are always in float32."""
    accelerator = accelerator or Accelerator(cpu=True)
    encoder = encoder or make_encoder("hubert")
    student = student or build_student(recipe.student, encoder, 0)
    torch.manual_seed(0)
    objective = make_objective(recipe.objective, encoder.config, student.config)
    encoder, student, objective = (module.to(dtype) for module in (encoder, student, objective))
    model = DistillationModel(Teacher(encoder, objective.request), student.train(), objective, accelerator)
    return TrainingStep(model, accelerator.prepare(make_optimizer(model, recipe)[0]), recipe)


def weights(step) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in step.parameters]


def gradients(step) -> dict[str, torch.Tensor]:
    return {str(index): p.grad for index, p in enumerate(step.parameters) if p.grad is not None}


OBJECTIVES = {
    "lighthubert": {"name": "lighthubert", "num_target_layers": 2, "masked_weight": 1.0, "unmasked_weight": 0.3},
    "dphubert": {"name": "dphubert", "layer_groups": [[0], [2, 4]]},
    "armhubert": {"name": "armhubert"},
    "distilhubert": {"name": "distilhubert", "layers": [2, 4]},
}


@pytest.fixture
def recipe_of(tiny_recipe):
    def make(objective="lighthubert", **sections):
        student = {"config": NO_DROPOUT, **sections.pop("student", {})}
        return tiny_recipe(student=student, objective=OBJECTIVES[objective], **sections)

    return make


# Losses and norms of gradients are compared within 84 eps or more: they are means over thousands of terms, in which
# the rounding of each is hardly seen. What is wrong by less shows in the gradients.


@pytest.mark.numerical
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_four_small_batches_equal_one_big(recipe_of, objective):
    """Also with clips of very unequal length, whose frames count alike wherever they are.

    A student that starts as its teacher would not do: the sign of an L1 distance of nearly zero is up to rounding.
    """
    recipe = recipe_of(objective, student={"init": "random"}, sampler={"kind": "sandwich", "in_place_weight": 0.3})
    lengths = [16000, 15000, 9000, 9000, 4000, 2500, 2400, 1700]
    batch = make_batch(lengths)
    subnets = [SPACE.largest(), SPACE.smallest(), SPACE.default()]
    big, small, exact = make_step(recipe), make_step(recipe), make_step(recipe, dtype=torch.float64)
    before = weights(big)
    one = big.run(3, [batch], subnets)
    four = small.run(3, [rows(batch, start, start + 2) for start in range(0, 8, 2)], subnets)
    assert one.loss == pytest.approx(four.loss, rel=1e-5)
    assert one.gradient_norm == pytest.approx(four.gradient_norm, rel=1e-4)
    exact.run(3, [batch], subnets)
    assert_gradients_as_exact(*map(gradients, (small, big, exact)))
    for a, b, old in zip(big.parameters, small.parameters, before, strict=True):
        assert (a.grad is None) == (b.grad is None) == torch.equal(a, old)


@pytest.mark.numerical
def test_shared_front_end_pass_equals_separate_ones(recipe_of):
    """Backward through the front end once, with the encoders' gradients gathered, is backward per subnet."""
    recipe = recipe_of(optimizer={"max_grad_norm": None})
    batch, subnets = make_batch([8000, 6000]), [SPACE.largest(), SPACE.smallest(), SPACE.default()]
    together = make_step(recipe)
    together.run(0, [batch], subnets)

    def one_by_one(dtype):
        totals = {}
        for subnet in subnets:
            fresh = make_step(recipe, dtype=dtype)
            fresh.run(0, [batch], [subnet])
            for name, gradient in gradients(fresh).items():
                totals[name] = totals.get(name, 0) + gradient / len(subnets)
        return totals

    assert_gradients_as_exact(gradients(together), one_by_one(torch.float32), one_by_one(torch.float64))


@pytest.mark.parametrize("frozen", [False, True])
def test_subnets_of_other_channels_run_their_own_front_end(recipe_of, frozen):
    """The step's gradients are those of each subnet's whole loss, also where only some share a front end."""
    channels = ((8, 16), (4, 16), *[(16,)] * 4, (10, 16))
    space = replace(SPACE, conv_dim=channels)
    student = {"search_space": space.to_dict(), "freeze_front_end": frozen}
    recipe = recipe_of(student=student, masking=None, optimizer={"max_grad_norm": None})
    narrow = replace(space.largest(), conv_dim=space.smallest().conv_dim)
    batch, subnets = make_batch([8000, 8000]), [space.largest(), narrow, space.smallest(), space.default()]
    together = make_step(recipe)
    together.run(0, [batch], subnets)
    model = make_step(recipe).model
    prepared = model.prepare(batch, None, seed=0, step=0)
    assert prepared.front_end is None
    for subnet in subnets:
        model.student.set_active_subnet(subnet)
        outputs = model.student(batch["input_values"], None, prepared.time_mask, prepared.targets[0])
        (outputs.loss / len(subnets)).backward()
    for found, wanted in zip(together.model.student.parameters(), model.student.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None)
        if found.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-6)
    front_end = [p.grad is None for p in together.model.student.lighthubert.feature_extractor.parameters()]
    assert all(front_end) if frozen else not any(front_end)


def test_loss_is_the_models_own_on_unmasked_audio(recipe_of):
    recipe = recipe_of(masking=None)
    step, batch = make_step(recipe), make_batch([8000, 8000])
    prepared = step.model.prepare(batch, None, seed=0, step=0)
    student, subnet = copy.deepcopy(step.model.student), SPACE.default()
    student.config.apply_spec_augment = False
    student.set_active_subnet(subnet)
    expected = student(batch["input_values"], targets=prepared.targets[0]).loss
    assert step.run(0, [batch], [subnet]).loss == pytest.approx(expected.item(), rel=1e-5)


def test_frozen_front_end_with_the_teachers_weights_is_shared(recipe_of):
    recipe = recipe_of(student={"freeze_front_end": True, "config": NO_DROPOUT})
    batch, subnets = make_batch([8000, 6000]), [SPACE.smallest()]
    shared, separate = make_step(recipe), make_step(recipe)
    assert shared.model.share_front_end
    separate.model.share_front_end = False
    front_end = shared.model.student.lighthubert.feature_extractor
    runs = []
    front_end.register_forward_hook(lambda *_: runs.append(1))
    losses = [step.run(0, [batch], subnets).loss for step in (shared, separate)]
    assert not runs
    assert losses[0] == losses[1]  # the same kernels on the same numbers
    assert all(torch.equal(a, b) for a, b in zip(shared.parameters, separate.parameters, strict=True))
    with torch.no_grad():
        next(front_end.parameters()).add_(1e-3)
    again = DistillationModel(shared.model.teacher, shared.model.student, shared.model.objective, shared.accelerator)
    assert not again.share_front_end


def test_dropped_layers_are_left_alone(recipe_of):
    """No gradient, no momentum, no weight decay for what the step did not run."""
    step = make_step(recipe_of())
    subnet = SPACE.smallest()
    before = {name: p.detach().clone() for name, p in step.model.student.named_parameters()}
    step.run(0, [make_batch([8000])], [subnet])
    kept = {f"layers.{index}." for index in step.model.student.lighthubert.encoder.active_layers}
    for name, parameter in step.model.student.named_parameters():
        if ".layers." in name and not any(layer in name for layer in kept):
            assert torch.equal(parameter, before[name])
        elif "masked_spec" not in name:
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(recipe_of, checkpointing):
    """To the bit. A front end in training is left to other kernels then (tests/model/test_front_end.py)."""
    # With dropout: the recomputation must repeat it.
    recipe = recipe_of(student={"config": {}, "freeze_front_end": True})
    steps = [make_step(recipe) for _ in range(2)]
    if checkpointing:
        steps[1].model.student.activation_checkpointing_enable()
    results = [step.run(0, [make_batch([8000, 6000])], [SPACE.largest(), SPACE.smallest()]) for step in steps]
    assert results[0].loss == results[1].loss
    assert all(torch.equal(a, b) for a, b in zip(*(step.parameters for step in steps), strict=True))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(recipe_of, poison):
    step = make_step(recipe_of())
    step.run(0, [make_batch([8000])], [SPACE.largest()])
    before, state = weights(step), copy.deepcopy(step.optimizer.optimizer.state_dict()["state"])
    bad = make_batch([8000, 6000])
    bad["input_values"][1, 100] = poison
    assert step.run(1, [bad], [SPACE.largest()]).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
    assert state.keys() == step.optimizer.optimizer.state_dict()["state"].keys()
    assert not step.run(2, [make_batch([8000])], [SPACE.largest()]).skipped


def test_bf16_autocast_keeps_losses_and_weights_in_fp32(recipe_of):
    step = make_step(recipe_of())
    plain = make_step(recipe_of())
    step.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    step.model.accelerator = step.accelerator
    batch = make_batch([8000, 6000])
    loose, exact = (s.run(0, [batch], [SPACE.largest()]).loss for s in (step, plain))
    assert loose != exact
    assert loose == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in step.parameters} == {torch.float32}


def test_one_frame_of_difference_is_cut_and_two_are_refused(recipe_of):
    kernel = [10, 3, 3, 3, 3, 2, 2]
    longer = build_student(
        StudentSection(init="random", config={"conv_kernel": [10, 3, 3, 3, 3, 2, 3], **NO_DROPOUT}),
        make_encoder("hubert", conv_kernel=kernel),
        0,
    )
    recipe = recipe_of()
    batch = make_batch([8000, 8000])
    assert make_step(recipe, student=longer).run(0, [batch], [None]).loss > 0
    much = build_student(
        StudentSection(init="random", config={"conv_kernel": [400, 3, 3, 3, 3, 8, 8], **NO_DROPOUT}),
        make_encoder("hubert"),
        0,
    )
    with pytest.raises(ValueError, match=r"the student makes \d+ frames of this audio, the teacher 24"):
        make_step(recipe, student=much).run(0, [batch], [None])
    strides = build_student(
        StudentSection(init="random", config={"conv_stride": [5, 2, 2, 2, 2, 2, 1]}), make_encoder("hubert"), 0
    )
    with pytest.raises(ValueError, match="a frame of 320 samples, the student of 160"):
        make_step(recipe, student=strides)


@pytest.mark.parametrize("family", ["wavlm", "data2vec-audio", "wav2vec2"])
def test_teachers_of_other_families_and_sizes(recipe_of, family):
    encoder = make_encoder(family)
    small = build_student(
        StudentSection(init="random", config={"hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 32}),
        encoder,
        0,
    )
    result = make_step(recipe_of(), student=small, encoder=encoder).run(0, [make_batch([8000, 7000])], [None])
    assert not result.skipped
    assert small.active_subnet == Subnet(16, (1,) * 4, (32,) * 4)


def test_a_subnets_gradients_weigh_by_its_width(recipe_of):
    """Those of a narrow one half as much as without, where the exponent says so; the loss reported is the same."""
    still = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0, "max_grad_norm": None}, "masking": None}
    found = []
    for exponent in (0.0, 1.0):
        step = make_step(recipe_of(sampler={"width_exponent": exponent}, **still))
        found.append((step.run(0, [make_batch([4000])], (SPACE.smallest(),)).loss, gradients(step)))
    (loss, plain), (weighted_loss, weighted) = found
    assert loss == weighted_loss
    for name, gradient in plain.items():
        torch.testing.assert_close(weighted[name], gradient * 16 / 24)  # of widths 16, 24, 32

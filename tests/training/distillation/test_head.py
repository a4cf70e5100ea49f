"""The fitted prediction head: the least-squares solution, and what a run begins with."""

import pytest
import torch
from accelerate import Accelerator

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.training.distillation.head import RIDGE, fit_head
from lighthubert_hf.training.distillation.objectives import make_objective
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection
from lighthubert_hf.training.distillation.recipe import StudentSection
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.distillation.step import DistillationModel
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import Teacher
from lighthubert_hf.training.distillation.validation import evaluate

from .encoders import make_encoder
from .tiny import TINY_SPACE


def batch(seed: int) -> dict:
    audio = torch.randn(2, 4000, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, 4000, dtype=torch.long)
    mask[1, 3000:] = 0
    return {"input_values": audio * mask, "attention_mask": mask, "ids": [seed, seed + 1]}


def model(**student) -> DistillationModel:
    encoder = make_encoder("hubert")
    built = build_student(StudentSection(**student), encoder, 0)
    objective = make_objective(LightHubertObjectiveSection(num_target_layers=2), encoder.config, built.config)
    return DistillationModel(Teacher(encoder, objective.request), built, objective, Accelerator(cpu=True))


def test_a_static_students_head_solves_the_normal_equations():
    whole = model(search_space=TINY_SPACE, subnet="smallest")
    batches = [batch(seed) for seed in range(8)]
    fit_head(whole, batches)
    states, targets = [], []
    for prepared in (whole.prepare(entry, None, seed=0, step=0) for entry in batches):
        with torch.no_grad():
            features = whole.features(prepared, None)
            encoded = whole.student.eval().lighthubert.encode(features, prepared.attention_mask).last_hidden_state
        states.append(encoded[prepared.valid].double())
        targets.append(prepared.targets[0][prepared.valid].double())
    states, targets, weight = torch.cat(states), torch.cat(targets), whole.student.prediction_head.weight.double()
    penalty = RIDGE * (states.T @ states).diagonal().mean()
    slope = states.T @ (states @ weight.T - targets) + penalty * weight.T
    assert slope.norm() < 1e-4 * (states.T @ targets).norm()


def test_one_head_serves_all_subnets_of_a_supernet():
    whole = model(search_space=TINY_SPACE)
    batches = [batch(seed) for seed in range(8)]
    subnets = {"smallest": whole.student.search_space.smallest(), "largest": whole.student.search_space.largest()}
    active = whole.student.active_subnet
    before = evaluate(whole, [(entry, None) for entry in batches], subnets)
    fit_head(whole, batches)
    after = evaluate(whole, [(entry, None) for entry in batches], subnets)
    assert all(after[name] < 0.9 * before[name] for name in subnets)
    assert whole.student.active_subnet == active and whole.student.training


def test_a_run_begins_with_it(make_recipe, tmp_path):
    """Two first steps at no rate leave the fitted head alone."""
    still = {"training": {"steps": 1}, "schedule": {"kind": "linear", "warmup": 1.0, "initial_scale": 0.0}}
    heads = []
    for name, seconds in (("random", None), ("fitted", 2.0), ("again", 2.0)):
        student = {"init": "teacher", "search_space": TINY_SPACE, "fit_head_on": seconds}
        saved = distill(make_recipe(tmp_path / name, student=student, **still), show_progress=False)
        heads.append(LightHubertForPreTraining.from_pretrained(saved).prediction_head.weight)
    assert torch.equal(heads[1], heads[2]) and not torch.equal(heads[0], heads[1])


def test_other_objectives_have_no_such_head(make_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"student\.fit_head_on fits the head of objective lighthubert.*dphubert"):
        make_recipe(tmp_path, student={"fit_head_on": 2.0}, objective={"name": "dphubert"})

"""Objectives against numbers worked out by hand in numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet
from lighthubert_hf.training.distillation.objectives import make_objective
from lighthubert_hf.training.distillation.objectives.armhubert import ArmHubertObjectiveSection
from lighthubert_hf.training.distillation.objectives.base import TeacherOutput, matched_depth, states_by_depth
from lighthubert_hf.training.distillation.objectives.distilhubert import DistilHubertObjectiveSection
from lighthubert_hf.training.distillation.objectives.dphubert import DPHubertObjectiveSection
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection

B, T, TEACHER_SIZE, LAYERS = 2, 7, 6, 4
TEACHER = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=TEACHER_SIZE)
STUDENT = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=8)
VALID = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
MASK = torch.tensor([[0, 1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0, 0]]).bool()


def teacher_output(seed: int = 0) -> TeacherOutput:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(B, T, TEACHER_SIZE, generator=rng)  # noqa: E731
    return TeacherOutput({i: draw() for i in range(LAYERS)}, {i: draw() for i in range(LAYERS + 1)})


def value(objective, predictions, targets, weights) -> float:
    loss = objective(predictions, targets, weights)
    return (loss.sum / loss.count).item()


@pytest.mark.parametrize("norm", ["none", "instance", "layer"])
def test_lighthubert(norm):
    settings = LightHubertObjectiveSection(
        num_target_layers=3, layer_norm=norm, masked_weight=2.0, unmasked_weight=0.5
    )
    objective = make_objective(settings, TEACHER, STUDENT)
    assert objective.request.layer_results == (1, 2, 3)
    clean, prediction = teacher_output(), torch.randn(B, T, TEACHER_SIZE)
    target = np.zeros((B, T, TEACHER_SIZE))
    for layer in (1, 2, 3):
        result = clean.layer_results[layer].double().numpy()
        for b, length in enumerate((7, 4)):
            rows = result[b, :length]
            if norm == "instance":
                rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
            elif norm == "layer":
                rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
            target[b, :length] += rows / 3
    errors = np.abs(prediction.numpy() - target).mean(-1)
    weights = np.where(MASK.numpy(), 2.0, 0.5) * VALID.numpy()
    expected = (errors * weights).sum() / weights.sum()
    targets = objective.targets(clean, None, VALID, MASK)
    assert value(objective, [prediction], targets, objective.frame_weights(VALID, MASK)) == pytest.approx(
        expected, rel=1e-5
    )


def test_masked_frames_only():
    settings = LightHubertObjectiveSection(num_target_layers=1, unmasked_weight=0.0)
    objective = make_objective(settings, TEACHER, STUDENT)
    weights = objective.frame_weights(VALID, MASK)
    assert torch.equal(weights, (VALID & MASK).float())


def test_dphubert():
    settings = DPHubertObjectiveSection(name="dphubert", layer_groups=[[0], [2, 4]], cosine_weight=0.7)
    objective = make_objective(settings, TEACHER, STUDENT)
    # Identity at the start, also from 8 to 6 channels; two groups, two maps.
    assert len(objective.maps) == 2
    assert torch.equal(objective.maps[0].weight, torch.eye(6, 8))
    clean = teacher_output()
    states = [torch.randn(B, T, 8) for _ in range(LAYERS + 1)]
    student = SimpleNamespace(
        base_model=SimpleNamespace(encoder=SimpleNamespace(layers=[0] * 4, active_layers=(0, 1, 2, 3)))
    )
    predictions = objective.predictions(student, SimpleNamespace(hidden_states=states))
    expected = np.zeros((B, T))
    for layer in (0, 2, 4):
        x, y = states[layer][..., :6].double().numpy(), clean.hidden_states[layer].double().numpy()
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        expected += (np.abs(x - y).mean(-1) - 0.7 * cosine) / 3
    expected = expected[VALID.numpy()].mean()
    targets = objective.targets(clean, None, VALID, MASK)
    assert value(objective, predictions, targets, objective.frame_weights(VALID, MASK)) == pytest.approx(
        expected, rel=1e-5
    )


def test_distilhubert():
    settings = DistilHubertObjectiveSection(name="distilhubert", layers=[2, 4])
    objective = make_objective(settings, TEACHER, STUDENT)
    clean, last = teacher_output(), torch.randn(B, T, 8)
    predictions = objective.predictions(None, SimpleNamespace(last_hidden_state=last))
    expected = np.zeros((B, T))
    for head, layer in zip(objective.heads, (2, 4), strict=True):
        x = last.numpy() @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        y = clean.hidden_states[layer].numpy()
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        expected += np.abs(x - y).mean(-1) - np.log(1 / (1 + np.exp(-cosine)))
    expected = expected[VALID.numpy()].mean()
    targets = objective.targets(clean, None, VALID, MASK)
    assert value(objective, predictions, targets, VALID.float()) == pytest.approx(expected, rel=1e-5)


def test_armhubert():
    objective = make_objective(ArmHubertObjectiveSection(name="armhubert"), TEACHER, STUDENT)
    assert objective.request.masked
    clean, masked = teacher_output(0), teacher_output(1)
    predictions = [torch.randn(B, T, TEACHER_SIZE) for _ in range(LAYERS)]
    expected = np.zeros((B, T))
    for layer, prediction in zip(range(1, LAYERS + 1), predictions, strict=True):
        # Masked frames learn from the teacher that hears everything, the others from the masked teacher.
        target = torch.where(MASK[..., None], clean.hidden_states[layer], masked.hidden_states[layer]).numpy()
        expected += (1.0 if layer == LAYERS else 0.1) * ((prediction.numpy() - target) ** 2).mean(-1)
    expected = expected[VALID.numpy()].mean()
    targets = objective.targets(clean, masked, VALID, MASK)
    assert value(objective, predictions, targets, VALID.float()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["lighthubert", "dphubert", "armhubert", "distilhubert"])
def test_padding_never_counts_and_losses_are_fp32(name):
    sections = {
        "lighthubert": LightHubertObjectiveSection(num_target_layers=2),
        "dphubert": DPHubertObjectiveSection(name="dphubert", layer_groups=[[0], [2, 4]]),
        "armhubert": ArmHubertObjectiveSection(name="armhubert"),
        "distilhubert": DistilHubertObjectiveSection(name="distilhubert", layers=[2, 4]),
    }
    objective = make_objective(sections[name], TEACHER, STUDENT)
    targets = objective.targets(teacher_output(0), teacher_output(1), VALID, MASK)
    predictions = [torch.randn(B, T, TEACHER_SIZE).bfloat16().requires_grad_() for _ in targets]
    poisoned = [torch.where(VALID[..., None], p.detach(), torch.nan).requires_grad_() for p in predictions]
    weights = objective.frame_weights(VALID, MASK)
    losses = [objective(p, targets, weights) for p in (predictions, poisoned)]
    assert losses[0].sum.dtype == torch.float32
    assert losses[0].sum == losses[1].sum
    assert torch.isfinite(losses[0].sum)
    losses[0].sum.backward()
    assert all((p.grad[~VALID] == 0).all() and p.grad[VALID].any() for p in predictions)


def test_layers_that_a_subnet_drops_pass_their_input_on():
    space = SearchSpace((8, 16), (1, 2), (1.0, 2.0), (2, 3, 4))
    config = LightHubertConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        head_dim=8,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        search_space=space,
        target_size=TEACHER_SIZE,
    )
    student = LightHubertForPreTraining(config).eval()
    student.set_active_subnet(Subnet(8, (1, 1), (8, 8)))
    kept = student.lighthubert.encoder.active_layers
    outputs = student.lighthubert(torch.randn(1, 4000), output_hidden_states=True)
    states = states_by_depth(student, outputs)
    assert len(states) == 5
    for layer in range(4):
        assert torch.equal(states[layer], states[layer + 1]) == (layer not in kept)
    assert torch.equal(states[4], outputs.hidden_states[2])


def test_depths_of_students_of_other_depth():
    assert [matched_depth(layer, 12, 12) for layer in (0, 4, 8, 12)] == [0, 4, 8, 12]
    assert [matched_depth(layer, 24, 12) for layer in (0, 8, 16, 24)] == [0, 4, 8, 12]


def test_what_the_teacher_does_not_have():
    with pytest.raises(ValueError, match="num_target_layers is 8, the teacher has 4"):
        make_objective(LightHubertObjectiveSection(num_target_layers=8), TEACHER, STUDENT)
    with pytest.raises(ValueError, match="each layer once"):
        make_objective(DPHubertObjectiveSection(name="dphubert", layer_groups=[[0], [0, 4]]), TEACHER, STUDENT)


def test_layers_follow_from_the_teacher_where_none_are_given():
    """Of twelve they are the papers'."""
    for num_layers, last, thirds in ((12, range(4, 12), [4, 8, 12]), (4, range(4), [1, 3, 4]), (1, range(1), [1])):
        teacher, student = SimpleNamespace(num_hidden_layers=num_layers, hidden_size=TEACHER_SIZE), STUDENT
        assert make_objective(LightHubertObjectiveSection(), teacher, student).request.layer_results == tuple(last)
        distil = make_objective(DistilHubertObjectiveSection(name="distilhubert"), teacher, student)
        assert distil.request.hidden_states == tuple(thirds)
        assert len(distil.heads) == len(thirds)
        dp = make_objective(DPHubertObjectiveSection(name="dphubert"), teacher, student)
        assert dp.request.hidden_states == (0, *thirds)

"""Checkpoints: what is in them, and which of them count."""

import copy

import pytest
import torch

from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.training.distillation.checkpoint import TrainingState, load_training_state, save_checkpoint
from lighthubert_hf.training.distillation.optimizer import flatten_optimizer, restore_optimizer
from lighthubert_hf.training.distillation.recipe import StudentSection
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.runs.checkpoints import (
    CheckpointError,
    check_complete,
    checkpoint_folder,
    latest_checkpoint,
    rotate,
)

from .encoders import make_encoder
from .tiny import TINY_SPACE


@pytest.fixture(scope="module")
def student():
    return build_student(StudentSection(search_space=TINY_SPACE), make_encoder("hubert"), 0)


def a_state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        num_processes=2,
        data=[{"window": 3}, {"window": 4}],
        audio_seconds=0.1 + 0.2,
        pending_losses=[1 / 3],
        optimizer={"a.b/exp_avg": torch.randn(3), "a.b/step": torch.tensor(5.0)},
        objective={"w": torch.randn(2, 2)},
    )


def test_round_trip_to_the_bit_without_pickles(student, tmp_path):
    state = a_state(7)
    folder = checkpoint_folder(tmp_path, 7)
    save_checkpoint(folder, student, state, CardFacts())
    loaded = load_training_state(folder)
    for name, value in vars(state).items():
        if name not in ("optimizer", "objective"):
            assert getattr(loaded, name) == value
            continue
        assert all(torch.equal(value[key], getattr(loaded, name)[key]) for key in value)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".py",
        ".md",
        ".svg",
    }


def test_only_complete_checkpoints_count(student, tmp_path):
    for step in (3, 12, 7):
        save_checkpoint(checkpoint_folder(tmp_path, step), student, a_state(step), CardFacts())
    assert latest_checkpoint(tmp_path).name == "step-00000012"
    weights = tmp_path / "step-00000012" / "training_state" / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert latest_checkpoint(tmp_path).name == "step-00000007"
    (tmp_path / "step-00000007" / "pretrained_model" / "config.json").unlink()
    assert latest_checkpoint(tmp_path).name == "step-00000003"
    (tmp_path / "step-00000003" / "complete.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be gone on from: .*step-00000012"):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_rotation_spares_the_newest_and_what_is_in_use(student, tmp_path):
    folders = [checkpoint_folder(tmp_path, step) for step in (1, 2, 3, 4)]
    for folder in folders:
        save_checkpoint(folder, student, a_state(1), CardFacts())
    rotate(tmp_path, keep=2, in_use=folders[0])
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    for folder in folders:
        if folder.exists():
            check_complete(folder)


def test_optimizer_state_round_trip():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model[0](torch.randn(4, 3)).sum().backward()  # the second layer never has a gradient, hence no state
        optimizer.step()
        optimizer.zero_grad()
    tensors = flatten_optimizer(optimizer, names)
    assert tensors.keys() == {f"0.{p}/{key}" for p in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")}
    twin = copy.deepcopy(model)
    other = torch.optim.AdamW(twin.parameters(), lr=0.1, fused=True)
    restore_optimizer(other, names, {key: tensor.clone() for key, tensor in tensors.items()})
    audio = torch.randn(4, 3)
    for net, opt in ((model, optimizer), (twin, other)):
        net(audio).sum().backward()
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="names 'x'"):
        restore_optimizer(other, names, {"x/step": torch.tensor(1.0)})

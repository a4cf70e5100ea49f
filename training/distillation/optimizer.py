"""The optimiser of distillation, and its state as named tensors."""

import torch

from .recipe import DistillationRecipe
from .step import DistillationModel


def make_optimizer(model: DistillationModel, recipe: DistillationRecipe) -> tuple[torch.optim.AdamW, list[str]]:
    """AdamW over what is trained, and the parameters' names in its order; matrices are decayed, vectors are not."""
    named = [
        *((f"student.{name}", parameter) for name, parameter in model.student.named_parameters()),
        *((f"objective.{name}", parameter) for name, parameter in model.objective.named_parameters()),
    ]
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    decayed = [(name, p) for name, p in named if p.ndim > 1]
    others = [(name, p) for name, p in named if p.ndim <= 1]
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in decayed], "weight_decay": settings.weight_decay},
            {"params": [p for _, p in others], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )
    return optimizer, [name for name, _ in [*decayed, *others]]


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `parameter/exp_avg`, …

    Args:
        names: A name for each parameter, in the order of the optimiser's groups.
    """
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}/{key}": tensor for index, entry in state.items() for key, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, torch.Tensor]) -> None:
    """The reverse of `flatten_optimizer`; rates and the like stay as they are in `optimizer`.

    Raises:
        ValueError: A tensor belongs to none of the parameters.
    """
    indices = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in indices:
            raise ValueError(f"the checkpoint's optimizer state names {name!r}, which the model does not have")
        state.setdefault(indices[name], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

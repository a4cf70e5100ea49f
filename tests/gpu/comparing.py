"""What the tests on devices compare: a computation with the same one in float64 on the CPU."""

import copy
from typing import NamedTuple

import torch

from ..heads import make_labels


class Computed(NamedTuple):
    """On the CPU in float64: the output on valid frames, the loss, and all gradients as one vector."""

    output: torch.Tensor
    loss: torch.Tensor
    gradients: torch.Tensor


def compute(model, audio, mask, device="cpu", dtype=torch.float64) -> Computed:
    """Forward and backward of a copy of `model`, in evaluation mode: nothing is random."""
    model = copy.deepcopy(model).to(device, dtype)
    names = ("LightHubertModel", "HubertModel")
    labels = {} if type(model).__name__ in names else make_labels(type(model))
    labels = {name: (value.to(dtype) if value.is_floating_point() else value) for name, value in labels.items()}
    labels = {name: value.to(device) for name, value in labels.items()}
    out = model(audio.to(device, dtype), mask.to(device), **labels)
    output = out[0] if not labels else out[1]
    if output.ndim == 3:
        output = output[model._get_feature_vector_attention_mask(output.shape[1], mask.to(device))]
    loss = out.loss if labels else output.square().mean()
    loss.backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    gradients = torch.cat([gradient.flatten() for gradient in gradients])
    return Computed(*(tensor.detach().double().cpu() for tensor in (output, loss, gradients)))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the norms."""
    return float((found.double().cpu() - exact).norm() / exact.norm())

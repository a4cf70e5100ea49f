"""Compiled models compute what they computed before; on a GPU by Inductor, on the CPU by the graph alone."""

import copy

import pytest
import torch

from lighthubert_hf import LightHubertForCTC, Subnet

from .comparing import compute, relative_error
from .conftest import CUDA, SLOW_CPU
from .test_model import FP32_BOUND

UNEQUAL = Subnet(48, (1, 4, 2), (96, 72, 144))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("device", [SLOW_CPU, CUDA], indirect=True)
def test_a_compiled_model(device, make_model, padded, gradients):
    model = make_model(LightHubertForCTC).extract_subnet(UNEQUAL)
    exact = compute(model, *padded)
    model = copy.deepcopy(model).to(device)
    audio, mask = (tensor.to(device) for tensor in padded)
    torch.compiler.reset()
    graph = torch.compile(model, fullgraph=True, backend="aot_eager" if device.type == "cpu" else "inductor")
    with torch.set_grad_enabled(gradients):
        logits = graph(audio, mask).logits
    valid = model._get_feature_vector_attention_mask(logits.shape[1], mask)
    assert relative_error(logits[valid].detach(), exact.output) < FP32_BOUND
    if gradients:
        logits[valid].square().sum().backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        model(audio, mask).logits[valid].square().sum().backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert relative_error(found, expected.double().cpu()) < 10 * FP32_BOUND

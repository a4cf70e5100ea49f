"""The model on a device against float64 on the CPU."""

import pytest
import torch

from lighthubert_hf import (
    LightHubertConfig,
    LightHubertForCTC,
    LightHubertForSequenceClassification,
    LightHubertModel,
    SearchSpace,
    Subnet,
)
from lighthubert_hf.model.extraction import subnet_config

from ..heads import HEADS
from .comparing import compute, relative_error

UNEQUAL = Subnet(48, (1, 4, 2), (96, 72, 144))
# fp32 rounds to 6e-8. Through a dozen layers of sums of up to 200 products errors add up, at random, to some 1e-6 on
# any processor that rounds as IEEE 754 says; TF32 and bf16 would give 1e-3 and more.
FP32_BOUND = 1e-5
OPTIONS = {
    "plain": {},
    "group norm": {"feat_extract_norm": "group"},
    "window": {"attention_window": 6},
    "pre-norm": {"do_stable_layer_norm": True},
}
CASES = [(LightHubertModel, name) for name in OPTIONS] + [(cls, "plain") for cls in HEADS]


@pytest.mark.parametrize(("cls", "options"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_fp32(device, make_model, padded, cls, options):
    """Outputs, loss and gradients of an active slice, on padded rows."""
    model = make_model(cls, num_labels=5, **OPTIONS[options])
    model.set_active_subnet(UNEQUAL)
    exact = compute(model, *padded)
    found = compute(model, *padded, device=device, dtype=torch.float32)
    for name, value in found._asdict().items():
        assert relative_error(value, getattr(exact, name)) < FP32_BOUND, name


def test_a_slice_is_what_is_extracted(device, make_model, padded):
    supernet = make_model(LightHubertModel)
    supernet.set_active_subnet(UNEQUAL)
    slice_, static = (
        compute(model, *padded, device=device, dtype=torch.float32) for model in (supernet, supernet.extract_subnet())
    )
    assert relative_error(static.output, slice_.output) < FP32_BOUND


@pytest.mark.parametrize("cls", [LightHubertModel, LightHubertForCTC, LightHubertForSequenceClassification])
def test_bf16_is_as_exact_as_a_hubert(device, make_model, waveforms, cls):
    """Random weights amplify rounding, so the bound is the error of transformers' model with the same weights."""
    ours = make_model(cls, num_labels=5).extract_subnet(Subnet(64, (4,) * 4, (192,) * 4))
    assert_as_exact_as_a_hubert(ours, waveforms, device, torch.bfloat16)


@torch.no_grad()
def assert_as_exact_as_a_hubert(ours, audio, device, dtype):
    theirs = ours.to_hubert()
    exact = ours.double()(audio.double())[0]
    errors = [relative_error(m.to(device, dtype)(audio.to(device, dtype))[0], exact) for m in (ours, theirs)]
    assert errors[0] < 1.5 * errors[1]
    assert errors[1] < 0.2  # or the bound above means nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_full_size(device, dtype):
    """The 27M default of the `small` space: convolutions and products of the size that kernels are chosen for."""
    torch.manual_seed(0)
    space = SearchSpace.small()
    model = LightHubertModel(subnet_config(LightHubertConfig(search_space=space), space.default())).eval()
    audio = torch.randn(2, 8000)
    assert_as_exact_as_a_hubert(model, audio, device, dtype)
    if dtype is torch.float32:
        with torch.no_grad():
            exact = model.to("cpu", torch.float64)(audio.double())[0]
            found = model.to(device, dtype)(audio.to(device))[0]
        assert relative_error(found, exact) < FP32_BOUND

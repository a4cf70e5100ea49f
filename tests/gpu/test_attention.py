"""Attention implementations on a device, with padding and windows."""

import copy

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from lighthubert_hf import LightHubertModel, Subnet

from ..flash_attention import use_stand_ins
from .comparing import relative_error
from .conftest import CUDA, SLOW_CPU

UNEQUAL = Subnet(48, (1, 4, 2), (96, 72, 144))


def assert_as_exact_as_eager(make_model, padded, device, implementation, window, dtype=torch.float32):
    """Against eager attention in float64; eager attention of the same type on the same device sets the bound."""
    model = make_model(LightHubertModel, attention_window=window).extract_subnet(UNEQUAL)
    audio, mask = padded
    valid = model._get_feature_vector_attention_mask(14, mask)

    @torch.no_grad()
    def run(implementation, device, dtype):
        other = copy.deepcopy(model).to(device, dtype)
        other.config._attn_implementation = implementation
        whole = other(audio.to(device, dtype))[0]
        rows = other(audio.to(device, dtype), mask.to(device))[0]
        assert rows.isfinite().all()
        return torch.cat([whole.flatten(0, 1), rows[valid.to(device)]]).double().cpu()

    exact = run("eager", "cpu", torch.float64)
    errors = {name: relative_error(run(name, device, dtype), exact) for name in ("eager", implementation)}
    assert errors[implementation] < 1.5 * errors["eager"] + 1e-6
    other = make_model(LightHubertModel, attention_window=2 if window else 6).extract_subnet(UNEQUAL)
    assert relative_error(other.double()(audio.double(), mask)[0][valid], exact[-int(valid.sum()) :]) > 0.01


@pytest.mark.parametrize("window", [None, 6])
def test_sdpa(device, make_model, padded, window):
    assert_as_exact_as_eager(make_model, padded, device, "sdpa", window)


@pytest.mark.parametrize(
    ("device", "window"),
    [pytest.param("cpu", 6, marks=SLOW_CPU.marks), *(pytest.param("cuda", w, marks=CUDA.marks) for w in (None, 6))],
    indirect=["device"],
)
def test_flex_attention(device, make_model, padded, window):
    assert_as_exact_as_eager(make_model, padded, device, "flex_attention", window)


@pytest.mark.parametrize("window", [None, 6])
def test_flash_attention_2(monkeypatch, device, make_model, padded, window):
    """On a GPU its kernels, in bf16; on the CPU a stand-in under transformers' own wrapper, which does the rest."""
    if device.type == "cpu":
        use_stand_ins(monkeypatch)
    elif not is_flash_attn_2_available():
        pytest.skip("flash attention 2 has no kernels here (no module flash_attn that fits)")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    assert_as_exact_as_eager(make_model, padded, device, "flash_attention_2", window, dtype)

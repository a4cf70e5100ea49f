"""Tests whose bodies run on every device: on the CPU in the ordinary suite, on a GPU by `pytest -m gpu tests/gpu`."""

import pytest
import torch

from ..training.distillation.conftest import make_recipe, tiny_corpus, tiny_recipe, tiny_teacher  # noqa: F401

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")]
)
SLOW_CPU = pytest.param("cpu", marks=pytest.mark.slow)  # what takes long, and is tested on the CPU elsewhere, too


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch) -> torch.device:
    """fp32 means fp32: cuDNN would otherwise round a convolution's inputs to TF32, ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert torch.get_float32_matmul_precision() == "highest"
    return torch.device(request.param)


@pytest.fixture
def padded(waveforms):
    """Audio and mask of four rows, two of them padded."""
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 3000:] = mask[2, 2000:] = 0
    return waveforms * mask, mask

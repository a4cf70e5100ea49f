"""What all tests share: one tiny model family, its weights drawn like the golden ones."""

import random

import pytest
import torch

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace

from .golden import draw
from .tiny import TINY


def _draw_weights(model, seed: int) -> None:
    """Activations of about unit size in every layer, so that a wrong slice shows in the output."""
    names = {"original0": "weight_g", "original1": "weight_v"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for ours, original in names.items():
                name = name.replace(f"parametrizations.weight.{ours}", original)
            parameter.copy_(draw(name, tuple(parameter.shape), seed))


@pytest.fixture(scope="session")
def make_config():
    """`make_config(**overrides)`: a new config of the tiny supernet; `search_space=None` for a static model."""

    def make(**overrides):
        return LightHubertConfig(**TINY | overrides)

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """`make_model(cls, seed=0, **overrides)`: a new tiny model in evaluation mode."""

    def make(cls, seed: int = 0, **overrides):
        model = cls(make_config(**overrides)).eval()
        _draw_weights(model, seed)
        return model

    return make


@pytest.fixture
def tiny_config(make_config):
    return make_config()


@pytest.fixture
def tiny_supernet(make_model):
    return make_model(LightHubertModel)


@pytest.fixture(scope="session")
def random_subnets():
    """`random_subnets(space, count, seed=0)`: that many different subnets."""

    def sample(space: SearchSpace, count: int, seed: int = 0):
        rng, subnets = random.Random(seed), {}
        while len(subnets) < count:
            subnets.setdefault(space.sample(rng))
        return list(subnets)

    return sample


@pytest.fixture
def waveforms():
    """`(4, 4800)`: 0.3 seconds, 14 frames."""
    return torch.randn(4, 4800, generator=torch.Generator().manual_seed(0))

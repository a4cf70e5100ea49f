"""Which subnets a step trains."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf import SearchSpace
from lighthubert_hf.training.distillation.recipe import PhaseSection, SamplerSection
from lighthubert_hf.training.distillation.sampler import KNOBS, StepSubnets, loss_weight

SPACE = SearchSpace.small()


@given(st.integers(0, 2**32), st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.sampled_from([1, 3]))
def test_pure_function_of_seed_and_step(seed, steps, number):
    settings = SamplerSection(kind="random", num_random=number)
    sampler, again = (StepSubnets(SPACE, settings, seed) for _ in range(2))
    forwards = [sampler.subnets(step) for step in steps]
    assert forwards == [again.subnets(step) for step in reversed(steps)][::-1]
    assert all(len(drawn) == number and all(subnet in SPACE for subnet in drawn) for drawn in forwards)


def test_every_choice_is_drawn_about_equally_often():
    sampler = StepSubnets(SPACE, SamplerSection(), seed=0)
    drawn = [sampler.subnets(step)[0] for step in range(1500)]
    for count in Counter(subnet.hidden_size for subnet in drawn).values():
        assert 400 < count < 600
    assert Counter(subnet.num_hidden_layers for subnet in drawn).keys() == {10, 11, 12}
    assert len(set(drawn)) > 1490
    other = StepSubnets(SPACE, SamplerSection(), seed=1)
    assert other.subnets(0) != sampler.subnets(0)


def test_largest_and_sandwich():
    assert StepSubnets(SPACE, SamplerSection(kind="largest"), 0).subnets(5) == (SPACE.largest(),)
    drawn = StepSubnets(SPACE, SamplerSection(kind="sandwich", num_random=2), 0).subnets(5)
    assert drawn[:2] == (SPACE.largest(), SPACE.smallest())
    assert len(drawn) == 4


def test_progressive_shrinking_opens_one_knob_after_another():
    phases = [PhaseSection(from_step=100 * i, open=list(KNOBS[:i])) for i in range(5)]
    sampler = StepSubnets(SPACE, SamplerSection(kind="random", phases=phases), 0)
    for phase in range(5):
        space = sampler.space_at(100 * phase + 99)
        for place, knob in enumerate(KNOBS):
            full = getattr(SPACE, knob)
            assert getattr(space, knob) == (full if place < phase else (max(full),))
        assert all(sampler.subnets(step)[0] in space for step in range(100 * phase, 100 * phase + 50))
    assert sampler.subnets(50) == (SPACE.largest(),)


def test_subspaces_are_drawn_by_weight_and_kept_apart():
    """Narrow subnets never have many heads, wide ones never few; all are of the space."""
    subspaces = [
        {"hidden_size": [256], "num_attention_heads": [4], "weight": 3.0},
        {"hidden_size": [384, 512], "num_attention_heads": [6, 8], "num_hidden_layers": [12]},
    ]
    settings = SamplerSection(kind="sandwich", num_random=4, subspaces=subspaces)
    sampler = StepSubnets(SPACE, settings, seed=0)
    assert sampler.subnets(7) == StepSubnets(SPACE, settings, seed=0).subnets(7)
    assert sampler.subnets(7)[:2] == (SPACE.largest(), SPACE.smallest())
    drawn = [subnet for step in range(300) for subnet in sampler.subnets(step)[2:]]
    narrow = [subnet for subnet in drawn if subnet.hidden_size == 256]
    assert 0.7 < len(narrow) / len(drawn) < 0.8
    assert {max(subnet.num_attention_heads) for subnet in narrow} == {4}
    assert {subnet.num_hidden_layers for subnet in narrow} == {10, 11, 12}
    others = [subnet for subnet in drawn if subnet.hidden_size > 256]
    assert {min(subnet.num_attention_heads) for subnet in others} == {6}
    assert all(subnet in SPACE and (subnet.hidden_size == 256 or subnet.num_hidden_layers == 12) for subnet in drawn)
    with pytest.raises(ValueError, match=r"names hidden_size 640, the search space offers \[256, 384, 512\]"):
        StepSubnets(SPACE, SamplerSection(subspaces=[{"hidden_size": [512, 640]}]), seed=0)
    with pytest.raises(ValueError, match="both restrict"):
        SamplerSection(subspaces=subspaces, phases=[{"from_step": 0, "open": []}])


@pytest.mark.parametrize(("spread", "least", "most"), [(0.1, 0.85, 1.0), (3.0, -0.1, 0.1)])
def test_near_the_diagonal_proportions_are_kept_and_choices_equally_likely(spread, least, most):
    space = SearchSpace.small_elastic()
    sampler = StepSubnets(space, SamplerSection(spread=spread), seed=0)
    drawn = [sampler.subnets(step)[0] for step in range(1500)]
    assert all(subnet in space for subnet in drawn)
    for count in Counter(subnet.hidden_size for subnet in drawn).values():
        assert 400 < count < 600
    for count in Counter(subnet.conv_dim[0] for subnet in drawn).values():
        assert 300 < count < 450
    pairs = [[subnet.hidden_size, sum(subnet.num_attention_heads) / subnet.num_hidden_layers] for subnet in drawn]
    assert least < torch.corrcoef(torch.tensor(pairs).T)[0, 1] < most


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 2.0])
def test_a_loss_counts_by_width_and_one_in_the_mean(exponent):
    weights = {width: loss_weight(SPACE.uniform(width, 4, 3.0, 10), SPACE, exponent) for width in SPACE.hidden_size}
    assert sum(weights.values()) / 3 == pytest.approx(1)
    assert weights[512] / weights[256] == pytest.approx(2**exponent)

"""Which subnets a step trains."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf import SearchSpace
from lighthubert_hf.training.distillation.recipe import PhaseSection, SamplerSection
from lighthubert_hf.training.distillation.sampler import KNOBS, StepSubnets

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

"""Importance sorting leaves the largest subnet alone and puts the important parts where narrower subnets look."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertModel, SearchSpace
from lighthubert_hf.conversion.layout.importance import ffn_importance, head_importance, rearrangements
from lighthubert_hf.rearrangement import ffn_use

from ...examples import examples
from ...precision import assert_as_exact, assert_rounded_alike, in_double


def choices(values):
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(tuple)


SPACES = st.builds(
    SearchSpace, choices((16, 32, 48, 64)), choices((1, 2, 3, 4)), choices((0.5, 1.0, 1.3, 2.0, 3.0)), choices((3, 4))
)


@torch.no_grad()
def rearrange(model, space):
    model.config.search_space = space.to_dict()
    found = rearrangements(model.config, model.state_dict().__getitem__)
    model.load_state_dict({name: found.get(name, lambda t: t)(t) for name, t in model.state_dict().items()})
    return found


@pytest.mark.numerical
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(space=SPACES, seed=st.integers(0, 5))
@torch.no_grad()
def test_largest_subnet_computes_the_same(make_model, waveforms, space, seed):
    model = make_model(LightHubertModel, seed=seed)
    model.set_active_subnet(space.largest())
    before, exact = (twin(waveforms, output_hidden_states=True).hidden_states for twin in (model, in_double(model)))
    rearrange(model, space)
    assert_as_exact(model(waveforms, output_hidden_states=True).hidden_states, before, exact)


@torch.no_grad()
def test_narrow_subnets_get_the_important_parts(make_model):
    model = make_model(LightHubertModel)
    space = model.search_space
    width, head_dim = max(space.hidden_size), model.config.head_dim
    rearrange(model, space)
    use = ffn_use(model.config, space)
    for layer in model.encoder.layers:
        attention, ffn = layer.attention, layer.feed_forward
        heads = head_importance(attention.v_proj.weight, attention.out_proj.weight, head_dim)
        assert (heads.diff() <= 1e-5 * heads.max()).all()  # importances of sums in another order
        units = ffn_importance(ffn.intermediate_dense.weight[:, :width], ffn.output_dense.weight[:width])
        levels = [units[use == count] for count in use.unique()]
        assert len(levels) > 2
        # Up to sums in another order.
        assert all(rarer.max() <= (1 + 1e-5) * commoner.min() for rarer, commoner in pairwise(levels))


@torch.no_grad()
def test_sorting_helps_where_importance_differs(make_model, waveforms):
    """With half of the units and heads nearly silent, the narrow subnet keeps more of the function if sorted."""
    space = SearchSpace((64,), (2, 4), (1.5, 3.0), (4,))
    changes = []
    for sort in (False, True):
        model = make_model(LightHubertModel, search_space=space)
        for layer in model.encoder.layers:
            layer.feed_forward.output_dense.weight[:, :96] *= 0.01
            layer.attention.out_proj.weight[:, :32] *= 0.01
        if sort:
            rearrange(model, space)
        model.set_active_subnet(space.largest())
        full = model(waveforms).last_hidden_state
        model.set_active_subnet(space.smallest())
        changes.append((model(waveforms).last_hidden_state - full).abs().mean())
    assert changes[1] < 0.1 * changes[0]


def test_head_importance_is_the_norm_of_the_product():
    value, output = torch.randn(3 * 4, 10), torch.randn(10, 3 * 4)
    expected = [torch.linalg.norm(output[:, i : i + 4] @ value[i : i + 4]) for i in (0, 4, 8)]
    assert_rounded_alike(head_importance(value, output, 4), torch.stack(expected), 4 * 10 + 4)


@pytest.mark.parametrize(("width", "units"), [(32, [*range(32), *range(64, 96)]), (64, [*range(128)])])
def test_ffn_use_follows_the_slices(make_config, width, units):
    """Of the blocks of 64 units, width 32 takes the first half of each; full width takes them whole."""
    config = make_config(search_space=SearchSpace((width,), (1,), (2.0,), (4,)))
    use = ffn_use(config, SearchSpace.from_dict(config.search_space))
    assert use.nonzero().flatten().tolist() == units

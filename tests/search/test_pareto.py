"""Fronts and hypervolumes against brute force."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf.search.pareto import dominates, hypervolume, pareto_front


def points(dimensions, most=12):
    return st.lists(st.tuples(*[st.integers(0, 6)] * dimensions), max_size=most)


def test_dominates():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


@given(st.integers(1, 4).flatmap(points))
def test_front_is_what_nobody_dominates_without_repeats(found):
    front = pareto_front(found)
    expected = {p for p in found if not any(dominates(q, p) for q in found)}
    assert sorted(found[i] for i in front) == sorted(expected)
    assert [found[i] for i in front] == sorted(expected)
    assert all(found.index(found[i]) == i for i in front)


@given(st.integers(1, 3).flatmap(lambda n: st.tuples(points(n), st.tuples(*[st.integers(0, 7)] * n))))
def test_hypervolume_counts_the_dominated_cells(case):
    found, reference = case
    cells = itertools.product(*(range(r) for r in reference))
    dominated = sum(any(all(x <= c for x, c in zip(p, cell)) for p in found) for cell in cells)
    assert hypervolume(found, reference) == dominated


def test_hypervolume_of_fractions():
    assert hypervolume([(0.25, 0.5), (0.5, 0.25)], (1, 1)) == pytest.approx(0.375 + 0.125)
    assert hypervolume([], (1, 1)) == 0

"""Costs and limits as a user writes them, and what cannot be met."""

from dataclasses import replace

import pytest

from lighthubert_hf.costs.profiling import count_macs, count_parameters
from lighthubert_hf.search.costs import Cost, Limit, Limits, cost_function, format_cost, uniform_subnets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters", Cost("parameters")),
        ("params", Cost("parameters")),
        ("macs@2.5s", Cost("macs", 2.5)),
        ("latency", Cost("latency", 10.0, 1)),
        ("latency@4x10s", Cost("latency", 10.0, 4)),
        (" memory@.5s ", Cost("memory", 0.5)),
    ],
)
def test_cost(text, expected):
    assert Cost.parse(text) == expected
    assert Cost.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("params", "30M", Limit(Cost("parameters"), 30e6)),
        ("parameters", "26900000", Limit(Cost("parameters"), 26.9e6)),
        ("parameters", "1.5e3k", Limit(Cost("parameters"), 1.5e6)),
        ("macs", "3.5G@5s", Limit(Cost("macs", 5.0), 3.5e9)),
        ("latency", "60ms@10s", Limit(Cost("latency"), 60.0)),
        ("latency", "0.25 s@4x2s", Limit(Cost("latency", 2.0, 4), 250.0)),
        ("memory", "400MB", Limit(Cost("memory"), 400e6)),
        ("memory", "1GiB@10s", Limit(Cost("memory"), 2**30)),
    ],
)
def test_limit(name, text, expected):
    assert Limit.parse(name, text) == expected


@pytest.mark.parametrize(
    "text", ["", "M", "60", "60ms@10", "60ms@", "-5ms", "60mss", "60 ms 10s", "60ms@0x1s", "60ms@0s"]
)
def test_limit_that_cannot_be_read(text):
    with pytest.raises(ValueError, match=r"write (it like|@10s)|positive length"):
        Limit.parse("latency", text)


def test_unknown_cost():
    for make in (lambda: Cost.parse("speed@1s"), lambda: Limit.parse("speed", "3")):
        with pytest.raises(ValueError, match="unknown cost 'speed'; allowed: parameters, macs, latency, memory"):
            make()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("parameters", 26_879_744, "26.88M"),
        ("parameters", 950, "950"),
        ("macs", 3.6e9, "3.6G"),
        ("latency", 61.234, "61.23ms"),
        ("latency", 1500, "1.5s"),
        ("memory", 123e6, "123MB"),
        ("memory", 12, "0.012kB"),
    ],
)
def test_format(name, value, text):
    assert format_cost(name, value) == text


@pytest.fixture
def functions(tiny_config):
    costs = (Cost("parameters"), Cost("macs", 2.0))
    return {cost: cost_function(cost, tiny_config, {}) for cost in costs}


def test_counted_costs(tiny_config, functions, tiny_supernet):
    subnet = tiny_supernet.search_space.default()
    assert functions[Cost("parameters")](subnet) == count_parameters(tiny_config, subnet)
    assert functions[Cost("macs", 2.0)](subnet) == count_macs(tiny_config, subnet, 32_000) / 2


def test_limits_allow_what_keeps_them_all(functions, tiny_supernet, random_subnets):
    space = tiny_supernet.search_space
    parameters, macs = functions
    middle = space.default()
    limits = [Limit(parameters, functions[parameters](middle)), Limit(macs, functions[macs](middle))]
    checked = Limits(limits, functions, space)
    assert checked.allow(middle)
    subnets = random_subnets(space, 40)
    expected = [all(functions[limit.cost](s) <= limit.maximum for limit in limits) for s in subnets]
    assert [checked.allow(subnet) for subnet in subnets] == expected
    assert len(set(expected)) == 2
    for subnet, allowed in zip(subnets, expected):
        assert all(value <= 0 for value in checked.excess(subnet).values()) == allowed
    assert all(map(checked.allow, checked.feasible_uniform))


def test_limit_nobody_can_meet_names_the_smallest_value(functions, tiny_supernet):
    space = tiny_supernet.search_space
    parameters = Cost("parameters")
    smallest = functions[parameters](space.smallest())
    Limits([Limit(parameters, smallest)], functions, space)
    with pytest.raises(ValueError, match=rf"smallest possible value is {format_cost('parameters', smallest)}"):
        Limits([Limit(parameters, smallest - 1)], functions, space)


def test_limits_nobody_can_meet_together(tiny_supernet):
    space = tiny_supernet.search_space
    small, large = Cost("parameters"), Cost("latency")
    functions = {small: lambda s: s.hidden_size, large: lambda s: -s.hidden_size}
    with pytest.raises(ValueError, match="but not all at once"):
        Limits([Limit(small, 32), Limit(large, -64)], functions, space)


def test_uniform_subnets(tiny_supernet):
    space = tiny_supernet.search_space
    found = list(uniform_subnets(space))
    assert len(found) == len(set(found)) == 3**4
    assert all(subnet.is_uniform and subnet in space for subnet in found)
    elastic = replace(space, conv_dim=((8, 16), (4, 12, 16), (16,)))
    found = list(uniform_subnets(elastic))
    assert len(found) == len(set(found)) == 3**4 * 3
    assert {subnet.conv_dim for subnet in found} == {(8, 4, 16), (16, 12, 16), (16, 16, 16)}
    assert {elastic.smallest(), elastic.largest()} <= set(found)

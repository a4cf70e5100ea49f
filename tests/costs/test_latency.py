"""The table of layer costs: coverage, additivity, memory against real runs, files."""

import itertools
import json
import random
from dataclasses import replace

import pytest
import torch

from lighthubert_hf import LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.costs.latency import FrontEndFit, LatencyTable, _covering_front_ends
from lighthubert_hf.costs.measuring import peak_memory

from ..tiny import TINY_SPACE

ELASTIC = replace(TINY_SPACE, conv_dim=((6, 8, 16), (8, 16), (12, 16), *[(16,)] * 3, (10, 16)))


@pytest.fixture(scope="module", params=[TINY_SPACE, ELASTIC], ids=["fixed", "elastic"])
def measured(request, make_model):
    model = make_model(LightHubertModel, search_space=request.param)
    return model, LatencyTable.measure(model, 0.5, 2, rounds=2, checks=2, attempts=1, progress=False)


def test_every_subnet_of_the_space_has_a_latency(measured, random_subnets):
    model, table = measured
    space = model.search_space
    uniform = [
        space.uniform(*choice)
        for choice in itertools.product(
            space.hidden_size, space.num_attention_heads, space.ffn_ratio, space.num_hidden_layers
        )
    ]
    assert all(table.latency_ms(subnet) > 0 for subnet in [*uniform, *random_subnets(space, 20)])
    assert len(table.errors) == 2
    assert table.median_error == pytest.approx(sum(map(abs, table.errors)) / 2)


def test_latency_is_the_sum_of_the_parts(measured):
    model, table = measured
    ms = table.milliseconds
    subnet = Subnet(48, (1, 4, 2), (96, 72, 144))
    if model.config.has_elastic_front_end:
        channels = (8, 8, 12, 16, 16, 16, 10)
        subnet, front_end = replace(subnet, conv_dim=channels), table._latency_fit(channels)
    else:
        front_end = ms["front_end"][()]
    expected = front_end + ms["outside"][48,] + 3 * ms["around"][48,]
    expected += ms["attention"][48, 1] + ms["attention"][48, 4] + ms["attention"][48, 2]
    expected += ms["feed_forward"][48, 96] + ms["feed_forward"][48, 72] + ms["feed_forward"][48, 144]
    assert table.latency_ms(subnet) == pytest.approx(expected)


@pytest.mark.parametrize("space", [TINY_SPACE, replace(ELASTIC, conv_dim=(*ELASTIC.conv_dim[:6], (16,)))])
def test_times_of_the_parts_add_up_to_the_run(make_model, monkeypatch, space):
    """With a clock that charges every module a known price, the table predicts a whole subnet exactly."""
    import lighthubert_hf.costs.latency as latency

    def price(module):
        own = 0.0 if list(module.children()) else 1e-3 * sum(p.numel() for p in module.parameters())
        return own + sum(map(price, module.children()))

    def fake_times(run, modules, device):
        modules = dict(modules)
        run()
        whole = run.__defaults__[0]
        return {name: price(module) for name, module in modules.items()} | {"": price(whole)}

    monkeypatch.setattr(latency, "time_modules", fake_times)
    monkeypatch.setattr(latency, "stopwatch", lambda run, device: price(run.__defaults__[0]))
    model = make_model(LightHubertModel, search_space=space)
    table = LatencyTable.measure(model, 0.5, rounds=1, checks=6, progress=False)
    assert table.errors == pytest.approx([0] * 6, abs=1e-9)


def test_front_ends_that_were_not_measured(make_config):
    """Of a cost that is a sum over convolutions all are priced rightly; nothing narrower costs more."""
    config = make_config(search_space=ELASTIC)

    def price(channels):
        return 3 + sum((i + 1) * a * b + 7 * b for i, (a, b) in enumerate(zip((1, *channels), channels)))

    measured = {channels: price(channels) for channels in _covering_front_ends(ELASTIC, random.Random(0))}
    for layer, choices in enumerate(ELASTIC.conv_dim):
        assert {channels[layer] for channels in measured} == set(choices)
    fit = FrontEndFit.of_latency(config, measured)
    front_ends = list(itertools.product(*ELASTIC.conv_dim))
    assert len(front_ends) > len(measured)
    assert [fit(channels) for channels in front_ends] == pytest.approx([price(channels) for channels in front_ends])
    noisy = FrontEndFit.of_latency(
        config, {c: value * random.Random(str(c)).uniform(0.8, 1.2) for c, value in measured.items()}
    )
    for narrow, wide in itertools.product(front_ends, repeat=2):
        if all(a <= b for a, b in zip(narrow, wide)):
            assert noisy(narrow) <= noisy(wide) + 1e-9


@torch.inference_mode()
def test_memory_is_that_of_the_real_run(measured, random_subnets):
    model, table = measured
    for subnet in [
        model.search_space.smallest(),
        model.search_space.largest(),
        *random_subnets(model.search_space, 4),
    ]:
        static = model.extract_subnet(subnet)
        audio = torch.randn(2, 8000)
        static(audio)  # what is kept between passes is made
        weights = sum(parameter.nbytes for parameter in static.parameters())
        real = weights + peak_memory(lambda static=static, audio=audio: static(audio), [], audio.device)[""]
        assert table.peak_memory(subnet) == pytest.approx(real, rel=0.05)


def test_more_choices_than_layers(make_config):
    space = SearchSpace((32,), (1, 2, 3, 4), (1.0, 1.5, 2.0, 2.5, 3.0), (1, 2))
    config = make_config(search_space=space.to_dict(), num_hidden_layers=2)
    table = LatencyTable.measure(config, 0.2, rounds=1, checks=0, progress=False)
    assert set(table.milliseconds["attention"]) == {(32, heads) for heads in space.num_attention_heads}
    assert set(table.milliseconds["feed_forward"]) == {(32, int(32 * ratio)) for ratio in space.ffn_ratio}
    assert table.median_error is None


def test_save_and_load(measured, tmp_path, random_subnets):
    model, table = measured
    table.save(tmp_path / "table.json")
    loaded = LatencyTable.load(tmp_path / "table.json")
    for subnet in random_subnets(model.search_space, 5):
        assert loaded.latency_ms(subnet) == table.latency_ms(subnet)
        assert loaded.peak_memory(subnet) == table.peak_memory(subnet)
    assert (loaded.machine, loaded.errors, loaded.batch) == (table.machine, table.errors, 2)
    assert json.loads((tmp_path / "table.json").read_text())["median_error"] == table.median_error
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_errors(measured, make_config, tmp_path):
    _, table = measured
    with pytest.raises(ValueError, match="not in the search space"):
        table.latency_ms(Subnet(48, (3,), (96,)))
    with pytest.raises(ValueError, match="has no search_space"):
        LatencyTable.measure(make_config(search_space=None), progress=False)
    with pytest.raises(FileNotFoundError, match="no latency table"):
        LatencyTable.load(tmp_path / "missing.json")
    table.save(tmp_path / "broken.json")
    text = (tmp_path / "broken.json").read_text()
    for damaged in (
        '{"seconds": 1}',
        "",
        text[:99],
        text.replace('"batch": 2', '"batch": 1'),
        text.replace("0.", "1.", 1),
    ):
        assert damaged != text
        (tmp_path / "broken.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"broken\.json .*delete it to measure again"):
            LatencyTable.load(tmp_path / "broken.json")

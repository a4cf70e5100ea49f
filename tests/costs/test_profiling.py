"""Counts against the real models, the paper and torch's counter; what `profile` reports."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, HubertConfig, HubertModel

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.costs.profiling import (
    PARTS,
    count_macs,
    count_parameters,
    macs_by_part,
    paper_parameter_count,
    profile,
)

from ..golden import golden_description
from ..tiny import TINY_SPACE

ELASTIC = replace(TINY_SPACE, conv_dim=((6, 8, 16), (8, 16), (12, 16), *[(16,)] * 3, (10, 16)))
VARIANTS = [
    {},
    {"feat_extract_norm": "group"},
    {"conv_bias": True, "feat_proj_layer_norm": False},
    {"do_stable_layer_norm": True, "num_conv_pos_embeddings": 15},
    {"norm_per_width": True, "head_per_width": True},
    {"search_space": ELASTIC, "norm_per_width": True, "conv_bias": True, "conv_norm_per_width": True},
    {"whole_position_groups": True},
    {"search_space": ELASTIC, "feat_extract_norm": "group", "conv_norm_per_width": True},
]


def numel(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_of_the_extracted_model(make_model, random_subnets, variant):
    model = make_model(LightHubertModel, **variant)
    assert count_parameters(model.config) == numel(model)
    for subnet in random_subnets(model.search_space, 8):
        extracted = model.extract_subnet(subnet)
        assert count_parameters(model.config, subnet) == numel(extracted) == count_parameters(extracted.config)


def test_parameters_as_the_original_counts_them(make_config):
    golden = golden_description()
    layers = golden["cfg"]
    config = LightHubertConfig(
        hidden_size=layers["encoder_embed_dim"],
        num_attention_heads=layers["encoder_attention_heads"],
        intermediate_size=layers["encoder_ffn_embed_dim"],
        conv_dim=(32,) * 7,
        search_space=golden["search_space"],
    )
    for case in golden["subnets"].values():
        assert paper_parameter_count(config, Subnet.from_dict(case["subnet"])) == case["num_parameters"]


@pytest.mark.parametrize(
    ("space", "millions"),
    [(SearchSpace.base(), (41.25, 66.90, 94.38)), (SearchSpace.small(), (11.45, 26.88, 44.40))],
)
def test_parameters_in_the_paper(space, millions):
    config = LightHubertConfig(search_space=space)
    counts = [paper_parameter_count(config, s) for s in (space.smallest(), space.default(), space.largest())]
    assert [round(count / 1e6, 2) for count in counts] == list(millions)


def test_a_subnet_that_does_not_fit_is_refused(tiny_config):
    too_wide = Subnet(4096, (1,), (64,))
    for count in (count_parameters, paper_parameter_count, count_macs):
        with pytest.raises(ValueError, match="4096 exceeds"):
            count(tiny_config, too_wide)


def counted_flop(model, samples) -> FlopCounterMode:
    # The counter knows matrix products, but not the CPU's fused attention.
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, samples))
    return counter


@pytest.mark.parametrize("samples", [16_000, 100_000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_macs_agree_with_torch(make_model, random_subnets, variant, samples):
    # Wide convolutions, or what is counted differently at the edges would weigh more than it does in real models.
    model = make_model(LightHubertModel, **variant)
    for subnet in random_subnets(model.search_space, 3):
        counter = counted_flop(model.extract_subnet(subnet), samples)
        assert 2 * count_macs(model.config, subnet, samples) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_macs_by_part_agree_with_torch(make_model):
    model = make_model(LightHubertModel)
    static = model.extract_subnet(model.search_space.default())
    counts = {
        name.removeprefix("LightHubertModel."): sum(flop.values())
        for name, flop in counted_flop(static, 48_000).get_flop_counts().items()
    }
    depth = static.config.num_hidden_layers
    expected = {
        "front end": counts["feature_extractor"],
        "positional convolution": counts["encoder.pos_conv_embed"],
        "attention": sum(counts[f"encoder.layers.{i}.attention"] for i in range(depth)),
        "FFN": sum(counts[f"encoder.layers.{i}.feed_forward"] for i in range(depth)),
        "other": counts["feature_projection"],
    }
    parts = macs_by_part(static.config, samples=48_000)
    assert list(parts) == list(expected) == list(PARTS)
    assert [2 * value for value in parts.values()] == pytest.approx(list(expected.values()), rel=0.01)


def test_profile_reports_every_setting(make_model):
    model = make_model(LightHubertModel, search_space=None)
    result = profile(model, (0.5, 1.0), (1, 2), repeats=2, progress=False)
    assert [(row.seconds, row.batch) for row in result.rows] == [(0.5, 1), (0.5, 2), (1.0, 1), (1.0, 2)]
    assert result.parameters == numel(model)
    for row in result.rows:
        assert row.macs == row.batch * count_macs(model.config, samples=int(row.seconds * 16_000))
        assert row.real_time_factor == pytest.approx(row.milliseconds / 1e3 / row.seconds / row.batch)
        assert row.gflops == pytest.approx(2 * row.macs / row.milliseconds / 1e6)
        assert list(row.parts) == list(PARTS)
        assert sum(part.macs for part in row.parts.values()) == row.macs
        assert all(part.milliseconds > 0 for part in row.parts.values())
        assert row.peak_memory > 4 * numel(model)
    one, two = result.rows[2:]
    weights = 4 * numel(model)
    assert 1.5 < (two.peak_memory - weights) / (one.peak_memory - weights) < 2.5
    assert json.loads(json.dumps(result.to_dict()))["rows"][0]["seconds"] == 0.5
    table = result.table()
    assert len([line for line in table.splitlines() if line.startswith("| ")]) == 1 + len(result.rows)
    assert result.machine["device"] in table


def test_profile_of_a_supernet_is_of_its_active_subnet(tiny_supernet):
    subnet = tiny_supernet.search_space.smallest()
    tiny_supernet.set_active_subnet(subnet)
    result = profile(tiny_supernet, (0.5,), repeats=1, progress=False)
    assert result.parameters == count_parameters(tiny_supernet.config, subnet)
    assert result.rows[0].macs == count_macs(tiny_supernet.config, subnet, 8000)
    assert tiny_supernet.active_subnet == result.subnet == subnet
    assert str(subnet) in result.table()
    json.dumps(result.to_dict())


def test_profile_of_a_head_and_of_a_plain_hubert(make_model):
    supernet = make_model(LightHubertForPreTraining)
    static = supernet.extract_subnet(supernet.search_space.uniform(64, 4, 3.0, 4))
    plain = static.lighthubert.to_hubert()
    ours, theirs = (profile(model, (0.5,), repeats=1, progress=False) for model in (static, plain))
    assert (ours.model, theirs.model) == ("LightHubertForPreTraining", "HubertModel")
    assert ours.parameters == theirs.parameters == numel(plain)
    assert ours.rows[0].macs == theirs.rows[0].macs


def test_profile_of_something_else_is_refused(tiny_supernet):
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(ValueError, match="a BertModel cannot be profiled"):
        profile(bert, progress=False)
    for model in (
        tiny_supernet,
        HubertModel(HubertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)),
    ):
        with pytest.raises(ValueError, match="not one frame"):
            profile(model, (1.0, 0.02), progress=False)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        profile(tiny_supernet, (1.0,), (1, 0), progress=False)
    with pytest.raises(ValueError, match="repeats must be from 1 to 10,000, got 0"):
        profile(tiny_supernet, (1.0,), repeats=0, progress=False)

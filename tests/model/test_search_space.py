import importlib.util
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf import SearchSpace, Subnet
from lighthubert_hf.costs.profiling import count_parameters
from lighthubert_hf.model import search_space
from lighthubert_hf.model.search_space import check_cuttable, ffn_ranges, kept_layers
from lighthubert_hf.subnets import choose_subnet

SMALL, BASE = SearchSpace.small(), SearchSpace.base()
TINY = SearchSpace((2, 4), (1, 2), (1.5, 2.0), (1, 2))
CONV = SearchSpace((2, 4), (1, 2), (1.5, 2.0), (1, 2), ((1, 2), (3,), (4, 6)))


def test_no_torch_is_imported():
    code = "import sys, lighthubert_command, lighthubert_hf; "
    code += "from lighthubert_hf import SearchSpace; SearchSpace.small(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Which layers


def test_depths_of_the_published_space():
    assert kept_layers(12, 12) == tuple(range(12))
    assert set(range(12)) - set(kept_layers(11, 12)) == {11}
    assert set(range(12)) - set(kept_layers(10, 12)) == {7, 11}


@given(st.integers(1, 30).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))))
def test_shallower_is_nested_in_deeper(depth_and_total):
    depth, total = depth_and_total
    layers = kept_layers(depth, total)
    assert len(layers) == depth
    assert list(layers) == sorted(layers)
    assert set(layers) <= set(range(total))
    if depth < total:
        assert set(layers) <= set(kept_layers(depth + 1, total))


@pytest.mark.parametrize("depth", [0, 13, -1])
def test_impossible_depth(depth):
    with pytest.raises(ValueError, match=f"{depth} layers cannot be cut from 12; allowed: 1 to 12"):
        kept_layers(depth, 12)


# Which FFN units


def test_ffn_ranges_of_the_published_spaces():
    assert ffn_ranges(512, 1792, 768) == ((0, 512), (768, 1280), (1536, 2048), (2304, 2560))
    assert ffn_ranges(384, 1152, 768) == ((0, 384), (768, 1152), (1536, 1920))
    assert ffn_ranges(768, 3072, 768) == ((0, 3072),)


@given(st.integers(1, 64), st.integers(1, 300), st.integers(0, 64))
def test_ffn_ranges_take_the_right_number_of_units(width, size, more):
    ranges = ffn_ranges(width, size, width + more)
    units = [unit for start, stop in ranges for unit in range(start, stop)]
    assert len(units) == size
    assert units == sorted(set(units))
    assert all(unit % (width + more) < width for unit in units)
    assert all(stop <= later for (_, stop), (later, _) in pairwise(ranges))


# Subnets


def test_subnet_is_a_value():
    a = Subnet(384, (6,) * 12, (1536,) * 12)
    b = Subnet(384, [6] * 12, np.full(12, 1536))
    assert a == b
    assert hash(a) == hash(b)
    assert a.key == b.key
    assert len({a, b}) == 1
    assert a.num_hidden_layers == 12
    assert a.is_uniform
    assert not Subnet(8, (1, 2), (4, 4)).is_uniform
    with pytest.raises(AttributeError):
        a.hidden_size = 5


def test_subnet_reads_well():
    assert str(Subnet(384, (6, 6), (1536, 1536))) == "2 layers, 384 wide, heads 6, FFN 1536"
    assert str(Subnet(384, (6, 4), (1536, 1152))) == "2 layers, 384 wide, heads 6-4, FFN 1536-1152"


@given(st.randoms(use_true_random=False), st.sampled_from([SMALL, BASE, TINY, CONV, SearchSpace.small_elastic()]))
def test_subnets_survive_json(rng, space):
    subnet = space.sample(rng)
    again = Subnet.from_dict(json.loads(json.dumps(subnet.to_dict())))
    assert again == subnet
    assert again.key == subnet.key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((384, (6, 6), (1536,)), "got 2 and 1"),
        ((384, (), ()), "num_attention_heads must be a non-empty sequence"),
        ((0, (6,), (1536,)), "hidden_size must be a non-empty sequence of positive integers"),
        ((384, (6.5,), (1536,)), r"num_attention_heads must be .*6\.5"),
        ((384, (True,), (1536,)), "num_attention_heads must be .*True"),
        ((384, (math.inf,), (1536,)), "num_attention_heads must be .*inf"),
        ((384, ("six",), (1536,)), "num_attention_heads must be .*six"),
        ((384, 6, (1536,)), "num_attention_heads must be a sequence"),
        ((384, (6,), (-1,)), "intermediate_size must be"),
    ],
)
def test_impossible_subnets(arguments, message):
    with pytest.raises(ValueError, match=message):
        Subnet(*arguments)


@pytest.mark.parametrize("data", [{"hidden_size": 4}, {}, [], "subnet", {**TINY.smallest().to_dict(), "extra": 1}])
def test_subnet_from_something_else(data):
    with pytest.raises(ValueError, match="Subnet"):
        Subnet.from_dict(data)


# Search spaces


def test_published_spaces():
    assert SMALL.count() == len(SMALL) == 951_892_141_473
    assert BASE.count() == len(BASE) == 6_530_347_008
    assert SMALL.default() == Subnet(384, (6,) * 12, (1536,) * 12)
    assert BASE.default() == Subnet(640, (10,) * 12, (2560,) * 12)
    assert SMALL.smallest() == Subnet(256, (4,) * 10, (768,) * 10)
    assert BASE.largest() == Subnet(768, (12,) * 12, (3072,) * 12)


def every(space):
    return {
        Subnet(width, heads, tuple(int(r * width) for r in ratios))
        for depth in space.num_hidden_layers
        for width in space.hidden_size
        for heads in product(space.num_attention_heads, repeat=depth)
        for ratios in product(space.ffn_ratio, repeat=depth)
    }


def test_every_subnet_is_counted_once():
    subnets = every(TINY)
    assert len(subnets) == TINY.count() == 40
    assert len({subnet.key for subnet in subnets}) == 40
    assert all(subnet in TINY for subnet in subnets)
    rng = random.Random(0)
    assert {TINY.sample(rng) for _ in range(2000)} == subnets


def test_membership():
    for outside in (
        Subnet(300, (6,) * 12, (900,) * 12),
        Subnet(384, (5,) * 12, (1536,) * 12),
        Subnet(384, (6,) * 12, (1535,) * 12),
        Subnet(384, (6,) * 9, (1536,) * 9),
        "384",
    ):
        assert outside not in SMALL


@given(st.integers(0, 2**32), st.sampled_from([SMALL, BASE, TINY, CONV, SearchSpace.small_elastic()]))
def test_samples_belong_and_repeat(seed, space):
    subnet = space.sample(random.Random(seed))
    assert subnet in space
    assert subnet == space.sample(random.Random(seed))
    drawn = space.sample(np.random.default_rng(seed))
    assert drawn in space
    assert drawn == space.sample(np.random.default_rng(seed))


def test_order_of_drawing():
    class Recorder:
        def __init__(self):
            self.seen = []

        def choice(self, options):
            self.seen.append(options)
            return options[-1]

    recorder = Recorder()
    TINY.sample(recorder)
    assert recorder.seen == [TINY.num_hidden_layers, TINY.hidden_size, *[TINY.ffn_ratio] * 2, *[(1, 2)] * 2]


def test_choices_are_sorted_and_survive_json():
    space = SearchSpace((512, 256), [8, 4], (4, 3.5), (12, 10))
    assert space == SearchSpace((256, 512), (4, 8), (3.5, 4.0), (10, 12))
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", (), "hidden_size must be a non-empty sequence"),
        ("hidden_size", (256, 256), r"hidden_size lists a choice twice: \(256, 256\)"),
        ("num_attention_heads", (0,), "num_attention_heads must be"),
        ("ffn_ratio", (0.0,), "ffn_ratio must be"),
        ("ffn_ratio", (float("nan"),), "ffn_ratio must be"),
        ("ffn_ratio", None, "ffn_ratio must be"),
        ("num_hidden_layers", (2.5,), "num_hidden_layers must be"),
    ],
)
def test_impossible_spaces(field, value, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**{**SMALL.to_dict(), field: value})


def test_space_from_something_else():
    with pytest.raises(ValueError, match="exactly the keys"):
        SearchSpace.from_dict({"embed_dim": [256]})


# The front end


def test_elastic_twins_of_the_published_spaces():
    for fixed, elastic in ((SMALL, SearchSpace.small_elastic()), (BASE, SearchSpace.base_elastic())):
        whole, half = elastic.largest(), elastic.default()
        assert replace(elastic, conv_dim=None) == fixed
        assert replace(whole, conv_dim=None) == fixed.largest()
        assert replace(half, conv_dim=None) == fixed.default()
        assert whole.conv_dim == (512,) * 7
        assert all(small < 200 for small in elastic.smallest().conv_dim[:2])
    assert SearchSpace.small_elastic().count() == SMALL.count() * 4**4 * 3 * 2


def test_channels_multiply_the_count():
    subnets = {replace(subnet, conv_dim=channels) for subnet in every(TINY) for channels in product(*CONV.conv_dim)}
    assert len(subnets) == CONV.count() == len(CONV) == 160
    assert len({subnet.key for subnet in subnets}) == 160
    assert all(subnet in CONV and subnet not in TINY for subnet in subnets)
    rng = random.Random(0)
    assert {CONV.sample(rng) for _ in range(5000)} == subnets


def test_channels_are_drawn_last():
    for seed in range(20):
        drawn = CONV.sample(random.Random(seed))
        assert replace(drawn, conv_dim=None) == TINY.sample(random.Random(seed))


def test_what_was_written_before_the_knob_means_the_whole_front_end():
    assert TINY.to_dict().keys() == {"hidden_size", "num_attention_heads", "ffn_ratio", "num_hidden_layers"}
    assert TINY.largest().to_dict().keys() == {"hidden_size", "num_attention_heads", "intermediate_size"}
    assert TINY.largest().key == "b994e13f28c72e6c"
    assert Subnet.from_dict(TINY.largest().to_dict()).conv_dim is None
    assert SearchSpace.from_dict(TINY.to_dict()).conv_dim is None
    assert SearchSpace.from_dict(TINY.to_dict() | {"conv_dim": None}) == TINY


def test_one_list_of_channels_is_for_each_of_seven_layers():
    space = replace(TINY, conv_dim=[512, 128])
    assert space.conv_dim == ((128, 512),) * 7
    assert space.has_elastic_front_end
    assert not TINY.has_elastic_front_end


def test_channels_outside_the_space():
    inside = CONV.smallest()
    for channels in (None, (1, 3), (1, 3, 5), (1, 4, 4), (1, 3, 4, 4)):
        assert replace(inside, conv_dim=channels) not in CONV


def test_a_narrow_front_end_reads_well():
    assert str(replace(CONV.smallest(), conv_dim=(1, 3, 4))).endswith(", front end 1-3-4")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((), "conv_dim must be a sequence of numbers of channels, or one such sequence for each layer"),
        ("512", "conv_dim must be a sequence of numbers of channels"),
        (512, "conv_dim must be a sequence of numbers of channels"),
        (((64, 128), 512), r"lists choices for some layers and the single number 512 for layer 1; give \[512\]"),
        (((64, 64), (128,)), r"conv_dim of layer 0 lists a choice twice: \(64, 64\)"),
        ((64, 0), "conv_dim must be a non-empty sequence of positive integers"),
        (((64,), ()), "conv_dim of layer 1 must be a non-empty sequence of positive integers"),
    ],
)
def test_impossible_choices_of_channels(value, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, conv_dim=value)


# Cutting

FULL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "width_step": 4,
} | {
    "conv_dim": (8, 8),
    "elastic_front_end": False,
}


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet(128, (4,), (192,)), "hidden_size 128 exceeds the supernet's 64"),
        (Subnet(50, (4,), (100,)), "hidden_size 50 is not a multiple of 4, which the groups"),
        (Subnet(64, (4,) * 5, (192,) * 5), "num_hidden_layers 5 exceeds"),
        (Subnet(64, (4, 5), (192, 192)), "num_attention_heads 5 exceeds the supernet's 4"),
        (
            Subnet(48, (4,), (96,), (8,)),
            "conv_dim has 1 entries, the front end 2 convolutions; give one",
        ),
        (Subnet(48, (4,), (96,), (8, 9)), "conv_dim 9 of layer 1 exceeds the supernet's 8"),
        (
            Subnet(48, (4,), (96,), (8, 4)),
            r"conv_dim \[8, 4\] differs from .* \[8, 8\], which has no choice",
        ),
        (Subnet(48, (4,), (145,)), "needs FFN units up to 193, the supernet has 192; choose a ratio of at most 3"),
    ],
)
def test_reasons_why_a_subnet_does_not_fit(subnet, message):
    with pytest.raises(ValueError, match=message):
        check_cuttable(subnet, **FULL)


def test_what_fits_may_lie_outside_the_space():
    check_cuttable(Subnet(4, (3, 1), (7, 12)), **FULL)
    check_cuttable(Subnet(4, (3, 1), (7, 12), (8, 8)), **FULL)
    check_cuttable(Subnet(4, (3, 1), (7, 12), (1, 7)), **FULL | {"elastic_front_end": True})


def test_subnets_of_another_copy_of_the_code(tiny_supernet):
    """What `trust_remote_code` loads has classes of its own; subnets go between the copies, and as a dict."""
    source = Path(search_space.__file__)
    spec = importlib.util.spec_from_file_location("copied_search_space", source)
    copy = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copy  # where dataclasses look for their annotations
    try:
        spec.loader.exec_module(copy)
    finally:
        del sys.modules[spec.name]
    space, config = tiny_supernet.search_space, tiny_supernet.config
    ours = space.smallest()
    theirs = copy.Subnet.from_dict(ours.to_dict())
    assert type(theirs) is not Subnet
    for subnet in (theirs, ours.to_dict()):
        assert Subnet.of(subnet) == ours
        assert subnet in space
        assert config.check_subnet(subnet) is None
        assert choose_subnet(subnet, config) == ours
        assert count_parameters(config, subnet) == count_parameters(config, ours)
        assert tiny_supernet.extract_subnet(subnet).config.architecture == ours
        with tiny_supernet.subnet_activated(subnet):
            assert tiny_supernet.active_subnet == ours
            assert type(tiny_supernet.active_subnet) is Subnet
    assert copy.SearchSpace.of(space).smallest() == theirs
    assert SearchSpace.of(copy.SearchSpace.of(space)) == space
    with pytest.raises(ValueError, match="expected a Subnet or a dict of its fields"):
        Subnet.of(Subnet)

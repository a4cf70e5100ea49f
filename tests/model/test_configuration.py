from dataclasses import replace

import pytest
from transformers import AutoConfig

from lighthubert_hf import LightHubertConfig, SearchSpace, Subnet

from ..tiny import TINY_SPACE


def test_a_supernet_config_survives_saving(tiny_config, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    for loaded in (LightHubertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is LightHubertConfig
        assert loaded.to_dict() == tiny_config.to_dict() | {"_name_or_path": loaded._name_or_path}
        space = SearchSpace.from_dict(loaded.search_space)
        assert loaded.default_subnet == space.default().to_dict()


def test_space_and_subnet_may_be_objects_or_dicts(make_config):
    space = SearchSpace((32, 64), (2, 4), (2.0,), (3,))
    subnet = Subnet(32, (2, 2, 4), (64, 64, 64))
    objects = make_config(search_space=space, default_subnet=subnet)
    dicts = make_config(search_space=space.to_dict(), default_subnet=subnet.to_dict())
    assert objects.to_dict() == dicts.to_dict()
    assert objects.search_space == space.to_dict()
    assert objects.default_subnet == subnet.to_dict()


def test_defaults_that_do_not_bite():
    config = LightHubertConfig()
    assert config.ctc_zero_infinity
    assert config.ctc_loss_reduction == "mean"
    assert config.attention_dropout == config.layerdrop == 0.0
    assert config.feat_extract_norm == "layer"
    assert config.search_space is None
    assert config.architecture == Subnet(768, (12,) * 12, (3072,) * 12)


def test_published_spaces_fit_a_768_wide_model():
    for space in (SearchSpace.small(), SearchSpace.base()):
        assert LightHubertConfig(search_space=space).default_subnet == space.default().to_dict()


LAYERS = {0: {"num_attention_heads": 1, "intermediate_size": 40}, 2: {"attention_window": 6}}


def test_unequal_layers(make_config, tmp_path):
    made = make_config(search_space=None, per_layer_config=LAYERS)
    made.save_pretrained(tmp_path)
    for config in (made, AutoConfig.from_pretrained(tmp_path)):
        assert config.is_heterogeneous
        assert config.layer_shapes == ((1, 40, None), (4, 192, None), (4, 192, 6), (4, 192, None))
        assert config.architecture == Subnet(64, (1, 4, 4, 4), (40, 192, 192, 192))


def test_a_supernet_may_slide_in_some_layers(make_config):
    config = make_config(per_layer_config={1: {"attention_window": 8}})
    assert [shape.attention_window for shape in config.layer_shapes] == [None, 8, None, None]


CHANNELS = ((8, 16), *[(12, 16)] * 5, (10, 16))


def test_channels_are_named_where_they_are_chosen(make_config):
    fixed, elastic = make_config(), make_config(search_space=replace(TINY_SPACE, conv_dim=CHANNELS))
    assert elastic.has_elastic_front_end
    assert not fixed.has_elastic_front_end
    assert not make_config(search_space=None).has_elastic_front_end
    assert fixed.architecture.conv_dim is None
    assert elastic.architecture.conv_dim == (16,) * 7
    bare, named, narrow = (
        replace(TINY_SPACE.smallest(), conv_dim=channels) for channels in (None, (16,) * 7, (8,) * 7)
    )
    assert elastic.canonical(bare) == elastic.canonical(named) == named
    assert fixed.canonical(bare) == fixed.canonical(named) == bare
    assert elastic.canonical(narrow) == narrow
    assert elastic.conv_channels(narrow) == (8,) * 7
    assert elastic.conv_channels(bare) == (16,) * 7


def test_a_default_from_before_the_knob_is_whole(make_config):
    space = replace(TINY_SPACE, conv_dim=CHANNELS)
    assert make_config(search_space=space).default_subnet == space.default().to_dict()
    config = make_config(search_space=space, default_subnet=TINY_SPACE.default().to_dict())
    assert config.default_subnet == replace(TINY_SPACE.default(), conv_dim=(16,) * 7).to_dict()


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (36, 2), (28, 1), (16, 1), (12, 0)])
def test_heads_of_a_plain_hubert(make_config, width, heads):
    assert make_config(search_space=None, hidden_size=width).num_plain_heads == heads


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 66}, "hidden_size 66 must be a multiple of num_conv_pos_embedding_groups"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True is not supported"),
        ({"attention_window": 1}, "attention_window must be at least 2 frames or None for global attention, got 1"),
        ({"per_layer_config": {1: {"attention_window": 0}}}, "attention_window must be at least 2"),
        ({"search_space": None, "default_subnet": Subnet(32, (1,), (48,))}, "without a search_space"),
        ({"hidden_size": 48}, "the search space does not fit the model: hidden_size 64 exceeds"),
        ({"num_attention_heads": 2}, "the search space does not fit the model: num_attention_heads 4 exceeds"),
        ({"num_hidden_layers": 3}, "the search space does not fit the model: num_hidden_layers 4 exceeds"),
        ({"intermediate_size": 128}, "the search space does not fit the model: intermediate_size 96"),
        ({"default_subnet": Subnet(64, (9,), (64,))}, "num_attention_heads 9 exceeds"),
        ({"search_space": {"embed_dim": [1]}}, "exactly the keys"),
        ({"search_space": replace(TINY_SPACE, conv_dim=[8, 32])}, "does not fit .* conv_dim 32 of layer 0 exceeds"),
        ({"search_space": replace(TINY_SPACE, conv_dim=[[8], [16]])}, "does not fit .* conv_dim has 2 entries"),
        ({"search_space": None, "norm_per_width": True}, "norm_per_width=True needs a choice of widths"),
        ({"search_space": None, "head_per_width": True}, "head_per_width=True needs a choice of widths"),
        ({"conv_norm_per_width": True}, "conv_norm_per_width=True needs a choice of channels; add conv_dim"),
        ({"per_layer_config": LAYERS}, "per_layer_config and search_space exclude each other"),
    ],
)
def test_configs_that_cannot_work(make_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(**overrides)


def test_fields_are_checked(make_config):
    with pytest.raises(Exception, match="head_dim"):
        make_config(head_dim="wide")

import copy
import random
from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import HubertForCTC, HubertForSequenceClassification, HubertModel
from transformers.models.hubert.modeling_hubert import HubertPreTrainedModel

import lighthubert_hf
from lighthubert_hf import (
    LightHubertConfig,
    LightHubertForAudioFrameClassification,
    LightHubertForCTC,
    LightHubertForPreTraining,
    LightHubertForSequenceClassification,
    LightHubertForXVector,
    LightHubertModel,
    SearchSpace,
    Subnet,
)

from ..examples import examples
from ..precision import assert_as_exact, in_double

CLASSES = (
    LightHubertModel,
    LightHubertForPreTraining,
    LightHubertForCTC,
    LightHubertForSequenceClassification,
    LightHubertForXVector,
    LightHubertForAudioFrameClassification,
)
UNEQUAL = Subnet(48, (1, 4, 2), (96, 72, 144))
PLAIN = Subnet(64, (4, 4, 4, 4), (192, 192, 192, 192))
# A random subnet of the tiny space per example, with the shared models as they are.
every_subnet = settings(
    max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=CLASSES, ids=lambda cls: cls.__name__.removeprefix("LightHubert"))
def supernet(request, make_model):
    return make_model(request.param, use_weighted_layer_sum=True)


def outputs(model, *args, **kwargs) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = dict(model(*args, output_hidden_states=True, **kwargs))
    states = found.pop("hidden_states")
    return found | {f"hidden_states[{i}]": state for i, state in enumerate(states)}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), f"{key}: {(a[key] - b[key]).abs().max()}"


# Active slice = extracted model, to the bit: the same kernels run on the same numbers


@pytest.mark.numerical
@every_subnet
@given(seed=st.integers(0, 2**32))
def test_extracted_is_the_active_slice(supernet, waveforms, seed):
    supernet.set_active_subnet(supernet.search_space.sample(random.Random(seed)))
    static = supernet.extract_subnet()
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 3000:] = 0
    assert_equal(outputs(supernet, waveforms, mask), outputs(static, waveforms, mask))


def test_whole_position_groups(make_model, waveforms):
    """Of a width come out as fewer groups, in a plain HuBERT as well, and what is kept computes what it did."""
    supernet = make_model(LightHubertModel, whole_position_groups=True)
    position = supernet.encoder.pos_conv_embed
    states = torch.randn(2, 30, 64)
    with torch.no_grad():
        with supernet.subnet_activated(PLAIN):
            whole = position(states)
        for heads in (2, 3):
            subnet = Subnet(16 * heads, (heads, heads), (96, 96))
            static = supernet.extract_subnet(subnet)
            assert static.config.num_conv_pos_embedding_groups == heads
            with supernet.subnet_activated(subnet):
                assert_equal(outputs(supernet, waveforms), outputs(static, waveforms))
                torch.testing.assert_close(position(states[..., : 16 * heads]), whole[..., : 16 * heads])
            hubert = static.to_hubert()
            exact = outputs(in_double(hubert), waveforms.double())
            assert_as_exact(outputs(static, waveforms), outputs(hubert, waveforms), exact)
    with pytest.raises(ValueError, match=r"hidden_size 36 is not a multiple of 16.*whole_position_groups"):
        supernet.extract_subnet(Subnet(36, (2, 1), (48, 60)))


@pytest.fixture(scope="module")
def published():
    """768 wide, 12 layers: both published spaces are cut out of such weights. Only the front end is small."""
    torch.manual_seed(0)
    model = LightHubertForPreTraining(LightHubertConfig(search_space=SearchSpace.base(), conv_dim=[8] * 7)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


@pytest.mark.numerical
@pytest.mark.parametrize("space", [SearchSpace.small(), SearchSpace.base()], ids=["small", "base"])
def test_random_subnets_of_the_published_spaces(published, space, random_subnets):
    x = torch.randn(1, 4000)
    found = []
    for subnet in (space.default(), *random_subnets(space, 2)):
        published.set_active_subnet(subnet)
        active = outputs(published, x)
        assert_equal(active, outputs(published.extract_subnet(), x))
        found.append(active["predictions"])
    assert all((a - b).abs().max() > 1e-2 for a, b in combinations(found, 2))


PUBLISHED_SIZES = {
    "small": (SearchSpace.small(), (11.45, 26.88, 44.40)),
    "base": (SearchSpace.base(), (41.25, 66.90, 94.38)),
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_parameter_counts_of_the_published_spaces(name):
    """As the original counts: the mask embedding in full width, no weight_g."""
    space, expected = PUBLISHED_SIZES[name]
    with torch.device("meta"):
        supernet = LightHubertModel(LightHubertConfig(search_space=space))
        for subnet, millions in zip((space.smallest(), space.default(), space.largest()), expected, strict=True):
            static = LightHubertModel(lighthubert_hf.model.extraction.subnet_config(supernet.config, subnet))
            count = static.num_parameters() + 768 - subnet.hidden_size - 128
            assert round(count / 1e6, 2) == millions


# Different subnets differ


@every_subnet
@given(seed=st.integers(0, 2**32))
def test_different_subnets_never_agree(supernet, waveforms, seed):
    rng = random.Random(seed)
    subnets = {supernet.search_space.sample(rng) for _ in range(3)}
    results = []
    for subnet in subnets:
        with supernet.subnet_activated(subnet):
            results.append(next(iter(outputs(supernet, waveforms[:1]).values())))
    for a, b in combinations(results, 2):
        assert a.shape != b.shape or (a - b).abs().max() > 1e-4


def test_every_setting_of_every_layer_matters(tiny_supernet, waveforms):
    base = tiny_supernet.search_space.largest()
    seen = [outputs(tiny_supernet, waveforms[:1])["last_hidden_state"].mean()]
    for layer in range(base.num_hidden_layers):
        for heads, size in ((2, 192), (4, 128)):
            changed = base.to_dict()
            changed["num_attention_heads"][layer] = heads
            changed["intermediate_size"][layer] = size
            with tiny_supernet.subnet_activated(Subnet.from_dict(changed)):
                seen.append(outputs(tiny_supernet, waveforms[:1])["last_hidden_state"].mean())
    assert len({value.item() for value in seen}) == 1 + 2 * base.num_hidden_layers


# What extraction leaves alone, and what it makes


def test_the_supernet_is_left_untouched(supernet):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    config, active, random_state = supernet.config.to_dict(), supernet.active_subnet, torch.get_rng_state()
    static = supernet.extract_subnet(UNEQUAL)
    with torch.no_grad():
        for parameter in static.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    assert supernet.config.to_dict() == config
    assert supernet.active_subnet == active
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_extracted_model_is_static(supernet):
    static = supernet.extract_subnet(UNEQUAL)
    assert type(static) is type(supernet)
    assert static.search_space is None
    assert static.active_subnet == static.config.architecture == UNEQUAL
    assert not any("Elastic" in type(module).__name__ for module in static.modules())
    assert len(static.base_model.encoder.layers) == 3
    with pytest.raises(ValueError, match="this model is static"):
        static.set_active_subnet(UNEQUAL)
    with pytest.raises(ValueError, match="this model is static"):
        static.extract_subnet(UNEQUAL)


@pytest.mark.parametrize("subnet", [UNEQUAL, PLAIN], ids=["unequal", "uniform"])
def test_the_file_holds_the_parameters_and_nothing_else(supernet, subnet, waveforms, tmp_path):
    static = supernet.extract_subnet(subnet)
    static.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == static.state_dict().keys()
    names_and_shapes = 200 * len(stored)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert 0 < size - 4 * static.num_parameters() < names_and_shapes
    loaded = type(static).from_pretrained(tmp_path)
    assert_equal(outputs(loaded, waveforms), outputs(supernet.extract_subnet(subnet), waveforms))


def test_mode_dtype_and_attention_are_kept(tiny_supernet):
    tiny_supernet.set_attn_implementation("eager")
    static = tiny_supernet.to(torch.bfloat16).train().extract_subnet()
    assert static.training
    assert static.dtype == torch.bfloat16
    assert static.config._attn_implementation == "eager"


def test_a_window_stays_changeable_after_extraction(make_model, waveforms):
    supernet = make_model(LightHubertModel, attention_window=6)
    static = supernet.extract_subnet(UNEQUAL)
    assert [shape.attention_window for shape in static.config.layer_shapes] == [6, 6, 6]
    windowed = outputs(static, waveforms)["last_hidden_state"]
    static.config.attention_window = None
    assert (windowed - outputs(static, waveforms)["last_hidden_state"]).abs().max() > 1e-3


@pytest.mark.numerical
def test_windows_follow_their_layers(make_model, waveforms):
    supernet = make_model(LightHubertModel, per_layer_config={1: {"attention_window": 4}, 3: {"attention_window": 2}})
    supernet.set_active_subnet(UNEQUAL)  # runs the layers 0, 1 and 2
    static = supernet.extract_subnet()
    assert [shape.attention_window for shape in static.config.layer_shapes] == [None, 4, None]
    assert_equal(outputs(supernet, waveforms), outputs(static, waveforms))


# Plain HuBERT

HUBERT_CLASSES = {
    LightHubertModel: HubertModel,
    LightHubertForCTC: HubertForCTC,
    LightHubertForSequenceClassification: HubertForSequenceClassification,
}


@pytest.mark.numerical
@pytest.mark.parametrize("ours", HUBERT_CLASSES)
@pytest.mark.parametrize(
    "subnet",
    [
        PLAIN,
        Subnet(48, (3, 3), (96, 96)),
        Subnet(64, (1, 4, 2), (96, 128, 192)),
        Subnet(32, (2, 1, 2, 1), (48,) * 4),
        Subnet(36, (2, 1), (48, 60)),  # two heads of 18 channels, of which 2 are zeros
        Subnet(28, (1, 1), (28, 56)),  # one head of 28
    ],
    ids=["equal", "narrow", "padded", "few heads", "padded heads", "one padded head"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"feat_extract_norm": "group"}, {"do_stable_layer_norm": True, "conv_bias": True, "mask_time_prob": 0.0}],
    ids=["layer norm", "group norm", "norm first"],
)
def test_plain_hubert(make_model, waveforms, tmp_path, ours, subnet, options):
    if ours is LightHubertForSequenceClassification:
        options = options | {"use_weighted_layer_sum": True}
    static = make_model(ours, **options).extract_subnet(subnet)
    hubert = static.to_hubert()
    assert type(hubert) is HUBERT_CLASSES[ours]
    plain = outputs(hubert, waveforms)
    assert_as_exact(outputs(static, waveforms), plain, outputs(in_double(hubert), waveforms.double()))
    hubert.save_pretrained(tmp_path)
    loaded, info = type(hubert).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_equal(outputs(loaded, waveforms), plain)


@pytest.mark.numerical
def test_plain_hubert_of_a_padded_batch(make_model, waveforms):
    """With the layer-norm extractor, and from one receptive field on, both mask the same frames."""
    static = make_model(LightHubertForCTC).extract_subnet(PLAIN)
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 3001:] = mask[2, 400:] = 0
    hubert, audio = static.to_hubert(), waveforms * mask
    found, plain = (outputs(model, audio, mask)["logits"] for model in (static, hubert))
    exact = outputs(in_double(hubert), audio.double(), mask)["logits"]
    valid = static._get_feature_vector_attention_mask(found.shape[1], mask)
    assert_as_exact(found[valid], plain[valid], exact[valid])


def test_plain_hubert_owns_its_weights(make_model):
    static = make_model(LightHubertModel).extract_subnet(PLAIN)
    before = copy.deepcopy(static.state_dict())
    hubert = static.to_hubert()
    assert isinstance(hubert, HubertPreTrainedModel)
    with torch.no_grad():
        for parameter in hubert.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in static.state_dict().items())


@pytest.mark.parametrize(
    ("cls", "subnet", "options", "message"),
    [
        (LightHubertModel, None, {}, "a supernet is no plain HuBERT; extract_subnet one first"),
        (LightHubertModel, Subnet(32, (1, 4, 2), (48,) * 3), {}, r"has 2 heads of 16; .*\(layer: heads\): {1: 4}"),
        (LightHubertModel, Subnet(44, (3,), (48,)), {}, r"has 2 heads of 22; .*\(layer: heads\): {0: 3}"),
        (LightHubertModel, Subnet(12, (1, 1), (12,) * 2), {}, "hidden_size 12 is less than head_dim 16"),
        (LightHubertModel, PLAIN, {"attention_window": 6}, "a sliding attention_window cannot"),
        (LightHubertForXVector, PLAIN, {}, "transformers has no HuBERT like LightHubertForXVector"),
        (LightHubertForPreTraining, PLAIN, {}, "convert its `.lighthubert`"),
        (LightHubertForCTC, PLAIN, {"use_weighted_layer_sum": True}, "HubertForCTC has no use_weighted_layer_sum"),
    ],
)
def test_what_no_plain_hubert_can_be(make_model, cls, subnet, options, message):
    model = make_model(cls, **options)
    with pytest.raises(ValueError, match=message):
        (model if subnet is None else model.extract_subnet(subnet)).to_hubert()

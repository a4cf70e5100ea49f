"""That transformers' machinery works on our models as on its own: attention, checkpointing, compiling, loading.

Most of these are checks of transformers' own common model tests, written anew; test_transformers_common.py runs the
originals where they are at hand.
"""

import copy
import inspect
import pickle
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCTC, HubertConfig, HubertModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lighthubert_hf import (
    LightHubertForCTC,
    LightHubertForPreTraining,
    LightHubertForSequenceClassification,
    LightHubertModel,
    Subnet,
)
from lighthubert_hf.auto import AUTO_MODELS

from .. import processes
from ..flash_attention import use_stand_ins
from ..heads import HEADS, make_labels, prediction
from ..precision import assert_as_exact, assert_gradients_as_exact, assert_rounded_alike, gradients, in_double

CLASSES = (LightHubertModel, *HEADS)
UNEQUAL = Subnet(48, (1, 4, 2), (96, 72, 144))
SLOW = {"marks": pytest.mark.slow}  # what takes a compiler long


@pytest.fixture(scope="module", params=CLASSES, ids=lambda cls: cls.__name__.removeprefix("LightHubert"))
def model(request, make_model):
    return make_model(request.param, num_labels=5)


@pytest.fixture
def static(make_model):
    return make_model(LightHubertModel).extract_subnet(UNEQUAL)


@pytest.fixture
def padded(waveforms):
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 3000:] = mask[2, 400:] = mask[3, 399:] = 0
    return waveforms * mask, mask


def last(model, *args) -> torch.Tensor:
    with torch.no_grad():
        return model(*args)[0]


# Attention


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("implementation", "window"),
    [
        *product(["sdpa", "flash_attention_2"], [None, 2, 5, 6, 40]),
        pytest.param("flex_attention", None, **SLOW),
        pytest.param("flex_attention", 6, **SLOW),
    ],
)
def test_attention_implementations_agree(monkeypatch, static, padded, implementation, window):
    """With and without padding, with and without a sliding window."""
    use_stand_ins(monkeypatch)
    static.config.attention_window = window
    static.config._attn_implementation = "eager"
    valid = static._get_feature_vector_attention_mask(14, padded[1])
    eager = [(last(twin, padded[0]), last(twin, *padded)[valid]) for twin in (static, in_double(static))]
    static.config._attn_implementation = implementation
    found = last(static, *padded)
    assert found.isfinite().all()
    assert_as_exact((last(static, padded[0]), found[valid]), *eager)


@pytest.mark.parametrize("window", [2, 5, 6])
@torch.no_grad()
def test_what_a_window_lets_through(static, waveforms, window):
    static.set_attn_implementation("eager")
    static.config.attention_window = window
    offset = torch.arange(14) - torch.arange(14)[:, None]
    for weights in static(waveforms, output_attentions=True).attentions:
        assert torch.equal(weights > 0, (offset.abs() <= window // 2).expand_as(weights))


@pytest.mark.numerical
@torch.no_grad()
def test_a_window_per_layer(make_model, waveforms):
    windows = (None, 2, 6, 2)
    layers = {i: {"attention_window": window} for i, window in enumerate(windows)}
    model = make_model(LightHubertModel, search_space=None, per_layer_config=layers)
    by_sdpa = last(model, waveforms)
    model.set_attn_implementation("eager")
    out = model(waveforms, output_attentions=True)
    assert_as_exact(by_sdpa, out.last_hidden_state, last(in_double(model), waveforms))
    for weights, window in zip(out.attentions, windows, strict=True):
        reach = 14 if window is None else window // 2
        assert (weights[0, 0, 0] > 0).sum() == min(14, reach + 1)


@torch.no_grad()
def test_attention_weights(make_model, waveforms):
    model = make_model(LightHubertModel)
    model.set_attn_implementation("eager")
    model.set_active_subnet(UNEQUAL)
    attentions = model(waveforms, output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == [(4, heads, 14, 14) for heads in (1, 4, 2)]
    for weights in attentions:
        assert_rounded_alike(weights.sum(-1), torch.ones(weights.shape[:-1]), 2 * 14)
    assert model(waveforms).attentions is None


def test_changing_the_attention(model):
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == model.base_model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    model.set_attn_implementation("sdpa")


# Gradient checkpointing


NO_CHANCE = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)


@pytest.mark.numerical
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen front end"])
@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__.removeprefix("LightHubert"))
def test_gradient_checkpointing_changes_no_gradient(make_model, cls, padded, reentrant, frozen):
    """The layers are computed again by the same kernels, to the bit, dropout included.

    A front end in training is computed by its modules then, and the first pass of the reentrant form, which records
    nothing, by fast paths: other kernels, which have to be as exact.
    """
    to_the_bit = frozen and not reentrant
    model = make_model(cls, num_labels=5, **({} if to_the_bit else NO_CHANCE)).train()
    if frozen:
        model.freeze_feature_encoder()

    def backward(model):
        model.zero_grad()
        torch.manual_seed(0)
        np.random.seed(0)
        model(*padded, **make_labels(cls)).loss.backward()
        return gradients(model)

    plain = backward(model)
    exact = None if to_the_bit else backward(in_double(model))
    options = {} if reentrant is None else {"activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model.activation_checkpointing_enable(**options)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(layers) >= 5
    assert all(layer.gradient_checkpointing for layer in layers)
    checkpointed = backward(model)
    if to_the_bit:
        assert checkpointed.keys() == plain.keys()
        assert all(torch.equal(gradient, plain[name]) for name, gradient in checkpointed.items())
    else:
        assert_gradients_as_exact(checkpointed, plain, exact)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, padded, dtype):
    half = copy.deepcopy(model).to(dtype)
    out = last(half, *padded)
    assert out.dtype == dtype
    assert out.isfinite().all()
    if not isinstance(half, LightHubertModel):
        half.train()(*padded, **make_labels(type(half))).loss.backward()
        assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_a_hubert(make_model, waveforms, dtype):
    ours = make_model(LightHubertModel).extract_subnet(Subnet(64, (4,) * 4, (192,) * 4))
    theirs = ours.to_hubert()
    exact = last(in_double(theirs), waveforms.double())
    halves = [last(model.to(dtype), waveforms.to(dtype)) for model in (ours, theirs)]
    assert_as_exact(*halves, exact, floor=0)


def test_autocast(make_model, waveforms):
    model = make_model(LightHubertForCTC).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(waveforms, **make_labels(LightHubertForCTC)).loss
    loss.backward()
    assert loss.isfinite()
    assert model.lm_head.weight.grad.isfinite().all()


# Compiling


def assert_same_where_valid(model, found, audio, attention_mask=None):
    """Frames of padding mean nothing, and the paths differ in what they leave there."""
    results = [found, *(last(twin, audio, attention_mask) for twin in (model, in_double(model)))]
    if found.ndim == 3 and attention_mask is not None:
        valid = model._get_feature_vector_attention_mask(found.shape[1], attention_mask)
        results = [result[valid] for result in results]
    assert_as_exact(*results)


def compiled(model, *args, **kwargs):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager", **kwargs)(*args)[0]


@pytest.mark.parametrize(
    "cls", [LightHubertForCTC, *(pytest.param(c, **SLOW) for c in CLASSES if c != LightHubertForCTC)]
)
@torch.no_grad()
def test_static_models_compile_without_graph_breaks(make_model, padded, cls):
    static = make_model(cls, use_weighted_layer_sum=cls is not LightHubertForPreTraining).extract_subnet(UNEQUAL)
    assert_same_where_valid(static, compiled(static, padded[0]), padded[0])
    assert_same_where_valid(static, compiled(static, *padded), *padded)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"attention_window": 6}, {"feat_extract_norm": "group"}], ids=["window", "group"])
@torch.no_grad()
def test_other_static_models_compile_too(make_model, padded, options):
    static = make_model(LightHubertModel, **options).extract_subnet(UNEQUAL)
    assert_same_where_valid(static, compiled(static, *padded), *padded)


@torch.no_grad()
@pytest.mark.slow
def test_one_graph_for_all_lengths(static, padded):
    torch.compiler.reset()
    graph = torch.compile(static, fullgraph=True, backend="aot_eager", dynamic=True)
    graph(*padded)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (4400, 4000):
            args = tuple(tensor[:3, :length].contiguous() for tensor in padded)
            assert_same_where_valid(static, graph(*args)[0], *args)


@pytest.mark.slow
def test_training_steps_compile(make_model, padded):
    static = make_model(LightHubertForSequenceClassification, mask_time_prob=0.0).extract_subnet(UNEQUAL).train()
    torch.compiler.reset()
    graph = torch.compile(static, fullgraph=True, backend="aot_eager")
    graph(*padded, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert static.projector.weight.grad.isfinite().all()


# Copies


def test_deepcopy_and_pickle(model, waveforms):
    for make in (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))):
        model.set_active_subnet(UNEQUAL)
        copied = make(model)
        assert copied.active_subnet == UNEQUAL
        assert torch.equal(last(copied, waveforms), last(model, waveforms))
        copied.set_active_subnet(copied.search_space.smallest())
        assert model.active_subnet == UNEQUAL


# Saving and loading


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("subnet", [None, UNEQUAL], ids=["supernet", "subnet"])
def test_saving_and_loading(model, waveforms, tmp_path, sharded, subnet):
    saved = model if subnet is None else model.extract_subnet(subnet)
    saved.save_pretrained(tmp_path, max_shard_size="100KB" if sharded else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not loaded.training
    assert loaded.active_subnet == (model.search_space.default() if subnet is None else subnet)
    with saved.subnet_activated(loaded.active_subnet) if subnet is None else torch.no_grad():
        assert torch.equal(last(loaded, waveforms), last(saved, waveforms))
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    state = type(model).from_pretrained(again).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"dtype": torch.bfloat16},
        {"dtype": "float16"},
        {"dtype": "auto"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_loading_options(static, waveforms, tmp_path, options):
    static.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, **options)
    dtype = {"float16": torch.float16, torch.bfloat16: torch.bfloat16}.get(options.get("dtype"), torch.float32)
    assert loaded.dtype == dtype
    assert loaded.device.type == "cpu"
    assert loaded.config._attn_implementation == options.get("attn_implementation", "sdpa")
    static.set_attn_implementation(loaded.config._attn_implementation)
    assert torch.equal(last(loaded, waveforms), last(static.to(dtype), waveforms))


def test_a_window_can_be_chosen_when_loading(static, waveforms, tmp_path):
    static.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attention_window=4)
    static.config.attention_window = 4
    assert torch.equal(last(loaded, waveforms), last(static, waveforms))


@pytest.mark.parametrize("cls", HEADS)
def test_a_head_on_a_bare_checkpoint_and_back(make_model, waveforms, tmp_path, cls):
    bare = make_model(LightHubertModel)
    bare.save_pretrained(tmp_path / "bare")
    model, info = cls.from_pretrained(tmp_path / "bare", output_loading_info=True)
    own = {name for name, _ in model.named_parameters() if not name.startswith("lighthubert.")}
    assert info["missing_keys"] == own
    assert not info["unexpected_keys"]
    assert torch.equal(last(model.lighthubert, waveforms), last(bare, waveforms))
    model.save_pretrained(tmp_path / "head")
    loaded, info = LightHubertModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"]
    assert set(info["unexpected_keys"]) == own
    assert torch.equal(last(loaded, waveforms), last(bare, waveforms))


def test_one_head_on_the_checkpoint_of_another(make_model, waveforms, tmp_path):
    pretrained = make_model(LightHubertForPreTraining)
    pretrained.save_pretrained(tmp_path)
    model = AutoModelForCTC.from_pretrained(tmp_path, vocab_size=31)
    assert model.lm_head.out_features == 31
    assert torch.equal(last(model.lighthubert, waveforms), last(pretrained.lighthubert, waveforms))


def test_another_number_of_labels(make_model, waveforms, tmp_path):
    make_model(LightHubertForSequenceClassification, num_labels=5).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        LightHubertForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    model = LightHubertForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True, num_labels=3)
    assert last(model, waveforms).shape == (4, 3)


def test_both_spellings_of_weight_norm(model, tmp_path):
    """Older checkpoints say weight_g and weight_v; every key is found, none is new."""
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    spelling = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(path)
    for new, old in spelling.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    assert sum("weight_g" in name or "weight_v" in name for name in state) == 2
    save_file(state, path, metadata={"format": "pt"})
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.numerical
def test_weights_of_a_hubert(tmp_path, waveforms):
    """State-dict names are HubertModel's, so its weights are ours."""
    torch.manual_seed(0)
    hubert = HubertModel(
        HubertConfig(
            hidden_size=64, num_attention_heads=4, intermediate_size=96, num_hidden_layers=2, conv_dim=[16] * 7
        )
    ).eval()
    hubert.save_pretrained(tmp_path)
    ours, info = LightHubertModel.from_pretrained(tmp_path, head_dim=16, output_loading_info=True)
    assert not any(info.values())
    assert_as_exact(last(ours, waveforms), last(hubert, waveforms), last(in_double(hubert), waveforms.double()))


LOAD_WITHOUT_PACKAGE = """
import sys
sys.modules["lighthubert_hf"] = None
import torch, transformers
for auto in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{auto}"
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    assert not type(model).__module__.startswith("lighthubert_hf")
    torch.save(model(torch.ones(1, 800))[0], f"{folder}/out.pt")
"""


def test_saved_folders_carry_their_code(make_model, tmp_path):
    """They load where the package is not installed (here: is hidden)."""
    models = {auto.__name__: make_model(cls).extract_subnet(UNEQUAL) for auto, cls in AUTO_MODELS.items()}
    for auto, model in models.items():
        model.save_pretrained(tmp_path / auto)
    processes.run("-c", LOAD_WITHOUT_PACKAGE, tmp_path, *models, check=True)
    for auto, model in models.items():
        found = torch.load(tmp_path / auto / "out.pt", weights_only=True)
        assert_same_where_valid(model, found, torch.ones(1, 800))


# Construction


def test_meta_device(model, waveforms):
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
    assert all(parameter.device.type == "meta" for parameter in empty.parameters())
    assert not list(model.buffers())
    empty.to_empty(device="cpu").init_weights()
    assert last(empty.eval(), waveforms).isfinite().all()
    empty.load_state_dict(model.state_dict())
    model.set_active_subnet(empty.active_subnet)
    assert torch.equal(last(empty, waveforms), last(model, waveforms))


def test_every_weight_is_initialised_by_init_weights(model):
    """A checkpoint without any weights: what from_pretrained then makes is what the constructor makes."""
    torch.manual_seed(0)
    constructed = type(model)(copy.deepcopy(model.config))
    empty = type(model).from_pretrained(None, config=copy.deepcopy(model.config), state_dict={})
    for name, weight in constructed.state_dict().items():
        other = empty.state_dict()[name]
        assert other.isfinite().all(), name
        spread, expected = other.std(correction=0), weight.std(correction=0)
        assert torch.isclose(spread, expected, rtol=0.5, atol=1e-4), name


def test_main_input_comes_first(model):
    assert next(iter(inspect.signature(model.forward).parameters)) == model.main_input_name == "input_values"


def test_weights_are_contiguous_and_not_shared(model):
    tensors = list(model.state_dict().values())
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


def test_hidden_states_and_attentions_keep_gradients(static, waveforms):
    static.set_attn_implementation("eager")
    out = static(waveforms, output_hidden_states=True, output_attentions=True)
    kept = (out.hidden_states[0], out.attentions[0])
    for tensor in kept:
        tensor.retain_grad()
    out.last_hidden_state.flatten()[0].backward()
    assert all(tensor.grad is not None for tensor in kept)


@pytest.mark.numerical
def test_outputs_do_not_depend_on_the_batch(model, waveforms):
    with torch.no_grad():
        together = prediction_or_state(model, waveforms)[:1]
        assert_as_exact(together, *(prediction_or_state(twin, waveforms[:1]) for twin in (model, in_double(model))))


def prediction_or_state(model, x):
    out = model(x)
    return out.last_hidden_state if isinstance(model, LightHubertModel) else prediction(out)

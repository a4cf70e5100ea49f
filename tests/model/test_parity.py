"""Agreement with the original implementation, on vectors it computed (see golden.py)."""

import pytest
import torch
from safetensors.torch import load_file

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet
from lighthubert_hf.conversion.original.names import from_original

from ..golden import GOLDEN_VECTORS, assert_as_the_original, golden_description, original_checkpoint
from ..precision import in_double

pytestmark = pytest.mark.numerical
DESCRIPTION = golden_description()
SUBNETS = {name: Subnet.from_dict(entry["subnet"]) for name, entry in DESCRIPTION["subnets"].items()}
GLOBAL = [name for name, entry in DESCRIPTION["subnets"].items() if entry["attention_window"] is None]


@pytest.fixture(scope="module")
def vectors():
    return load_file(GOLDEN_VECTORS)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def supernet(request):
    cfg = DESCRIPTION["cfg"]
    config = LightHubertConfig(
        search_space=SearchSpace.from_dict(DESCRIPTION["search_space"]),
        hidden_size=cfg["encoder_embed_dim"],
        num_attention_heads=cfg["encoder_attention_heads"],
        intermediate_size=cfg["encoder_ffn_embed_dim"],
        conv_dim=[32] * 7,
        target_size=cfg["teacher_embed_dim"],
    )
    model = LightHubertForPreTraining(config).eval()
    model.set_attn_implementation(request.param)
    names = {name: weight for name, weight in original_checkpoint(cfg)["model"].items() if from_original(name)}
    state = {from_original(name): weight for name, weight in names.items()}
    head = "prediction_head."
    model.load_state_dict({n if n.startswith(head) else f"lighthubert.{n}": w for n, w in state.items()}, strict=True)
    return model


@pytest.fixture(scope="module")
def exact(supernet):
    return in_double(supernet)


@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("static", [False, True], ids=["slice", "extracted"])
@torch.no_grad()
def test_subnets(supernet, exact, vectors, name, static):
    supernet.set_active_subnet(SUBNETS[name])
    exact.set_active_subnet(SUBNETS[name])
    model = supernet.extract_subnet() if static else supernet
    out, precise = (twin(vectors["wav0"][None], output_hidden_states=True) for twin in (model, exact))
    assert len(out.hidden_states) == SUBNETS[name].num_hidden_layers + 1
    for vector, read in {
        "hidden1": lambda out: out.hidden_states[1],
        "hidden6": lambda out: out.hidden_states[6],
        "last": lambda out: out.hidden_states[-1],
        "prediction": lambda out: out.predictions,
    }.items():
        assert_as_the_original(read(out)[0], vectors[f"{name}.wav0.{vector}"], read(precise)[0])
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])


@torch.no_grad()
def test_masked_frames(supernet, exact, vectors):
    mask = vectors["random0.mask_indices"].bool()[None]
    outputs = []
    for model in (supernet, exact):
        model.set_active_subnet(SUBNETS["random0"])
        outputs.append(model(vectors["wav0"][None], mask_time_indices=mask).last_hidden_state[0])
    assert_as_the_original(outputs[0], vectors["random0.masked.last"], outputs[1])


@torch.no_grad()
def test_sliding_window(supernet, exact, vectors):
    subnet, window = SUBNETS["window16"], DESCRIPTION["subnets"]["window16"]["attention_window"]
    outputs = []
    for model in (supernet, exact):
        model.config.attention_window = window
        try:
            with model.subnet_activated(subnet):
                outputs.append(model(vectors["wav3"][None]).last_hidden_state[0])
        finally:
            model.config.attention_window = None
    assert_as_the_original(outputs[0], vectors["window16.wav3.last"], outputs[1])


@torch.no_grad()
def test_padded_batch(supernet, exact, vectors):
    """With the original's idea of which frames are valid; ours follows transformers and drops up to two more."""
    wavs = [vectors[f"wav{i}"] for i in range(3)]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    valid = ~vectors["default.padded_mask"].bool()
    outputs = []
    for twin in (supernet, exact):
        twin.set_active_subnet(SUBNETS["default"])
        model = twin.lighthubert
        hidden_states = model.feature_projection(model.extract_features(batch))
        outputs.append(model.encoder(hidden_states, valid).last_hidden_state[valid])
    assert_as_the_original(outputs[0], vectors["default.padded"][valid], outputs[1])


@pytest.mark.parametrize("name", SUBNETS)
def test_parameter_counts(supernet, name):
    """The original counts the mask embedding in full width, and neither weight_g nor the prediction head."""
    subnet, config = SUBNETS[name], supernet.config
    model = supernet.lighthubert.extract_subnet(subnet)
    count = sum(parameter.numel() for parameter in model.parameters())
    count += config.hidden_size - subnet.hidden_size - config.num_conv_pos_embeddings
    assert count == DESCRIPTION["subnets"][name]["num_parameters"]

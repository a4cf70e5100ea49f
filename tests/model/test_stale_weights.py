"""However weights are written, the next forward runs on what was written: as a new copy of the model, to the bit."""

import copy
import multiprocessing

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from lighthubert_hf import LightHubertForSequenceClassification, LightHubertModel

from ..examples import examples

CONV, POSITION = "conv_layers.3.conv.weight", "parametrizations.weight.original1"
LINEARS = ("q_proj.weight", "out_proj.weight", "intermediate_dense.weight", "output_dense.weight")
KINDS = (CONV, POSITION, *LINEARS)


@pytest.fixture(params=["group", "layer"])
def norm(request):
    return request.param


@pytest.fixture
def model(make_model, norm):
    return make_model(LightHubertModel, search_space=None, feat_extract_norm=norm, apply_spec_augment=False)


@torch.no_grad()
def run(model: nn.Module, waveforms: torch.Tensor) -> torch.Tensor:
    """With what it keeps from before; has to be what a copy gives, which keeps nothing."""
    found = model(waveforms).last_hidden_state
    fresh = copy.deepcopy(model)(waveforms).last_hidden_state
    assert torch.equal(found, fresh)
    return found


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.endswith(KINDS)]


def zero_all_but_the_first_column(model):
    for name, weight in model.named_parameters():
        if name.endswith((CONV, *LINEARS)):
            weight.data[:, 1:] = 0


def ablate_heads(model):
    for layer in model.encoder.layers:
        layer.attention.out_proj.weight.data[:, 16:] = 0


def exchange_channels(model):
    """The sum of all weights stays the same."""
    for weight in matrices(model):
        weight.data[[0, 1]] = weight.data[[1, 0]]


def write_through_numpy(model):
    for weight in matrices(model):
        weight.detach().numpy()[-1, -1] += 0.5


def write_through_dlpack(model):
    for weight in matrices(model):
        torch.from_dlpack(weight.detach())[-1, -1] += 0.5


def write_untyped(model):
    for weight in matrices(model):
        storage = torch.empty(0, dtype=torch.uint8).set_(weight.untyped_storage())
        storage[-1] ^= 0x80  # the sign of the last element


def negate(model):
    for weight in matrices(model):
        weight.data.neg_()


WRITES = [
    zero_all_but_the_first_column, ablate_heads, exchange_channels, write_through_numpy, write_through_dlpack,
    write_untyped, negate,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_writes_that_torch_does_not_count(model, waveforms, write):
    before = run(model, waveforms)
    write(model)
    assert (run(model, waveforms) - before).abs().max() > 1e-3


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.03])
@pytest.mark.parametrize("name", KINDS)
def test_masks_with_few_zeros(make_model, waveforms, name, share):
    model = make_model(LightHubertModel, search_space=None, feat_extract_norm="layer")
    before, generator = run(model, waveforms), torch.Generator().manual_seed(0)
    for parameter in (p for n, p in model.named_parameters() if n.endswith(name)):
        mask = torch.rand(parameter.shape, generator=generator) >= share
        mask.view(-1)[torch.randint(mask.numel(), (1,), generator=generator)] = False  # one at least
        parameter.data.mul_(mask)
    assert not torch.equal(run(model, waveforms), before)


@pytest.fixture(scope="module")
def warm(make_model):
    return make_model(LightHubertModel, search_space=None, feat_extract_norm="layer")


@settings(deadline=None, max_examples=examples(25))
@given(st.data())
def test_a_write_to_any_one_weight(warm, data):
    waveforms = torch.randn(1, 15_000, generator=torch.Generator().manual_seed(0))  # 46 frames: every tap meets some
    before = run(warm, waveforms)
    index = data.draw(st.integers(0, len(matrices(warm)) - 1))
    weight = matrices(warm)[index]
    weight.data.view(-1)[data.draw(st.integers(0, weight.numel() - 1))] += 1
    assert not torch.equal(run(warm, waveforms), before)


def test_parameters_that_are_views_of_one_vector(model, waveforms):
    flat, start = parameters_to_vector(model.parameters()).detach(), 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    before = run(model, waveforms)
    flat *= 1.1
    assert not torch.equal(run(model, waveforms), before)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {"fused": True, "momentum": 0.9}), (torch.optim.Adam, {"fused": True}),
        (torch.optim.AdamW, {"fused": True}), (torch.optim.Adagrad, {"fused": True}),
        (torch.optim.AdamW, {"foreach": True}), (torch.optim.SGD, {"foreach": False}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("freeze_head", [False, True])
def test_every_step_of_an_optimiser_is_evaluated(model, waveforms, cls, options, freeze_head):
    if freeze_head:  # so that some rows and columns never change

        def freeze(grad):
            grad = grad.clone()
            grad[:16], grad[:, :1] = 0, 0
            return grad

        for weight in matrices(model):
            weight.register_hook(freeze)
    optimizer = cls(model.parameters(), lr=1e-3, **options)
    before = run(model, waveforms)
    for _ in range(3):
        model.train()
        model(waveforms).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = run(model.eval(), waveforms)
        assert not torch.equal(after, before)
        before = after


def adapters() -> dict[str, peft.PeftConfig]:
    linears = ["q_proj", "output_dense"]
    return {
        "SHiRA": peft.ShiraConfig(r=2, target_modules=linears, init_weights=False),
        "WaveFT": peft.WaveFTConfig(n_frequency=60, target_modules=linears, init_weights=False),
        "LoRA": peft.LoraConfig(r=2, target_modules=linears, init_lora_weights=False),
        "LoRA of convolutions": peft.LoraConfig(r=2, target_modules=["conv"], exclude_modules=r".*pos_conv.*"),
    }


@pytest.mark.parametrize("name", adapters())
def test_merging_an_adapter(model, waveforms, name):
    before = run(model, waveforms)
    adapted = peft.get_peft_model(model, adapters()[name])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    with torch.no_grad():
        wanted = adapted(waveforms).last_hidden_state
    merged = adapted.merge_and_unload()
    found = run(merged, waveforms)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # a tenth of the least effect, a hundred roundings
    assert (found - before).abs().max() > 1e-3
    merged = peft.get_peft_model(merged, adapters()["LoRA"]).merge_and_unload()  # without a forward in between
    assert not torch.equal(run(merged, waveforms), found)


def test_a_model_made_in_inference_mode(make_model, waveforms, norm):
    with torch.inference_mode():
        model = make_model(LightHubertModel, search_space=None, feat_extract_norm=norm)
        before = model(waveforms).last_hidden_state
        other = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
        model.load_state_dict(other)
        after = run(model, waveforms)
        assert not torch.equal(after, before)
        matrices(model)[-1][0, 0] += 1
        assert not torch.equal(run(model, waveforms), after)


def test_moving_and_casting(model, waveforms):
    before = run(model, waveforms)
    for change in (model.double, model.float, model.bfloat16, model.float):
        model.train()
        change()
        run(model.eval(), waveforms)
    assert not torch.equal(run(model, waveforms), before)  # rounded in between


def test_loading(model, waveforms):
    before = run(model, waveforms)
    for assign in (False, True):
        model.load_state_dict({name: 1.1 * tensor for name, tensor in model.state_dict().items()}, assign=assign)
        after = run(model, waveforms)
        assert not torch.equal(after, before)
        before = after


def _child(model, waveforms, ready, written, results):
    torch.set_num_threads(1)
    for _ in range(2):
        with torch.no_grad():
            results.put(model(waveforms).last_hidden_state.numpy())
        ready.set()
        written.wait(30)


def test_a_forked_child_sees_what_the_parent_writes_to_shared_memory(model, waveforms):
    context = multiprocessing.get_context("fork")
    ready, written, results = context.Event(), context.Event(), context.Queue()
    model.share_memory()
    before = run(model, waveforms)
    child = context.Process(target=_child, args=(model, waveforms, ready, written, results))
    child.start()
    assert ready.wait(30)
    assert torch.equal(torch.from_numpy(results.get(timeout=30)), before)
    for weight in matrices(model):
        weight.data[-1] *= 2
    written.set()
    found = torch.from_numpy(results.get(timeout=30))
    child.join(30)
    assert child.exitcode == 0
    assert torch.equal(found, run(model, waveforms))
    assert not torch.equal(found, before)


def test_a_supernet_follows_its_weights_in_every_subnet(make_model, waveforms):
    model = make_model(LightHubertForSequenceClassification, num_labels=3)
    for subnet in (model.search_space.smallest(), model.search_space.largest(), model.search_space.smallest()):
        model.set_active_subnet(subnet)
        with torch.no_grad():
            before = model(waveforms).logits
            for parameter in model.parameters():
                parameter.data *= 0.9
            after = model(waveforms).logits
            assert torch.equal(after, copy.deepcopy(model)(waveforms).logits)
        assert not torch.equal(after, before)

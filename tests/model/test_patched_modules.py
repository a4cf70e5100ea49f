"""Whatever a user puts in a module's place, or hangs onto it, is called: fast paths step aside."""

import functools
from contextlib import contextmanager

import accelerate.hooks
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2FN

from lighthubert_hf import LightHubertModel
from lighthubert_hf.model import fast_paths
from lighthubert_hf.model.fast_linear import activate

# One of each kind of module that a fast path computes without calling it.
SKIPPED = {
    "group": ("feature_extractor.conv_layers.0.layer_norm",),
    "layer": (
        "feature_extractor.conv_layers.1",
        "feature_extractor.conv_layers.0.conv",
        "feature_extractor.conv_layers.3.layer_norm",
        "feature_extractor.conv_layers.6.activation",
        "encoder.pos_conv_embed.conv.parametrizations.weight",
        "encoder.layers.0.attention.q_proj",
        "encoder.layers.1.attention.out_proj",
        "encoder.layers.2.feed_forward.intermediate_dense",
        "encoder.layers.2.feed_forward.intermediate_act_fn",
        "encoder.layers.3.feed_forward.output_dense",
    ),
}
PLACES = [(norm, name) for norm, names in SKIPPED.items() for name in names]


@pytest.fixture(scope="module")
def models(make_model):
    """`models(norm)`: a static model whose every fast path has run."""

    def make(norm: str) -> LightHubertModel:
        return make_model(LightHubertModel, search_space=None, feat_extract_norm=norm)

    return make


@contextmanager
def plainly():
    """Every fast form off."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("elastic", "fast_paths"):
            patch.setattr(f"lighthubert_hf.model.{name}.is_recorded", lambda: True)
        yield


def changed(value: torch.Tensor) -> torch.Tensor:
    """No scale or shift, which a norm would undo."""
    return value.abs().sqrt()


def own_forward(module: nn.Module):
    run = module.forward
    module.forward = lambda *args, **kwargs: changed(run(*args, **kwargs))


class Changing(accelerate.hooks.ModelHook):
    def post_forward(self, module, output):
        return changed(output)


def accelerate_hook(module: nn.Module):
    accelerate.hooks.add_hook_to_module(module, Changing())


def hook(module: nn.Module):
    module.register_forward_hook(lambda _module, _inputs, output: changed(output))


def subclass(module: nn.Module):
    cls = type(module)
    module.__class__ = type("Own", (cls,), {"forward": lambda self, *args: changed(cls.forward(self, *args))})


def global_hook(module: nn.Module):
    def change(called, _inputs, output):
        return changed(output) if called is module else None

    return torch_module.register_module_forward_hook(change)


def global_pre_hook(module: nn.Module):
    def change(called, inputs):
        return (changed(inputs[0]), *inputs[1:]) if called is module and inputs else None

    return torch_module.register_module_forward_pre_hook(change)


class _Undo:
    def __init__(self, patch):
        self.remove = patch.undo


def class_patch(module: nn.Module):
    """As some profilers and quantisers do, to all instances at once, and before a model has run."""
    cls, patch = type(module), pytest.MonkeyPatch()
    run = cls.forward

    def forward(self, *args, **kwargs):
        out = run(self, *args, **kwargs)
        return changed(out) if self is module else out

    patch.setattr(cls, "forward", forward)
    fast_paths._own_forwards.clear()
    return _Undo(patch)


def class_wrapper(module: nn.Module):
    cls, patch = type(module), pytest.MonkeyPatch()
    run = cls.forward

    @functools.wraps(run)
    def forward(self, *args, **kwargs):
        out = run(self, *args, **kwargs)
        return changed(out) if self is module else out

    patch.setattr(cls, "forward", forward)
    return _Undo(patch)


def every_call(module: nn.Module):
    patch, call = pytest.MonkeyPatch(), nn.Module.__call__

    def patched(self, *args, **kwargs):
        out = call(self, *args, **kwargs)
        return changed(out) if self is module else out

    patch.setattr(nn.Module, "__call__", patched)
    return _Undo(patch)


class Changed(nn.Module):
    def forward(self, value):
        return changed(value)


def parametrization(module: nn.Module):
    name = next((name for name, _ in module.named_parameters(recurse=False)), None)
    if name is None or "." in name:
        pytest.skip("has no parameters of its own")
    parametrize.register_parametrization(module, name, Changed())


PATCHES = [own_forward, accelerate_hook, hook, subclass, global_hook, global_pre_hook, parametrization, class_patch,
           class_wrapper, every_call]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize(("norm", "place"), PLACES)
def test_a_patched_module_is_called(models, waveforms, norm, place, patch):
    model = models(norm)
    before = model(waveforms).last_hidden_state
    handle = patch(model.get_submodule(place))
    try:
        found = model(waveforms).last_hidden_state
        with plainly():
            wanted = model(waveforms).last_hidden_state
    finally:
        if handle is not None:
            handle.remove()
    takes_no_input = patch is global_pre_hook and place.endswith("parametrizations.weight")
    assert takes_no_input or (wanted - before).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # a tenth of the least effect, a hundred roundings


@torch.no_grad()
def test_a_function_mode_sees_the_functions_of_the_modules(models, waveforms):
    class Linears(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return changed(out) if func is nn.functional.linear else out

    model = models("layer")
    model(waveforms)
    with Linears():
        found = model(waveforms).last_hidden_state
        with plainly():
            torch.testing.assert_close(found, model(waveforms).last_hidden_state, rtol=0, atol=1e-4)
    with torch.device("cpu"):
        torch.testing.assert_close(model(waveforms).last_hidden_state, models("layer")(waveforms).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "layer_norm", "conv1d"])
def test_functions_of_torch_that_were_replaced_are_called(models, waveforms, monkeypatch, name):
    model = models("layer")
    before, run = model(waveforms).last_hidden_state, getattr(nn.functional, name)
    monkeypatch.setattr(nn.functional, name, lambda *args, **kwargs: changed(run(*args, **kwargs)))
    found = model(waveforms).last_hidden_state
    with plainly():
        wanted = model(waveforms).last_hidden_state
    assert (wanted - before).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_nothing_of_an_untouched_model_counts_as_watched(models):
    for norm in ("group", "layer"):
        assert [name for name, module in models(norm).named_modules() if name and fast_paths.is_watched(module)] == []


@torch.no_grad()
def test_an_output_that_somebody_kept_is_not_written_over():
    class Keeper(nn.Linear):
        def forward(self, hidden_states):
            self.kept = super().forward(hidden_states)
            return self.kept

    x, gelu = torch.randn(3, 6), ACT2FN["gelu"]
    linears = [Keeper(6, 8), nn.Linear(6, 8)]
    forward = linears[1].forward
    linears[1].forward = lambda x: setattr(linears[1], "kept", forward(x)) or linears[1].kept
    for linear in linears:
        activate(gelu, linear, x)
        assert torch.equal(linear.kept, nn.functional.linear(x, linear.weight, linear.bias))

"""Ordering by importance measured on audio: it keeps the function, and it keeps what matters."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.training.distillation.importance import measure_importance, order_student
from lighthubert_hf.training.distillation.recipe import OrderSection, StudentSection
from lighthubert_hf.training.distillation.student import build_student

from ...examples import examples
from .encoders import make_encoder
from .tiny import TINY_SPACE

ALL = OrderSection(parts=["heads", "ffn", "channels", "width"], probes=1)
ELASTIC = TINY_SPACE | {"conv_dim": [4, 8, 16]}


def audio(seed: int = 0, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 1600, generator=torch.Generator().manual_seed(seed))


def supernet(space=TINY_SPACE, seed: int = 0, **config) -> LightHubertForPreTraining:
    encoder = make_encoder("hubert")
    student = build_student(StudentSection(search_space=space, config=config), encoder, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # norms and biases that do something
        for parameter in student.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return student


@settings(max_examples=examples(8), deadline=None)
@given(
    seed=st.integers(0, 1000), space=st.sampled_from([TINY_SPACE, ELASTIC]), stable=st.booleans(), own=st.booleans()
)
def test_the_whole_network_computes_what_it_did(seed, space, stable, own):
    student = supernet(space, seed, do_stable_layer_norm=stable, norm_per_width=own, head_per_width=own)
    ordered = copy.deepcopy(student)
    order_student(ordered, audio(seed), ALL, all_weights=True, seed=seed)
    moved = {
        name for name, tensor in student.state_dict().items() if not torch.equal(tensor, ordered.state_dict()[name])
    }
    assert {"prediction_head.weight", "lighthubert.encoder.layers.2.attention.q_proj.weight"} <= moved
    assert any("feature_extractor" in name for name in moved) == (space is ELASTIC)
    whole, mask = student.config.architecture, torch.rand(2, 4) < 0.5
    predicted = []
    for model in (student.double(), ordered.double()):
        model.set_active_subnet(whole)
        predicted.append(model(audio(1).double(), mask_time_indices=mask).predictions)
    torch.testing.assert_close(predicted[1], predicted[0], rtol=1e-9, atol=1e-9)
    if own:  # it begins anew
        norm = ordered.lighthubert.encoder.layers[0].layer_norm
        assert torch.equal(norm.per_width["16"].weight, norm.weight[:16])


def test_of_a_first_stage_the_largest_subnet_computes_what_it_did():
    """Where it does not have all weights, too; its width cannot be ordered then."""
    space = TINY_SPACE | {"hidden_size": [16, 24], "ffn_ratio": [1.0, 1.5]}
    student = supernet(space)
    before = student.double()
    largest = before.search_space.largest()
    ordered = supernet(space)
    order_student(ordered, audio(), OrderSection(), all_weights=False)
    for model in (before, ordered.double()):
        model.set_active_subnet(largest)
    assert not torch.equal(
        *(m.lighthubert.encoder.layers[0].feed_forward.output_dense.weight for m in (before, ordered))
    )
    exact, permuted = (model(audio(1).double()).predictions for model in (before, ordered))
    torch.testing.assert_close(permuted, exact, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"24 wide and its weights 32.*leave width out"):
        order_student(supernet(space), audio(), ALL, all_weights=False)


def test_importance_is_the_change_that_is_seen():
    """The measure ranks units and heads as holding each at its mean does."""
    student = supernet()
    encoder, whole = student.lighthubert.encoder, student.config.architecture
    with torch.no_grad():  # a head of random weights says next to nothing
        encoder.layers[1].attention.v_proj.weight *= 30
        encoder.layers[1].attention.out_proj.weight[:, :16] *= 10
        encoder.layers[1].attention.out_proj.weight[:, 16:] *= 40
    found = measure_importance(student, whole, audio(), ["heads", "ffn"], probes=32)
    student.set_active_subnet(whole)

    def change(module, start, stop) -> float:
        def hold(_module, inputs):
            held = inputs[0].clone()
            held[..., start:stop] = held[..., start:stop].mean(1, keepdim=True)
            return (held,)

        total = 0.0
        for row in audio():
            with torch.no_grad():
                before = student(row[None]).predictions
                handle = module.register_forward_pre_hook(hold)
                total += (student(row[None]).predictions - before).square().sum().item()
                handle.remove()
        return total

    seen = torch.tensor([change(encoder.layers[1].feed_forward.output_dense, i, i + 1) for i in range(0, 64, 3)])
    ranks = torch.stack([found.units[1][::3].argsort().argsort(), seen.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.8
    dim = student.config.head_dim
    of_heads = torch.tensor([change(encoder.layers[1].attention.out_proj, i * dim, (i + 1) * dim) for i in range(2)])
    assert found.heads[1].argmax() == of_heads.argmax() == 1


def test_what_matters_comes_first():
    """Units and channels of the stream that nothing reads go last, and a narrow subnet loses less."""
    student = supernet()
    with torch.no_grad():
        for layer in student.lighthubert.encoder.layers:
            layer.feed_forward.output_dense.weight[:, :32] *= 1e-3
            layer.attention.out_proj.weight[:, :16] *= 1e-3
    ordered = copy.deepcopy(student)
    order_student(ordered, audio(), OrderSection(probes=2), all_weights=True)
    narrow = Subnet(32, (1,) * 4, (32,) * 4)
    changes = []
    for model in (student, ordered):
        predicted = []
        for subnet in (model.config.architecture, narrow):
            model.set_active_subnet(subnet)
            with torch.no_grad():
                predicted.append(model(audio(1)).predictions)
        changes.append((predicted[1] - predicted[0]).abs().mean().item())
    assert changes[1] < 0.4 * changes[0]  # means are lost that training brings back first


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"student": {"init": "random", "order_on": {}}}, "random weights"),
        ({"student": {"order_on": {}, "order_channels_on": 3.0}}, "both order the channels"),
        ({"student": {"order_on": {"parts": ["depth"]}}}, "order_on.parts"),
        (
            {"student": {"order_on": {"parts": ["width"]}}, "objective": {"name": "dphubert"}, "masking": None},
            "width",
        ),
    ],
)
def test_what_does_not_fit_is_named(tiny_recipe, sections, words):
    with pytest.raises(ValueError, match=words) as caught:
        tiny_recipe(**sections)
    assert "\n" not in str(caught.value)

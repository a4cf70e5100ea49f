"""The first stage of an elastic front end: what it learns, in what order its channels stand, what it leaves alone."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, LightHubertModel, SearchSpace
from lighthubert_hf.training.distillation.channel_order import channel_importance, order_channels
from lighthubert_hf.training.distillation.checkpoint import load_training_state
from lighthubert_hf.training.distillation.objectives import make_objective
from lighthubert_hf.training.distillation.objectives.base import TeacherRequest
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.distillation.teacher import Teacher

from ...examples import examples
from ...precision import assert_as_exact, assert_gradients_as_exact, in_double
from .encoders import FAMILIES, make_encoder
from .rewinding import rewind
from .test_step import NO_DROPOUT, gradients, make_batch, make_step, weights
from .tiny import TINY_SPACE

ELASTIC = TINY_SPACE | {"conv_dim": [4, 8, 16]}
FRONT_END = {"objective": {"name": "front_end"}, "masking": None}


def elastic_model(norm: str = "layer", per_width: bool = False, seed: int = 0) -> LightHubertModel:
    torch.manual_seed(seed)
    config = LightHubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16, intermediate_size=64,
        conv_dim=(12, 10, 8), conv_kernel=(10, 3, 3), conv_stride=(5, 2, 2), num_feat_extract_layers=3,
        conv_bias=True, feat_extract_norm=norm, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        conv_norm_per_width=per_width,
        search_space=SearchSpace((16, 32), (1, 2), (1.0, 2.0), (1, 2), ((6, 12), (5, 10), (4, 8))),
    )  # fmt: skip
    model = LightHubertModel(config).eval()
    with torch.no_grad():  # norms that do something
        for parameter in model.feature_extractor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teachers_projected_features_are_what_its_first_layer_gets(family):
    """Of every family; no layer runs for them."""
    encoder = make_encoder(family)
    given = []
    encoder.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    batch = make_batch([4000, 4000])
    results = []
    for twin in (encoder, in_double(encoder)):
        Teacher(twin, TeacherRequest(hidden_states=(1,)), as_it_is=True)(batch["input_values"])
        (args, kwargs) = given.pop()
        results.append(args[0] if args else kwargs["hidden_states"])
    for as_it_is in (True, False):
        teacher = Teacher(encoder, TeacherRequest(projected=True), as_it_is=as_it_is)
        for layer in teacher.model.encoder.layers:
            layer.register_forward_hook(lambda *_: pytest.fail("a layer ran"))
        assert_as_exact(teacher(batch["input_values"]).projected, *results)
        encoder = make_encoder(family)


def test_rows_of_unequal_length_are_each_their_own(tiny_recipe):
    """Also for a teacher whose features padding changes."""
    encoder = make_encoder("hubert", feat_extract_norm="group")
    twins = [Teacher(twin, TeacherRequest(projected=True), as_it_is=True) for twin in (encoder, in_double(encoder))]
    batch = make_batch([4000, 2500])
    together = twins[0](batch["input_values"], batch["attention_mask"]).projected
    alone, exact = (teacher(batch["input_values"][1:, :2500]).projected for teacher in twins)
    assert_as_exact(together[1:, : alone.shape[1]], alone, exact)
    assert not together[1, alone.shape[1] :].any()


def test_the_loss_by_hand(tiny_recipe):
    rng = np.random.default_rng(0)
    objective = make_objective(tiny_recipe(**FRONT_END).objective, make_encoder("hubert").config, LightHubertConfig())
    prediction, target = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 5, 6))
    weights = np.array([[1.0] * 5, [1.0] * 2 + [0.0] * 3])
    loss = objective([torch.tensor(prediction)], [torch.tensor(target)], torch.tensor(weights))
    expected = (np.abs(prediction - target[..., :4]).mean(-1) * weights).sum() / weights.sum()
    assert (loss.sum / loss.count).item() == pytest.approx(expected, rel=1e-6)


def test_only_what_makes_the_features_is_trained(tiny_recipe):
    recipe = tiny_recipe(**FRONT_END, student={"search_space": ELASTIC}, optimizer={"lr": 1e-2})
    step = make_step(recipe)
    student = step.model.student
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    space = student.search_space
    result = step.run(0, [make_batch([4000, 3000])], (space.smallest(), space.largest()))
    assert result.loss > 0 and not result.skipped
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(re.search("feature_extractor|feature_projection", name) for name in changed)


def test_the_largest_subnet_of_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_recipe):
    """Rounding apart, which is below 1e-5 of features of size 1: the target is what that subnet computes."""
    step = make_step(tiny_recipe(**FRONT_END, student={"search_space": ELASTIC}))
    largest = step.model.student.search_space.largest()
    assert step.run(0, [make_batch([4000, 3000])], (largest,)).loss < 1e-4


def test_subnets_of_one_step_run_the_front_end_of_their_own(tiny_recipe):
    """Two widths in one step have the sum of the gradients that each has alone, and neighbours share a run."""
    recipe = tiny_recipe(
        student={"search_space": ELASTIC, "config": NO_DROPOUT},
        optimizer={"lr": 1e-30, "weight_decay": 0.0, "max_grad_norm": None},
        masking=None,
    )
    step = make_step(recipe)
    space, batch = step.model.student.search_space, make_batch([4000, 3000])
    subnets = (space.largest(), space.smallest(), space.smallest())
    runs = []
    step.model.student.lighthubert.feature_extractor.register_forward_hook(lambda *_: runs.append(1))
    step.run(0, [batch], subnets)
    assert len(runs) == 2
    together = gradients(step)

    def one_by_one(dtype):
        alone = {}
        for subnet in subnets:
            fresh = make_step(recipe, dtype=dtype)
            fresh.run(0, [batch], (subnet,))
            for name, gradient in gradients(fresh).items():
                alone[name] = alone.get(name, 0) + gradient / len(subnets)
        return alone

    assert_gradients_as_exact(together, one_by_one(torch.float32), one_by_one(torch.float64))


@settings(max_examples=examples(10), deadline=None)
@given(seed=st.integers(0, 1000), norm=st.sampled_from(["layer", "group"]), per_width=st.booleans())
def test_ordering_keeps_the_function(seed, norm, per_width):
    model = elastic_model(norm, per_width, seed)
    audio = torch.randn(2, 1600, generator=torch.Generator().manual_seed(seed))
    ordered = copy.deepcopy(model)
    order_channels(ordered, audio, seed=seed, probes=2)
    assert not torch.equal(
        ordered.feature_extractor.conv_layers[0].conv.weight, model.feature_extractor.conv_layers[0].conv.weight
    )
    exact, permuted = model.double()(audio.double()), ordered.double()(audio.double())
    torch.testing.assert_close(permuted.last_hidden_state, exact.last_hidden_state, rtol=1e-9, atol=1e-9)


def test_channels_that_matter_less_come_later():
    """A channel that nothing reads is last, one whose readers are large is first."""
    model = elastic_model("group")
    with torch.no_grad():
        model.feature_extractor.conv_layers[1].conv.weight[:, 3] = 0
        model.feature_extractor.conv_layers[1].conv.weight[:, 5] *= 20
    audio = torch.randn(2, 1600, generator=torch.Generator().manual_seed(0))
    scores = channel_importance(model, audio)[0]
    assert scores.argmin() == 3 and scores.argmax() == 5


def test_importance_is_the_change_that_is_seen():
    """The measure ranks channels as holding each at its mean does."""
    model = elastic_model("group", seed=3)
    audio = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1))
    estimated = channel_importance(model, audio, probes=16)[1]
    layers = model.feature_extractor.conv_layers

    def projected(channel: int | None) -> torch.Tensor:
        states = audio[:, None]
        for index, layer in enumerate(layers):
            states = layer(states)
            if index == 1 and channel is not None:
                states[:, channel] = states[:, channel].mean(-1, keepdim=True)
        return model.feature_projection(states.transpose(1, 2))

    with torch.no_grad():
        whole = projected(None)
        seen = torch.stack([(projected(channel) - whole).square().sum() for channel in range(10)])
    ranks = torch.stack([estimated.argsort().argsort().double(), seen.argsort().argsort().double()])
    assert torch.corrcoef(ranks)[0, 1] > 0.7


@pytest.mark.parametrize("per_width", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_learns_and_the_next_stage_goes_on_from_it(tiny_recipe, make_recipe, tmp_path, per_width):
    config = {"config": {"conv_norm_per_width": True}} if per_width else {}
    student = {"search_space": ELASTIC, "order_channels_on": 3.0} | config
    held_out = {"path": make_recipe(tmp_path).data.sources[0].path, "split": "validation"}
    options = {"optimizer": {"lr": 2e-3}, "validation": {"sources": [held_out], "every": 15, "num_random": 0}}
    options["checkpoint"] = {"every": 30}
    first = tiny_recipe(**FRONT_END, student=student, training={"steps": 30}, **options)
    final = distill(first, show_progress=False)
    followed = [entry["validation"] for entry in read_log(tmp_path / "run" / "log.jsonl") if "validation" in entry]
    assert followed[-1]["smallest"] < 0.97 * followed[0]["smallest"]
    second = make_recipe(
        tmp_path / "joint", student={"init": str(final)} | {"search_space": None}, training={"steps": 2}
    )
    trained = LightHubertForPreTraining.from_pretrained(distill(second, show_progress=False))
    subnet = trained.search_space.smallest()
    assert subnet.conv_dim == (4,) * 7
    trained.set_active_subnet(subnet)
    audio = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    static = trained.eval().extract_subnet(subnet)
    with torch.no_grad():
        assert torch.equal(static(audio).predictions, trained(audio).predictions)


def test_an_ordered_stream_learns_the_channels_it_was(make_recipe, tmp_path):
    """The largest subnet has nothing to learn, as in the teacher's order; a run gone on with knows the order."""
    order = {"seconds": 0.5, "parts": ["heads", "width"], "probes": 1}
    options = {"training": {"steps": 2}, "checkpoint": {"every": 1}, "sampler": {"kind": "largest"}}
    options |= {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "data": {"batch_seconds": 2, "crop_seconds": 1}}
    student = {"search_space": ELASTIC, "order_on": order, "config": NO_DROPOUT | {"feat_proj_dropout": 0.0}}
    recipe = make_recipe(tmp_path / "run", **FRONT_END, student=student, **options)
    distill(recipe, show_progress=False)
    state = load_training_state(tmp_path / "run" / "checkpoints" / "step-00000002").objective
    assert sorted(state["order"].tolist()) == [*range(32)] != state["order"].tolist()
    rewind(recipe, 1)
    distill(recipe, show_progress=False)
    losses = [entry["loss"] for entry in read_log(tmp_path / "run" / "log.jsonl")]
    assert len(losses) == 2 and max(losses) < 1e-4


def test_two_runs_are_the_same(tiny_recipe, make_recipe, tmp_path):
    """Order and training are functions of the recipe alone."""
    finals = []
    for name in ("one", "two"):
        student = {"search_space": ELASTIC, "order_channels_on": 2.0}
        recipe = make_recipe(tmp_path / name, **FRONT_END, student=student, training={"steps": 2})
        finals.append(LightHubertForPreTraining.from_pretrained(distill(recipe, show_progress=False)).state_dict())
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (FRONT_END | {"masking": {"probability": 0.5}}, "masking"),
        (FRONT_END | {"student": {"freeze_front_end": True}}, "freeze_front_end"),
        ({"student": {"search_space": TINY_SPACE | {"conv_dim": [32]}}}, "32"),
        ({"student": {"search_space": TINY_SPACE | {"conv_dim": [[16]] * 3}}}, "conv_dim"),
    ],
)
def test_what_does_not_fit_is_named(tiny_recipe, sections, words):
    with pytest.raises(ValueError, match=words) as caught:
        make_step(tiny_recipe(**sections))
    assert "\n" not in str(caught.value)


def test_weights_of_a_step_do_not_depend_on_the_largest_front_end(tiny_recipe):
    """A step of narrow subnets leaves the channels alone that none of them has."""
    step = make_step(tiny_recipe(student={"search_space": ELASTIC}, optimizer={"lr": 1e-2, "weight_decay": 0.0}))
    conv = step.model.student.lighthubert.feature_extractor.conv_layers[1].conv.weight
    before, everything = conv.detach().clone(), weights(step)
    step.run(0, [make_batch([4000])], (step.model.student.search_space.smallest(),))
    assert not torch.equal(conv[:4, :4], before[:4, :4])
    assert torch.equal(conv[4:], before[4:]) and torch.equal(conv[:, 4:], before[:, 4:])
    assert any(not torch.equal(old, new) for old, new in zip(everything, weights(step), strict=True))

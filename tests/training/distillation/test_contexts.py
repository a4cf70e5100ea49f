"""The section `streaming` of a recipe: which steps hear chunks, and what is trained in them."""

import pytest
import torch

from lighthubert_hf import SearchSpace
from lighthubert_hf.streaming import StreamingEncoder
from lighthubert_hf.streaming.chunks import ChunkContext
from lighthubert_hf.training.distillation.contexts import StepContexts
from lighthubert_hf.training.distillation.cost import count_cost
from lighthubert_hf.training.distillation.recipe import StreamingSection
from lighthubert_hf.training.distillation.student import build_student

from .encoders import make_encoder
from .test_step import NO_DROPOUT, make_batch, make_step, weights
from .tiny import TINY, TINY_SPACE

SECTION = {"share": 0.5, "chunk_seconds": 0.1, "left_seconds": [0.2], "right_seconds": [0.0, 0.04]}


@pytest.fixture
def recipe_of(tiny_recipe):
    return lambda **sections: tiny_recipe(student={"config": NO_DROPOUT}, masking=None, **sections)


def test_contexts_follow_from_seed_and_step(recipe_of):
    student = build_student(recipe_of().student, make_encoder("hubert"), 0)
    draws = [StepContexts(StreamingSection(**SECTION), student, 3).at(step) for step in range(400)]
    again = StepContexts(StreamingSection(**SECTION), student, 3)
    assert [again.at(step) for step in reversed(range(400))] == draws[::-1]
    assert set(draws) == {None, ChunkContext(5, 10, 0), ChunkContext(5, 10, 2)}
    assert 150 < draws.count(None) < 250
    assert [StepContexts(StreamingSection(**SECTION), student, 4).at(step) for step in range(400)] != draws
    never, always = ({**SECTION, "share": share} for share in (0.0, 1.0))
    assert not any(StepContexts(StreamingSection(**never), student, 3).at(step) for step in range(50))
    assert all(StepContexts(StreamingSection(**always), student, 3).at(step) for step in range(50))


def test_a_step_trains_what_a_stream_computes(recipe_of):
    """Its loss is that of the frames of a `StreamingEncoder`, of every row with its own length."""
    objective = {"name": "lighthubert", "num_target_layers": 2, "masked_weight": 1.0, "unmasked_weight": 1.0}
    recipe = recipe_of(objective=objective, streaming={**SECTION, "share": 1.0, "right_seconds": [0.04]})
    step, batch = make_step(recipe, dtype=torch.float64), make_batch([8000, 5000, 1700])
    model, subnet = step.model, SearchSpace(**TINY_SPACE).default()
    prepared = model.prepare(batch, None, seed=0, step=0)
    model.student.eval().set_active_subnet(subnet)
    encoder, total, count = StreamingEncoder(model.student.lighthubert, 0.1, 0.2, 0.04), 0.0, 0
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        frames = torch.cat([encoder.feed(batch["input_values"][row, :length].double()), encoder.finish()])
        errors = (model.student.prediction_head(frames) - prepared.targets[0][row, : len(frames)]).abs().mean(-1)
        total, count = total + errors.sum().item(), count + len(frames)
    model.student.train()
    assert step.run(0, [batch], [subnet]).loss == pytest.approx(total / count, rel=1e-6)


def test_without_the_section_and_in_other_steps_nothing_changes(recipe_of):
    """To the bit; and in a step of it something does."""
    batch, subnets = make_batch([8000, 5000]), [SearchSpace(**TINY_SPACE).default()]
    after = {}
    for name, streaming in {"off": None, "other": {**SECTION, "share": 0.0}, "on": {**SECTION, "share": 1.0}}.items():
        step = make_step(recipe_of(streaming=streaming))
        step.run(0, [batch], subnets)
        after[name] = weights(step)
    assert all(map(torch.equal, after["off"], after["other"]))
    assert not all(map(torch.equal, after["off"], after["on"]))


def test_it_costs_what_chunks_cost(recipe_of):
    teacher = {"path": None, "random_config": TINY}
    plain = count_cost(recipe_of(teacher=teacher))
    whole = {"share": 1.0, "chunk_seconds": 5.0, "left_seconds": [10.0], "right_seconds": [10.0]}
    chunks = count_cost(recipe_of(teacher=teacher, streaming=whole))
    assert (chunks.teacher, chunks.front_end) == (plain.teacher, plain.front_end)
    assert chunks.encoder == 2 * plain.encoder  # of two chunks, which both see the whole clip


@pytest.mark.parametrize(
    ("streaming", "message"),
    [
        ({"chunk_seconds": 0.01}, r"streaming\.chunk_seconds must be at least one frame \(0\.02 s\), got 0\.01"),
        ({"right_seconds": []}, "streaming.right_seconds"),
        ({"left_seconds": [-1]}, "streaming.left_seconds.0.*greater than or equal to 0"),
        ({"share": 2}, "streaming.share"),
    ],
)
def test_what_makes_no_sense(recipe_of, streaming, message):
    with pytest.raises(ValueError, match=message):
        make_step(recipe_of(streaming=streaming))


def test_a_group_norm_is_refused(recipe_of):
    encoder = make_encoder("hubert", feat_extract_norm="group")
    with pytest.raises(ValueError, match=r"a group norm, which is over the whole recording .* layer norms"):
        make_step(recipe_of(streaming=SECTION), encoder=encoder)


def test_an_objective_without_layers_is_refused(recipe_of):
    with pytest.raises(ValueError, match="runs no layer, which context could matter to: remove streaming"):
        recipe_of(objective={"name": "front_end"}, streaming=SECTION)

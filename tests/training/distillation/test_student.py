"""Students from every kind of start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.model.search_space import check_cuttable
from lighthubert_hf.training.distillation.recipe import StudentSection
from lighthubert_hf.training.distillation.student import build_student, space_within

from ...examples import examples
from ...precision import assert_as_exact, in_double
from .encoders import make_encoder
from .tiny import TINY_SPACE


def build(teacher=None, seed=0, **section):
    return build_student(StudentSection(**section), teacher or make_encoder("hubert"), seed)


@pytest.mark.numerical
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "hubert-pre-norm"])
@pytest.mark.parametrize("norm", ["layer", "group"])
@torch.no_grad()
def test_from_the_teacher_the_largest_subnet_is_the_teacher(family, norm):
    teacher = make_encoder(family, feat_extract_norm=norm)
    student = build(teacher, search_space=TINY_SPACE).eval()
    student.set_active_subnet(student.search_space.largest())
    audio = torch.randn(2, 4000)
    exact = in_double(teacher)(audio.double()).last_hidden_state
    assert_as_exact(student.lighthubert(audio).last_hidden_state, teacher(audio).last_hidden_state, exact)
    assert student.config.layerdrop == student.config.attention_dropout == 0.0
    assert student.config.ctc_zero_infinity


@pytest.mark.parametrize("family", ["wavlm", "data2vec-audio"])
def test_other_families_teach_but_do_not_lend_their_weights(family):
    with pytest.raises(ValueError, match=r"weights do not fit.*student\.init=random"):
        build(make_encoder(family), search_space=TINY_SPACE)
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    student = build(make_encoder(family), init="random", search_space=TINY_SPACE, config=positions)
    assert student.config.target_size == 32


def test_another_size_than_the_teachers():
    config = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 96}
    student = build(init="random", config=config, search_space=None)
    assert student.search_space is None
    assert student(torch.randn(1, 4000)).predictions.shape[-1] == 32
    with pytest.raises(ValueError, match=r"changes the shape.*student\.init=random"):
        build(config=config)


def test_random_students_depend_on_the_seed_alone():
    weights = [build(init="random", seed=seed).prediction_head.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_from_a_folder_with_another_space_and_another_teacher(tmp_path):
    first = build(search_space=TINY_SPACE)
    first.save_pretrained(tmp_path / "stage1")
    smaller = TINY_SPACE | {"hidden_size": [16, 24]}
    second = build(init=str(tmp_path / "stage1"), search_space=smaller)
    assert second.search_space.hidden_size == (16, 24)
    assert second.config.hidden_size == 32
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    # Without a space given, the stored one; with a wider teacher, a new head.
    third = build(make_encoder("hubert", hidden_size=64, num_attention_heads=4), init=str(tmp_path / "stage1"))
    assert third.search_space == first.search_space
    assert third.prediction_head.weight.shape == (64, 32)
    assert torch.equal(third.lighthubert.masked_spec_embed, first.lighthubert.masked_spec_embed)
    first.lighthubert.save_pretrained(tmp_path / "bare")
    fourth = build(init=str(tmp_path / "bare"))
    assert torch.equal(fourth.lighthubert.masked_spec_embed, first.lighthubert.masked_spec_embed)


@torch.no_grad()
def test_a_choice_of_channels(tmp_path):
    """From the teacher, and from a supernet that had none; with norms of their own for the narrower."""
    teacher, audio = make_encoder("hubert"), torch.randn(2, 4000)
    space = TINY_SPACE | {"conv_dim": [[8, 16], [4, 16], [16], [16], [16], [16], [10, 16]]}
    own = {"conv_norm_per_width": True}
    build(teacher, search_space=TINY_SPACE).save_pretrained(tmp_path / "fixed")
    students = [build(teacher, search_space=space, config=config).eval() for config in ({}, own)]
    students += [build(teacher, init=str(tmp_path / "fixed"), search_space=space, config=own).eval()]
    students[1].save_pretrained(tmp_path / "elastic")
    students += [build(teacher, init=str(tmp_path / "elastic")).eval()]
    assert [student.config.conv_norm_per_width for student in students] == [False, True, True, True]
    for subnet in (students[0].search_space.largest(), students[0].search_space.smallest()):
        features = []
        for student in students:
            student.set_active_subnet(subnet)
            features.append(student.lighthubert.extract_features(audio))
        assert all(torch.equal(features[0], other) for other in features[1:])
    assert features[0].shape[-1] == 10
    with pytest.raises(ValueError, match="conv_dim 32 of layer 0 exceeds the supernet's 16"):
        build(teacher, search_space=TINY_SPACE | {"conv_dim": [16, 32]})


@torch.no_grad()
def test_widths_with_parts_of_their_own_start_as_without(tmp_path):
    """From the teacher, and from a supernet that had none; what a supernet has stays."""
    teacher, audio = make_encoder("hubert"), torch.randn(2, 4000)
    own = {"norm_per_width": True, "head_per_width": True}
    plain = build(teacher, search_space=TINY_SPACE)
    plain.save_pretrained(tmp_path / "plain")
    students = [plain, build(teacher, search_space=TINY_SPACE, config=own)]
    students[1].prediction_head.weight.copy_(plain.prediction_head.weight)  # drawn after other random numbers
    students[1].prediction_head.share_with_widths()
    students += [build(teacher, init=str(tmp_path / "plain"), config=own)]
    for subnet in (plain.search_space.largest(), plain.search_space.smallest()):
        for student in students:
            student.eval().set_active_subnet(subnet)
        assert all(torch.equal(students[0](audio).predictions, other(audio).predictions) for other in students[1:])
    students[2].lighthubert.encoder.layers[0].layer_norm.per_width["16"].weight += 1
    students[2].prediction_head.per_width["16"].weight += 1
    students[2].save_pretrained(tmp_path / "own")
    again = build(teacher, init=str(tmp_path / "own"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in students[2].state_dict().items())


def test_a_chosen_subnet_is_extracted(tmp_path):
    subnet = {"hidden_size": 16, "num_attention_heads": [1, 2], "intermediate_size": [16, 32]}
    student = build(search_space=TINY_SPACE, subnet=subnet)
    assert isinstance(student, LightHubertForPreTraining)
    assert student.search_space is None
    assert student.active_subnet == Subnet(**subnet)
    assert build(search_space=TINY_SPACE, subnet="smallest").config.hidden_size == 16
    with pytest.raises(ValueError, match="static; remove it"):
        build(search_space=None, subnet="largest")
    student.save_pretrained(tmp_path / "static")
    assert LightHubertModel.from_pretrained(tmp_path / "static").config.hidden_size == 16


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no field 'hiden_size'; did you mean 'hidden_size'"):
        build(config={"hiden_size": 3})
    with pytest.raises(ValueError, match="the student's config does not work"):
        build(search_space=TINY_SPACE | {"hidden_size": [64]})
    with pytest.raises(FileNotFoundError, match="neither 'teacher' nor 'random', and there is no model "):
        build(init=str(tmp_path / "nothing"))
    make_encoder("hubert").save_pretrained(tmp_path / "hubert")
    with pytest.raises(ValueError, match="is a hubert model, not a LightHuBERT"):
        build(init=str(tmp_path / "hubert"))
    with pytest.raises(ValueError, match=r"the student's config does not work.*'hidden_size'"):
        build(init="random", config={"hidden_size": "wide"})


def test_choices_follow_from_the_sizes_where_none_are_given():
    base = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
    base |= {"num_conv_pos_embedding_groups": 16, "head_dim": 64}
    assert space_within(base) == SearchSpace((512, 640, 768), (8, 10, 12), (3.5, 4.0), (10, 11, 12))
    for init in ("teacher", "random"):
        student = build(init=init)
        assert student.search_space.largest() == student.search_space.uniform(32, 2, 2.0, 4)
        for subnet in (student.search_space.smallest(), student.search_space.largest()):
            student.set_active_subnet(subnet)
            assert student(torch.randn(1, 4000)).predictions.shape[-1] == 32
    assert build(search_space=None).search_space is None


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.sampled_from([1, 2, 4, 16]), st.integers(1, 24), st.integers(1, 5))
def test_every_derived_choice_can_be_cut(heads, steps, groups, layers, ratio):
    width = 16 * steps
    sizes = {"hidden_size": width, "num_attention_heads": heads, "head_dim": 16, "num_hidden_layers": layers}
    sizes |= {"intermediate_size": ratio * width, "num_conv_pos_embedding_groups": groups}
    space = space_within(sizes)
    for subnet in (space.smallest(), space.default(), space.largest()):
        check_cuttable(
            subnet,
            **{key: value for key, value in sizes.items() if key not in ("head_dim", "num_conv_pos_embedding_groups")},
            width_step=groups,
            conv_dim=(16,) * 7,
            elastic_front_end=False,
        )

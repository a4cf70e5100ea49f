"""What is read from inside teachers of every family."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from lighthubert_hf.training.distillation.objectives.base import TeacherRequest
from lighthubert_hf.training.distillation.recipe import TeacherSection
from lighthubert_hf.training.distillation.teacher import Teacher, load_teacher

from ...precision import assert_as_exact, in_double
from .encoders import FAMILIES, make_encoder


def ffn_outputs(model, audio, indices):
    """What the FFNs of some layers make of what goes into them, and all hidden states."""
    found = []
    for index in indices:
        ffn = model.encoder.layers[index].feed_forward
        captured = []
        hook = ffn.register_forward_hook(lambda _m, inputs, _o, captured=captured: captured.append(inputs[0]))
        states = model(audio, output_hidden_states=True).hidden_states
        hook.remove()
        hidden = F.gelu(F.linear(captured[0], ffn.intermediate_dense.weight, ffn.intermediate_dense.bias))
        found.append(F.linear(hidden, ffn.output_dense.weight, ffn.output_dense.bias))
    return found, states


@pytest.mark.numerical
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layer_results_are_the_ffn_outputs_before_dropout_residual_and_norm(family):
    model = make_encoder(family)
    teacher = Teacher(model, TeacherRequest(layer_results=(1, 2), hidden_states=(0, 3)))
    audio = torch.randn(2, 4000)
    output = teacher(audio)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    plain, exact = ffn_outputs(model, audio, (1, 2)), ffn_outputs(in_double(model), audio.double(), (1, 2))
    assert_as_exact([output.layer_results[index] for index in (1, 2)], plain[0], exact[0])
    states = [output.hidden_states[index] for index in (0, 3)]
    assert_as_exact(states, *([states[index] for index in (0, 3)] for _, states in (plain, exact)))


@pytest.mark.numerical
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_padding_does_not_change_what_the_teacher_says(norm):
    encoder, request = make_encoder("hubert", feat_extract_norm=norm), TeacherRequest((3,), (2,))
    teacher, exact = Teacher(encoder, request), Teacher(in_double(encoder), request)
    lengths = [4000, 2400, 4000, 3210]
    audio, mask = torch.randn(4, 4000), torch.zeros(4, 4000, dtype=torch.long)
    for row, length in enumerate(lengths):
        audio[row, length:] = 0
        mask[row, :length] = 1
    together = teacher(audio, mask)
    for row, length in enumerate(lengths):
        alone = [twin(audio[row : row + 1, :length]) for twin in (teacher, exact)]
        frames = alone[0].layer_results[3].shape[1]
        for read in (lambda output: output.layer_results[3], lambda output: output.hidden_states[2]):
            assert_as_exact(read(together)[row, :frames], *(read(output)[0] for output in alone))


def test_batches_are_padded_if_the_teacher_says_that_it_changes_nothing():
    for family, norm, expected in [("hubert", "group", True), ("wavlm", "layer", True), ("wavlm", "group", False)]:
        teacher = Teacher(make_encoder(family, feat_extract_norm=norm), TeacherRequest(hidden_states=(1,)))
        assert teacher.padding_invariant is expected


def test_masks_use_the_teachers_own_embedding():
    model = make_encoder("hubert", mask_time_prob=0.1)
    teacher = Teacher(model, TeacherRequest(hidden_states=(0,), masked=True))
    frames = teacher(torch.randn(2, 4000)).hidden_states[0].shape[1]
    everything = torch.ones(2, frames + 1, dtype=torch.bool)  # one frame more than the teacher has is cut
    one, other = (teacher(torch.randn(2, 4000), None, everything).hidden_states[0] for _ in range(2))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="no mask embedding"):
        Teacher(make_encoder("hubert", mask_time_prob=0.0), TeacherRequest(masked=True))


def test_own_dtype(tiny_teacher):
    encoder = load_teacher(TeacherSection(path=str(tiny_teacher), dtype="bfloat16"))
    teacher = Teacher(encoder, TeacherRequest(layer_results=(0,)))
    with torch.autocast("cpu", dtype=torch.float16):
        output = teacher(torch.randn(1, 4000))
    assert output.layer_results[0].dtype == torch.bfloat16


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model "):
        load_teacher(TeacherSection(path=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"teacher\.random_config makes no HuBERT"):
        load_teacher(TeacherSection(random_config={"hidden_size": "wide"}))
    with pytest.raises(ValueError, match="asks for layer 9, the teacher has layers 1 to 4"):
        Teacher(make_encoder("hubert"), TeacherRequest(layer_results=(8,)))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text_encoder = BertModel(BertConfig(vocab_size=9, **sizes))
    with pytest.raises(ValueError, match="a BertModel cannot teach"):
        Teacher(text_encoder, TeacherRequest())

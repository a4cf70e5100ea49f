"""Teachers in our own form say what they say in transformers'."""

import pytest
import torch
from transformers import HubertModel, Wav2Vec2Config, Wav2Vec2Model

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.distillation.objectives.base import TeacherRequest
from lighthubert_hf.training.distillation.own_form import own_form
from lighthubert_hf.training.distillation.teacher import Teacher

from ...precision import assert_as_exact, in_double
from .encoders import FAMILIES, make_encoder

pytestmark = pytest.mark.numerical

REQUEST = TeacherRequest(layer_results=(0, 3), hidden_states=(0, 2, 4))


def plain_own_and_exact(model):
    """transformers' form, ours, and transformers' in float64."""
    exact = in_double(model)
    return Teacher(model, REQUEST, as_it_is=True), Teacher(model, REQUEST), Teacher(exact, REQUEST, as_it_is=True)


def valid_states(output, frames) -> dict[str, torch.Tensor]:
    """All that was read, without padding."""
    read = {"layer": output.layer_results, "state": output.hidden_states}
    return {
        f"{kind} {index}": torch.cat([row[:count] for row, count in zip(states, frames)])
        for kind, tensors in read.items()
        for index, states in tensors.items()
    }


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "hubert-pre-norm"])
def test_what_is_read_is_the_same(family, norm):
    model = make_encoder(family, feat_extract_norm=norm, mask_time_prob=0.1)
    plain, own, exact = plain_own_and_exact(model)
    assert isinstance(own.model, LightHubertModel)
    lengths = torch.tensor([4000, 2400, 3999, 3210, 900])
    mask = (torch.arange(4000) < lengths[:, None]).long()
    audio = torch.randn(5, 4000) * mask
    frames = own.model._get_feat_extract_output_lengths(lengths)
    hidden = torch.rand(5, int(frames.max())) < 0.3
    for options in ({}, {"mask_time_indices": hidden}):
        results = [valid_states(teacher(audio, mask, **options), frames) for teacher in (own, plain, exact)]
        assert_as_exact(*results)


def test_the_shared_front_end_is_the_same():
    model = make_encoder("hubert")
    teachers = plain_own_and_exact(model)
    for teacher in teachers:
        teacher.keep_front_end()
    audio = torch.randn(2, 4000)
    plain, own, exact = (teacher(audio).front_end for teacher in teachers)
    assert_as_exact(own, plain, exact)


def test_weights_are_shared_and_frozen():
    model = make_encoder("hubert")
    form = own_form(model)
    shared = dict(model.named_parameters())
    for name, parameter in form.named_parameters():
        assert not parameter.requires_grad
        assert name not in shared or parameter.data_ptr() == shared[name].data_ptr()


def test_what_has_no_own_form_runs_as_it_is():
    class Changed(HubertModel):
        pass

    adapted = Wav2Vec2Model(Wav2Vec2Config(**make_encoder("wav2vec2").config.to_dict() | {"add_adapter": True}))
    normed = make_encoder("hubert", conv_pos_batch_norm=True)
    changed = Changed(make_encoder("hubert").config)
    others = [make_encoder(family) for family in FAMILIES if family in ("wavlm", "data2vec-audio")]
    for model in [*others, adapted, changed, normed]:
        assert own_form(model) is None
        assert Teacher(model, TeacherRequest(hidden_states=(1,))).model is model

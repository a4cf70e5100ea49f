"""Teachers in our own form say what they say in transformers'."""

import pytest
import torch
from transformers import HubertModel, Wav2Vec2Config, Wav2Vec2Model

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.distillation.objectives.base import TeacherRequest
from lighthubert_hf.training.distillation.own_form import own_form
from lighthubert_hf.training.distillation.teacher import Teacher

from .encoders import FAMILIES, make_encoder

REQUEST = TeacherRequest(layer_results=(0, 3), hidden_states=(0, 2, 4))


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "hubert-pre-norm"])
def test_what_is_read_is_the_same(family, norm):
    model = make_encoder(family, feat_extract_norm=norm, mask_time_prob=0.1)
    plain, own = Teacher(model, REQUEST, as_it_is=True), Teacher(model, REQUEST)
    assert isinstance(own.model, LightHubertModel)
    lengths = torch.tensor([4000, 2400, 3999, 3210, 900])
    mask = (torch.arange(4000) < lengths[:, None]).long()
    audio = torch.randn(5, 4000) * mask
    frames = own.model._get_feat_extract_output_lengths(lengths)
    hidden = torch.rand(5, int(frames.max())) < 0.3
    for options in ({}, {"mask_time_indices": hidden}):
        expected, found = plain(audio, mask, **options), own(audio, mask, **options)
        for kind in ("layer_results", "hidden_states"):
            for index, states in getattr(expected, kind).items():
                for row, count in enumerate(frames):
                    theirs, ours = states[row, :count], getattr(found, kind)[index][row, :count]
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_shared_front_end_is_the_same():
    model = make_encoder("hubert")
    teachers = Teacher(model, REQUEST, as_it_is=True), Teacher(model, REQUEST)
    for teacher in teachers:
        teacher.keep_front_end()
    audio = torch.randn(2, 4000)
    theirs, ours = (teacher(audio).front_end for teacher in teachers)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


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

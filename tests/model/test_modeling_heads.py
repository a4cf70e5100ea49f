"""The task heads: losses, padding, subnets."""

import pytest
import torch
from torch.nn import functional as F

from lighthubert_hf import (
    LightHubertForAudioFrameClassification,
    LightHubertForCTC,
    LightHubertForPreTraining,
    LightHubertForSequenceClassification,
    LightHubertForXVector,
    LightHubertModel,
    Subnet,
)

from ..heads import FRAMES, HEADS, NUM_LABELS, make_labels, prediction
from ..precision import assert_as_exact, assert_rounded_alike, in_double

PER_FRAME = (LightHubertForPreTraining, LightHubertForCTC, LightHubertForAudioFrameClassification)


@pytest.fixture(scope="module", params=HEADS, ids=lambda cls: cls.__name__.removeprefix("LightHubertFor"))
def model(request, make_model):
    weighted = request.param is not LightHubertForPreTraining
    return make_model(request.param, num_labels=NUM_LABELS, use_weighted_layer_sum=weighted)


# All heads


@pytest.mark.numerical
@torch.no_grad()
def test_a_padded_batch_equals_each_utterance_alone(model, waveforms, random_subnets):
    lengths = (4800, 400, 719, 3333)
    mask = torch.zeros_like(waveforms, dtype=torch.long)
    for i, length in enumerate(lengths):
        mask[i, :length] = 1
    twins = model, in_double(model)
    for subnet in random_subnets(model.search_space, 3):
        for twin in twins:
            twin.set_active_subnet(subnet)
        together = prediction(model(waveforms, mask))
        rows = []
        for i, length in enumerate(lengths):
            alone, exact = (prediction(twin(waveforms[i : i + 1, :length]))[0] for twin in twins)
            rows.append((together[i, : len(alone)] if isinstance(model, PER_FRAME) else together[i], alone, exact))
        assert_as_exact(*map(torch.cat, zip(*rows)))


def test_gradients_reach_everything_that_runs(model, waveforms):
    model.set_active_subnet(model.search_space.largest())
    out = model(waveforms, **make_labels(type(model)))
    assert out.loss.ndim == 0
    out.loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    without = {name for name, grad in grads.items() if grad is None}
    assert without == {"lighthubert.masked_spec_embed"}  # no frame was masked
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_frame_keep_the_loss_finite(make_model, model, waveforms, dtype):
    model = make_model(type(model), num_labels=NUM_LABELS).to(dtype).train()
    mask = torch.ones_like(waveforms, dtype=torch.long)
    mask[1, 399:] = mask[2] = 0
    loss = model(waveforms, mask, **make_labels(type(model))).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_tuples_and_dicts_agree(make_model, model, waveforms):
    labels = make_labels(type(model))
    expected = model(waveforms, **labels, output_hidden_states=True)
    as_tuple = model(waveforms, **labels, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for a, b in zip(as_tuple, expected.to_tuple(), strict=True):
        for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
            assert torch.equal(x, y)
    model.config.return_dict = False
    try:
        assert torch.equal(model(waveforms)[0], prediction(expected))
    finally:
        model.config.return_dict = True


def test_freezing(make_model):
    model = make_model(LightHubertForCTC)
    model.freeze_feature_encoder()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("lighthubert.feature_extractor.")}
    model.freeze_base_model()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"lm_head.weight", "lm_head.bias"}


# Weighted layer sum


@torch.no_grad()
def test_weighted_layer_sum(make_model, waveforms):
    """Each hidden state has its weight, whichever layers a subnet runs; the softmax is over those that run."""
    model = make_model(LightHubertForAudioFrameClassification, use_weighted_layer_sum=True)
    model.layer_weights.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0, 5.0]))
    model.set_active_subnet(Subnet(48, (1, 2, 4), (96, 96, 96)))  # runs the layers 0, 1 and 2
    states = model.lighthubert(waveforms, output_hidden_states=True).hidden_states
    mixed = sum(w * s for w, s in zip(torch.tensor([0.0, 1.0, -1.0, 2.0]).softmax(-1), states, strict=True))
    out = model(waveforms)
    assert_rounded_alike(out.logits, model.classifier(mixed), 4 + 48)
    assert out.hidden_states is None
    assert len(model(waveforms, output_hidden_states=True).hidden_states) == 4
    some = model(waveforms, output_hidden_states=[-1]).hidden_states
    assert [state is not None for state in some] == [False, False, False, True]


# Pre-training


@torch.no_grad()
def test_distillation_loss_is_the_mean_over_valid_frames(make_model, waveforms):
    model = make_model(LightHubertForPreTraining)
    targets = make_labels(LightHubertForPreTraining)["targets"]
    out = model(waveforms, targets=targets)
    assert_rounded_alike(out.loss, F.l1_loss(out.predictions, targets), targets.numel())
    mask = torch.ones_like(waveforms)
    mask[1, 3000:] = 0
    frames = [14, (3000 - 400) // 320 + 1, 14, 14]
    out = model(waveforms, mask, targets=targets)
    errors = torch.cat([(out.predictions[i, :n] - targets[i, :n]).abs().flatten() for i, n in enumerate(frames)])
    assert_rounded_alike(out.loss, errors.mean(), len(errors))


@torch.no_grad()
def test_the_prediction_is_of_the_last_layer_that_ran(make_model, waveforms):
    model = make_model(LightHubertForPreTraining)
    assert model.prediction_head.bias is None
    for subnet in (model.search_space.smallest(), model.search_space.largest()):
        model.set_active_subnet(subnet)
        out = model(waveforms)
        weight = model.prediction_head.weight[:, : subnet.hidden_size]
        assert_rounded_alike(out.predictions, out.last_hidden_state @ weight.T, subnet.hidden_size)
        assert torch.equal(out.last_hidden_state, model.lighthubert(waveforms).last_hidden_state)


# CTC


@torch.no_grad()
def test_ctc_loss(make_model, waveforms):
    model = make_model(LightHubertForCTC)
    labels = make_labels(LightHubertForCTC)["labels"]
    labels[1, 2] = -100
    mask = torch.ones_like(waveforms)
    mask[2, 3000:] = 0
    out = model(waveforms, mask, labels=labels)
    expected = F.ctc_loss(
        out.logits.log_softmax(-1).transpose(0, 1),
        labels[labels >= 0],
        torch.tensor([14, 14, 9, 14]),
        torch.tensor([3, 2, 3, 3]),
        blank=model.config.pad_token_id,
        reduction="mean",
    )
    assert_rounded_alike(out.loss, expected, 4 * 14)  # sums of logarithms along 14 frames, and over the batch


@torch.no_grad()
def test_padding_says_blank(make_model, waveforms):
    model = make_model(LightHubertForCTC, pad_token_id=3)
    mask = torch.ones_like(waveforms)
    mask[1, 3000:] = mask[2] = 0
    logits = model(waveforms, mask).logits
    assert logits.isfinite().all()
    assert (logits[1, 9:].argmax(-1) == 3).all()
    assert (logits[2].argmax(-1) == 3).all()
    assert (logits[0].argmax(-1) != 3).any()
    assert (logits[1, 9:].softmax(-1)[:, 3] == 1).all()


def test_labels_longer_than_the_frames_do_not_explode(make_model, waveforms):
    model = make_model(LightHubertForCTC)
    labels = torch.ones(4, 40, dtype=torch.long)
    labels[0, 3:] = -100
    loss = model(waveforms, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert model.lm_head.weight.grad.isfinite().all()
    model.config.ctc_zero_infinity = False
    assert model(waveforms, labels=labels).loss.isinf()


@pytest.mark.parametrize("label", [12, -1])
def test_labels_outside_the_vocabulary(make_model, waveforms, label):
    with pytest.raises(ValueError, match=f"label {label} is outside the vocabulary of 12; set vocab_size"):
        make_model(LightHubertForCTC)(waveforms, labels=torch.full((4, 2), label))


# Classification


@torch.no_grad()
def test_utterances_are_pooled_over_valid_frames(make_model, waveforms):
    model = make_model(LightHubertForSequenceClassification, num_labels=NUM_LABELS)
    labels = make_labels(LightHubertForSequenceClassification)["labels"]
    mask = torch.ones_like(waveforms)
    mask[1, 3000:] = 0
    out = model(waveforms, mask, labels=labels)
    projected = model.projector(model.lighthubert(waveforms, mask).last_hidden_state)
    pooled = torch.stack([projected[i, :n].mean(0) for i, n in enumerate((14, 9, 14, 14))])
    assert_rounded_alike(out.logits, model.classifier(pooled), 14 + 24)
    assert_rounded_alike(out.loss, F.cross_entropy(out.logits, labels), len(labels))


@torch.no_grad()
def test_frames_of_one_class_or_of_several(make_model, waveforms):
    model = make_model(LightHubertForAudioFrameClassification, num_labels=NUM_LABELS)
    mask = torch.ones_like(waveforms)
    mask[1, 3000:] = 0
    one = make_labels(LightHubertForAudioFrameClassification)["labels"]
    one[0, :3] = -100
    out = model(waveforms, mask, labels=one)
    valid = torch.ones(4, FRAMES, dtype=torch.bool)
    valid[1, 9:] = valid[0, :3] = False
    assert_rounded_alike(out.loss, F.cross_entropy(out.logits[valid], one[valid]), one.numel())
    several = F.one_hot(one.clamp(min=0), NUM_LABELS)
    several[:, :, 0] = 1
    valid[0, :3] = True
    out = model(waveforms, mask, labels=several)
    expected = F.binary_cross_entropy_with_logits(out.logits[valid], several[valid].float())
    assert_rounded_alike(out.loss, expected, several.numel())


@torch.no_grad()
def test_speakers(make_model, waveforms):
    model = make_model(LightHubertForXVector, num_labels=NUM_LABELS)
    out = model(waveforms, labels=torch.arange(4))
    assert out.embeddings.shape == out.logits.shape == (4, 16)
    hidden_states = model.projector(model.lighthubert(waveforms).last_hidden_state)
    for layer in model.tdnn:
        hidden_states = layer(hidden_states)
    pooled = torch.cat([hidden_states.mean(1), hidden_states.std(1)], -1)
    assert_rounded_alike(out.embeddings, model.feature_extractor(pooled), 14 + 48)
    assert_rounded_alike(out.loss, model.objective(out.logits, torch.arange(4)), 4)


@torch.no_grad()
def test_the_encoder_is_the_same_under_every_head(make_model, waveforms):
    states = {cls: make_model(cls).lighthubert for cls in HEADS}
    outputs = [encoder(waveforms).last_hidden_state for encoder in states.values()]
    bare = make_model(LightHubertModel)
    bare.load_state_dict(states[LightHubertForCTC].state_dict())
    assert all(torch.equal(out, outputs[0]) for out in outputs)
    assert torch.equal(bare(waveforms).last_hidden_state, outputs[0])

"""The cached score against the plain computation, padding, bounded caches, other checkpoints."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import HubertConfig, HubertModel

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.training.distillation.scoring import DistillationScore, teacher_targets

from ...tiny import TINY_SPACE

# Scores of about 1 are compared within 1e-5, 84 eps: they are means over hundreds of frames and 20 channels, in which
# the rounding of each is hardly seen. What is wrong, one frame of padding say, shows in the second digit.
LENGTHS = ((16000, 16000), (12000, 8200, 1800), (10000,))


@pytest.fixture(scope="module")
def supernet(make_model):
    return make_model(LightHubertForPreTraining)


def make_teacher(seed=1, norm="layer") -> HubertModel:
    torch.manual_seed(seed)
    config = HubertConfig(
        hidden_size=20,
        num_attention_heads=2,
        intermediate_size=40,
        num_hidden_layers=3,
        feat_extract_norm=norm,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return HubertModel(config).eval()


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def make_batches():
    generator = torch.Generator().manual_seed(2)
    for lengths in LENGTHS:
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        yield {"input_values": torch.randn(mask.shape, generator=generator) * mask, "attention_mask": mask}


@torch.no_grad()
def plain_loss(model, teacher, subnet) -> float:
    """Teacher and full student for every subnet, utterance by utterance and without padding."""
    errors, results = [], []
    hooks = [
        layer.feed_forward.output_dense.register_forward_hook(lambda module, inputs, output: results.append(output))
        for layer in teacher.encoder.layers
    ]
    with model.subnet_activated(subnet):
        for batch in make_batches():
            for row, length in zip(batch["input_values"], batch["attention_mask"].sum(-1).tolist()):
                results.clear()
                teacher(row[None, :length])
                predictions = model(row[None, :length]).predictions
                errors.append((predictions - torch.stack(results).mean(0)).abs().mean(-1)[0])
    for hook in hooks:
        hook.remove()
    return torch.cat(errors).mean().item()


def test_score_equals_teacher_and_full_student_per_subnet(supernet, teacher):
    score = DistillationScore(supernet, make_batches(), teacher_targets(teacher), progress=False)
    rng = random.Random(0)
    space = supernet.search_space
    subnets = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(8))]
    losses = [score(subnet) for subnet in subnets]
    assert losses == pytest.approx([plain_loss(supernet, teacher, subnet) for subnet in subnets], abs=1e-5)
    assert len(set(losses)) == len(set(subnets))  # every subnet has a loss of its own


def test_score_where_the_front_end_is_chosen(make_model, teacher):
    """Nothing of it is kept: every subnet is scored with its own channels."""
    space = replace(TINY_SPACE, conv_dim=((8, 16), (4, 16), (12, 16), *[(16,)] * 3, (10, 16)))
    elastic = make_model(LightHubertForPreTraining, search_space=space)
    score = DistillationScore(elastic, make_batches(), teacher_targets(teacher), progress=False)
    rng = random.Random(0)
    subnets = [space.smallest(), replace(space.largest(), conv_dim=space.smallest().conv_dim), space.largest()]
    subnets += [space.sample(rng) for _ in range(3)]
    losses = [score(subnet) for subnet in subnets]
    assert losses == pytest.approx([plain_loss(elastic, teacher, subnet) for subnet in subnets], abs=1e-5)
    assert len(set(losses)) == len(set(subnets))
    other = make_model(LightHubertForPreTraining, seed=3, search_space=space)
    assert score.of(other, subnets[0]) == pytest.approx(plain_loss(other, teacher, subnets[0]), abs=1e-5)
    with pytest.raises(ValueError, match="only one of the models has a choice of channels"):
        score.of(make_model(LightHubertForPreTraining), TINY_SPACE.largest())


def test_active_subnet_is_left_as_it_was(supernet, teacher):
    score = DistillationScore(supernet, make_batches(), teacher_targets(teacher), progress=False)
    supernet.set_active_subnet(supernet.search_space.largest())
    score(supernet.search_space.smallest())
    assert supernet.active_subnet == supernet.search_space.largest()


def test_group_norm_teacher_ignores_padding(supernet):
    teacher = make_teacher(norm="group")
    score = DistillationScore(supernet, make_batches(), teacher_targets(teacher), progress=False)
    subnet = supernet.search_space.default()
    assert score(subnet) == pytest.approx(plain_loss(supernet, teacher, subnet), abs=1e-5)


def test_teacher_runs_once_per_batch_however_many_subnets(supernet, teacher):
    targets, calls = teacher_targets(teacher), []

    def counted(batch):
        calls.append(batch)
        return targets(batch)

    score = DistillationScore(supernet, make_batches(), counted, progress=False)
    for _ in range(3):
        score(supernet.search_space.default())
    assert len(calls) == len(LENGTHS)


@pytest.mark.parametrize("memory_limit", [0, 5_000])
def test_cache_on_disk_gives_the_same_and_vanishes(supernet, teacher, tmp_path, memory_limit):
    in_memory = DistillationScore(supernet, make_batches(), teacher_targets(teacher), progress=False)
    on_disk = DistillationScore(
        supernet,
        make_batches(),
        teacher_targets(teacher),
        memory_limit=memory_limit,
        cache_folder=tmp_path,
        progress=False,
    )
    assert 1 <= len(list(tmp_path.rglob("*.safetensors"))) <= len(LENGTHS)
    subnet = supernet.search_space.default()
    assert on_disk(subnet) == in_memory(subnet)
    del on_disk
    assert not list(tmp_path.iterdir())


def test_limits_are_kept(supernet, teacher, tmp_path):
    targets = teacher_targets(teacher)
    with pytest.raises(ValueError, match=r"do not fit into .* GB of memory and 0 GB on disk.*cache_folder"):
        DistillationScore(supernet, make_batches(), targets, memory_limit=1000, progress=False)
    with pytest.raises(ValueError, match="do not fit"):
        DistillationScore(
            supernet, make_batches(), targets, memory_limit=0, cache_folder=tmp_path, disk_limit=1000, progress=False
        )


def test_mean_predictor_is_the_scale(supernet, teacher):
    targets = teacher_targets(teacher)
    score = DistillationScore(supernet, make_batches(), targets, progress=False)
    frames = torch.cat(
        [
            targets({"input_values": row[None, :length], "attention_mask": torch.ones(1, length)})[0]
            for batch in make_batches()
            for row, length in zip(batch["input_values"], batch["attention_mask"].sum(-1).tolist())
        ]
    )
    assert score.predicting_the_mean == pytest.approx((frames - frames.mean(0)).abs().mean().item(), abs=1e-5)


def test_another_checkpoint_with_the_same_front_end(supernet, teacher, make_model):
    score = DistillationScore(supernet, make_batches(), teacher_targets(teacher), progress=False)
    other = make_model(LightHubertForPreTraining, seed=5)
    with pytest.raises(ValueError, match="front ends differ"):
        score.of(other, supernet.search_space.default())
    other.lighthubert.feature_extractor.load_state_dict(supernet.lighthubert.feature_extractor.state_dict())
    subnet = supernet.search_space.default()
    assert score.of(other, subnet) == pytest.approx(plain_loss(other, teacher, subnet), abs=1e-5)


def test_fingerprint_tells_teachers_and_audio_apart(supernet, teacher):
    other = make_teacher(seed=9)
    batches = list(make_batches())
    scores = [
        DistillationScore(supernet, data, teacher_targets(model), progress=False)
        for data, model in ((batches, teacher), (batches, teacher), (batches[:2], teacher), (batches, other))
    ]
    prints = [score.fingerprint for score in scores]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_errors(supernet, teacher, make_model):
    with pytest.raises(ValueError, match="no validation audio"):
        DistillationScore(supernet, [], teacher_targets(teacher), progress=False)
    model = make_model(LightHubertForPreTraining, target_size=21)
    with pytest.raises(ValueError, match="the teacher the supernet was distilled from"):
        DistillationScore(model, make_batches(), teacher_targets(teacher), progress=False)

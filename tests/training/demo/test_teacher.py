"""The tiny teacher: its pieces exactly, its training in a few steps, and what it leaves on disk."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, HubertForCTC, HubertModel

pytest.importorskip("espeakng_loader")
pytest.importorskip("sklearn")

from lighthubert_hf.training.audio.batching import training_loader
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.demo import teacher as tiny_teacher
from lighthubert_hf.training.demo.teacher import SpectralClusters, log_mel, train_tiny_teacher, valid_frames
from lighthubert_hf.training.synthetic.speech import synthesise_corpus

FEW = {"pretrain_steps": 2, "ctc_steps": 2, "batch_seconds": 6}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "corpus"
    synthesise_corpus(folder, minutes=0.4, held_out_minutes=0.1, num_shards=2)
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return folder, train_tiny_teacher(corpus, folder, **FEW)


def batches_of(corpus):
    loader = training_loader([AudioSource(str(corpus), text_column="text")], batch_seconds=6, crop_seconds=6)
    return (batch for batch, _ in loader)


def test_the_folder_is_an_ordinary_model(trained):
    folder, error_rates = trained
    model = AutoModel.from_pretrained(folder)
    assert type(model) is HubertModel
    assert 0.9e6 < model.num_parameters() < 1e6
    assert AutoFeatureExtractor.from_pretrained(folder).do_normalize
    assert json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"] is True
    processor = AutoProcessor.from_pretrained(folder)
    recogniser, report = HubertForCTC.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert recogniser.config.vocab_size == len(processor.tokenizer)
    for name, tensor in recogniser.hubert.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)
    ids = processor.tokenizer("the red bird").input_ids
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids, group_tokens=False) == "the red bird"
    assert set(error_rates) == {"test_sentences", "test_voice"}
    assert all(0 < rate < 3 for rate in error_rates.values())


def test_training_is_reproducible(corpus, trained, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    train_tiny_teacher(corpus, tmp_path / "again", **FEW)
    assert torch.equal(before, torch.get_rng_state())  # others' random numbers stay what they would be
    weights = (trained[0] / "model.safetensors", tmp_path / "again" / "model.safetensors")
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_complete_teacher_is_reused(corpus, trained, monkeypatch):
    folder, error_rates = trained
    monkeypatch.setattr(tiny_teacher, "_fit", None)  # training would fail
    assert train_tiny_teacher(corpus, folder, **FEW) == error_rates
    with pytest.raises(ValueError, match=r"holds a teacher trained with .*'seed': 0.*'seed': 1.*delete it"):
        train_tiny_teacher(corpus, folder, **FEW, seed=1)


def test_what_is_in_the_way_is_left_alone(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a tiny teacher"):
        train_tiny_teacher(corpus, tmp_path, **FEW)
    with pytest.raises(ValueError, match="pretrain_steps and ctc_steps must be at least 1"):
        train_tiny_teacher(corpus, tmp_path / "new", pretrain_steps=0)
    with pytest.raises(FileNotFoundError, match="there is no data set"):
        train_tiny_teacher(tmp_path / "nothing", tmp_path / "new", **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(HubertForCTC, "save_pretrained", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_tiny_teacher(corpus, tmp_path / "model", **FEW)
    assert list(tmp_path.iterdir()) == []


def test_spectra_stand_where_the_frames_of_the_model_do(corpus):
    model = tiny_teacher._build_model(vocab_size=5, seed=0)
    batch = next(batches_of(corpus))
    spectra = log_mel(batch["input_values"])
    lengths = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1))
    assert spectra.shape[:2] == model(batch["input_values"]).logits.shape[:2]
    assert torch.equal(valid_frames(batch).sum(1), lengths)


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
def test_spectra_show_the_pitch(hertz):
    tone = torch.sin(2 * np.pi * hertz * torch.arange(4000) / 16_000)[None]
    band = log_mel(tone)[0].mean(0).argmax().item()
    mel = lambda value: 2595 * np.log10(1 + value / 700)  # noqa: E731
    expected = (mel(hertz) - mel(60)) / (mel(7600) - mel(60)) * 41 - 1
    assert abs(band - expected) <= 1


def test_targets_are_the_nearest_clusters(corpus):
    batches = list(islice(batches_of(corpus), 4))
    clusters = SpectralClusters.fit(iter(batches), seed=0)
    batch = batches[0]
    targets, valid = clusters.targets(batch), valid_frames(batch)
    assert (targets[~valid] == -100).all()
    standardised = ((log_mel(batch["input_values"]) - clusters.mean) / clusters.scale)[valid]
    distances = torch.cdist(standardised.double(), clusters.centres.double())
    taken, least = distances.gather(1, targets[valid][:, None])[:, 0], distances.min(1).values
    assert (taken <= least + 1e-4).all()  # of squares of up to 100, rounded: as good as the nearest
    assert len(targets[valid].unique()) > 20


@pytest.mark.slow  # that training learns is tested of fine-tuning and distillation, too
def test_it_learns(corpus, monkeypatch):
    """The loss falls in both parts; a real run gets to a usable recogniser."""
    losses = {}

    def record(parameters, loss_of, batches, steps, learning_rate, *, decay_from, description):
        def recorded(batch):
            loss = loss_of(batch)
            losses.setdefault(description, []).append(loss.item())
            return loss

        return fit(parameters, recorded, batches, steps, learning_rate, decay_from=decay_from, description=description)

    fit = tiny_teacher._fit
    monkeypatch.setattr(tiny_teacher, "_fit", record)
    monkeypatch.setattr(tiny_teacher, "_save", lambda *_: None)
    train_tiny_teacher(corpus, "unused", pretrain_steps=25, ctc_steps=12, batch_seconds=6)
    assert [*losses] == ["teacher, frame targets", "teacher, CTC head", "teacher, CTC"]
    for name in ("teacher, frame targets", "teacher, CTC"):
        values = losses[name]
        assert np.mean(values[-3:]) < 0.9 * np.mean(values[:3]), name

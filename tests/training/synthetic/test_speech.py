"""The synthetic corpus: what is in it, that it is reproducible, and that nothing half-written is left."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream
from lighthubert_hf.training.synthetic import speech as synthetic_speech
from lighthubert_hf.training.synthetic.espeak import speak
from lighthubert_hf.training.synthetic.speech import LEXICON, TRAINING_VOICES, UNHEARD_VOICES, synthesise_corpus

SPLITS = ("train", "validation", "test_sentences", "test_voice")
SMALL = {"minutes": 0.5, "held_out_minutes": 0.1, "num_shards": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    manifest = synthesise_corpus(folder, **SMALL)
    return folder, manifest


def rows_of(folder, split):
    from datasets import Audio, load_dataset

    stream = load_dataset(str(folder), split=split, streaming=True)
    assert isinstance(stream.features["audio"], Audio)
    return list(stream.decode(False))


def data_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


def test_splits_are_what_they_promise(corpus):
    folder, manifest = corpus
    rows = {split: rows_of(folder, split) for split in SPLITS}
    sentences = [row["text"] for split in SPLITS for row in rows[split]]
    assert len(sentences) == len(set(sentences))
    assert {word for sentence in sentences for word in sentence.split()} <= set(LEXICON)
    for split in SPLITS:
        allowed = UNHEARD_VOICES if split == "test_voice" else TRAINING_VOICES
        assert {row["voice"] for row in rows[split]} <= set(allowed)
        assert len(rows[split]) == manifest["splits"][split]["examples"]
    assert len({row["voice"] for row in rows["train"]}) >= 6
    assert len(TRAINING_VOICES) >= 8
    assert not set(TRAINING_VOICES) & set(UNHEARD_VOICES)
    assert len(list((folder / "data").glob("train-*.parquet"))) == 3
    assert json.loads((folder / "corpus.json").read_text()) == manifest


def test_length_is_as_asked(corpus):
    folder, manifest = corpus
    for split in SPLITS:
        items = list(AudioStream([AudioSource(str(folder), split, text_column="text")], repeat=False))
        seconds = sum(item["num_samples"] for item in items) / 16_000
        assert seconds == pytest.approx(manifest["splits"][split]["seconds"], abs=1e-3)
        assert 0 <= seconds - (30 if split == "train" else 6) < 5  # one utterance more at most
        assert all(0.3 < item["num_samples"] / 16_000 < 6 for item in items)


def test_the_same_seed_gives_the_same_corpus(corpus, tmp_path):
    speak("something else first", "en-us+m8")  # espeak-ng has a memory
    synthesise_corpus(tmp_path / "again", **SMALL)
    assert data_of(tmp_path / "again") == data_of(corpus[0])
    synthesise_corpus(tmp_path / "other", **SMALL, seed=1)
    texts, others = ({row["text"] for row in rows_of(folder, "train")} for folder in (corpus[0], tmp_path / "other"))
    assert len(texts & others) < len(texts) / 4


def test_a_complete_corpus_is_reused(corpus, monkeypatch):
    folder, manifest = corpus
    monkeypatch.setattr(synthetic_speech, "Speaker", None)  # speaking would fail
    assert synthesise_corpus(folder, **SMALL) == manifest


def test_what_is_in_the_way_is_left_alone(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"holds a corpus made with {'seed': 0}, asked for {'seed': 7}"):
        synthesise_corpus(corpus[0], **SMALL, seed=7)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not a synthetic corpus \(no corpus\.json\)"):
        synthesise_corpus(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"espeak-ng has no voice 'en-us\+zz9'"):
        synthesise_corpus(tmp_path / "corpus", **SMALL, unheard_voices=("en-us+zz9",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "minutes > 0"),
        ({"num_shards": 0}, "num_shards >= 1"),
        ({"voices": ()}, "at least one voice"),
        ({"unheard_voices": ("en-us+f1",)}, r"\['en-us\+f1'\] are both heard and unheard"),
    ],
)
def test_bad_parameters_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthesise_corpus(tmp_path / "corpus", **{**SMALL, **options})


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"pip install .*\[demo\]'"):
        synthesise_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_speech_differs_by_text_and_voice():
    waveform = speak("the red bird sings", "en-us+f1")
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert 0.1 < np.abs(waveform).max() <= 1
    assert len(speak("the red bird sings under a window", "en-us+f1")) > 1.4 * len(waveform)
    other = speak("the red bird sings", "en-us+m3")
    low, high = (spectrum_centre(w) for w in (other, waveform))
    assert low != pytest.approx(high, rel=0.02)


def spectrum_centre(waveform):
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return (power * np.arange(len(power))).sum() / power.sum() / len(waveform)

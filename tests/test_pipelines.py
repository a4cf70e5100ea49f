"""transformers' pipelines on saved folders and on models at hand."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    logging,
    pipeline,
)

from lighthubert_hf import (
    LightHubertForCTC,
    LightHubertForSequenceClassification,
    LightHubertModel,
    Subnet,
)

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"]
SUBNET = Subnet(48, (1, 4, 2), (96, 72, 144))


@pytest.fixture(autouse=True)
def no_complaints(caplog):
    """The pipelines log what they think wrong, a model class they do not know for one."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()
    complaints = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert not complaints


@pytest.fixture(scope="module")
def feature_extractor():
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)


@pytest.fixture(scope="module")
def ctc_folder(make_model, feature_extractor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc")
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(vocabulary)
    make_model(LightHubertForCTC, attention_window=8).extract_subnet(SUBNET).save_pretrained(folder)
    Wav2Vec2Processor(feature_extractor=feature_extractor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def audio() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(48_000, dtype=np.float32)


def greedy(folder, audio: np.ndarray) -> str:
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder)
    inputs = processor(audio, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return processor.batch_decode(model(**inputs).logits.argmax(-1))[0]


def test_processors(ctc_folder):
    processor = AutoProcessor.from_pretrained(ctc_folder)
    assert type(processor) is Wav2Vec2Processor
    assert processor.tokenizer.convert_tokens_to_ids("g") == 11
    assert AutoFeatureExtractor.from_pretrained(ctc_folder).do_normalize


def test_speech_recognition(ctc_folder, audio):
    recognise = pipeline("automatic-speech-recognition", model=str(ctc_folder))
    assert recognise.type == "ctc"
    assert type(recognise.model) is LightHubertForCTC
    expected = greedy(ctc_folder, audio)
    assert len(expected) > 10
    assert recognise(audio)["text"] == expected
    assert [out["text"] for out in recognise([audio, audio[:20_000]], batch_size=2)] == [
        expected,
        greedy(ctc_folder, audio[:20_000]),
    ]


def test_speech_recognition_with_timestamps(ctc_folder, audio):
    recognise = pipeline("automatic-speech-recognition", model=str(ctc_folder))
    chunks = recognise(audio, return_timestamps="char")["chunks"]
    assert 0 <= chunks[0]["timestamp"][0] < chunks[-1]["timestamp"][1] <= 3


def test_long_speech_in_chunks(ctc_folder, audio):
    """The windows of all layers reach less far than the stride, so that chunks give the same text."""
    long = np.concatenate([audio] * 3)
    long = (long - long.mean()) / long.std()
    recognise = pipeline("automatic-speech-recognition", model=str(ctc_folder))
    recognise.feature_extractor.do_normalize = False  # or each chunk would be normalised on its own
    whole = recognise(long)["text"]
    assert recognise(long, chunk_length_s=3.0, stride_length_s=1.0)["text"] == whole


@pytest.mark.parametrize("samples", [1, 100, 399])
def test_a_last_chunk_too_short_for_a_frame_has_no_text(ctc_folder, audio, samples):
    recognise = pipeline("automatic-speech-recognition", model=str(ctc_folder))
    recognise.feature_extractor.do_normalize = False
    chunks = {"chunk_length_s": 1, "stride_length_s": 0}
    whole = recognise(audio[:32_000], **chunks)["text"]
    assert whole
    assert recognise(audio[: 32_000 + samples], **chunks)["text"] == whole
    assert recognise(audio[: 32_000 + samples], batch_size=3, **chunks)["text"] == whole
    assert recognise(audio[:samples])["text"] == ""


def test_audio_classification(make_model, feature_extractor, audio):
    names = {0: "no", 1: "yes", 2: "maybe"}
    ids = {name: i for i, name in names.items()}
    model = make_model(LightHubertForSequenceClassification, id2label=names, label2id=ids).extract_subnet(SUBNET)
    classify = pipeline("audio-classification", model=model, feature_extractor=feature_extractor)
    found = classify(audio)
    assert {entry["label"] for entry in found} == set(names.values())
    with torch.no_grad():
        logits = model(**feature_extractor(audio, sampling_rate=16_000, return_tensors="pt")).logits[0]
    for entry in found:  # the same forward; but the pipeline has a softmax of its own
        score = logits.softmax(-1)[ids[entry["label"]]]
        assert entry["score"] == pytest.approx(score.item(), abs=1e-6)


def test_audio_classification_from_a_folder(make_model, feature_extractor, audio, tmp_path):
    make_model(LightHubertForSequenceClassification).save_pretrained(tmp_path)
    feature_extractor.save_pretrained(tmp_path)
    assert len(pipeline("audio-classification", model=str(tmp_path))(audio, top_k=1)) == 1


def test_feature_extraction(make_model, feature_extractor, audio, tmp_path):
    """This pipeline calls what turns its inputs into tensors a tokenizer; for speech that is the feature extractor."""
    model = make_model(LightHubertModel).extract_subnet(SUBNET)
    model.save_pretrained(tmp_path)
    options = {"tokenizer": feature_extractor, "tokenize_kwargs": {"sampling_rate": 16_000}, "return_tensors": True}
    for source in (model, str(tmp_path)):
        features = pipeline("feature-extraction", model=source, **options)(audio)
        with torch.no_grad():
            inputs = feature_extractor(audio, sampling_rate=16_000, return_tensors="pt")
            expected = model(**inputs).last_hidden_state
        assert features.shape == (1, 149, 48)
        assert torch.equal(features, expected)

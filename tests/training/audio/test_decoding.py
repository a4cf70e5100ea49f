import io
import math

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor

from lighthubert_hf.training.audio.decoding import AudioDecodeError, decode_audio, load_audio, normalise

from ...precision import assert_as_exact
from ..stored_speech import encode


def encoded(waveform, sampling_rate, kind="WAV", subtype=None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def sine(sampling_rate, frequency=440.0, seconds=1.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * sampling_rate)) / sampling_rate)


@pytest.mark.parametrize("sampling_rate", [8_000, 16_000, 22_050, 44_100])
def test_resampled_to_16_khz(sampling_rate):
    waveform = decode_audio(encoded(sine(sampling_rate), sampling_rate, subtype="FLOAT"), "x")
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    middle = slice(1000, -1000)  # the filter rings at the ends
    np.testing.assert_allclose(waveform[middle], sine(16_000)[middle], atol=2e-3)  # the filter's ripple, not rounding


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats(kind):
    waveform = decode_audio(encoded(sine(16_000), 16_000, kind), "x")
    assert np.corrcoef(waveform[2000:14000], sine(16_000)[2000:14000])[0, 1] > 0.99


def test_channels_are_averaged():
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 800))
    waveform = decode_audio(encoded(np.stack([left, right], 1), 16_000, subtype="FLOAT"), "x")
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-6)  # float32 of values below 0.5: 3e-8 each


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 30.0])
def test_normalised_like_the_feature_extractor(scale):
    waveform = (scale * np.random.default_rng(0).standard_normal(4_000) + 0.1).astype(np.float32)
    plain = Wav2Vec2FeatureExtractor(do_normalize=True)(waveform, sampling_rate=16_000).input_values[0]
    exact = (waveform - waveform.mean(dtype=float)) / np.sqrt(waveform.var(dtype=float) + 1e-7)
    assert normalise(waveform).dtype == np.float32
    # Taking off a mean that is larger than what remains costs digits.
    assert_as_exact(*map(torch.from_numpy, (normalise(waveform), plain, exact)), plain_limit=math.inf)


def test_silence_stays_finite():
    assert np.isfinite(normalise(np.zeros(500, dtype=np.float32))).all()


def test_paths_bytes_and_archives(tmp_path):
    import zipfile

    data = encode(0.1)
    (tmp_path / "a.flac").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside.flac", data)
    expected = decode_audio(data, "a")
    for audio in (
        str(tmp_path / "a.flac"),
        tmp_path / "a.flac",
        {"bytes": None, "path": str(tmp_path / "a.flac")},
        {"bytes": data, "path": None},
        f"zip://inside.flac::{tmp_path}/a.zip",
    ):
        np.testing.assert_array_equal(load_audio(audio), expected)


@pytest.mark.parametrize("data", [b"", b"no audio at all", encode(0.1)[:60]])
def test_what_is_no_audio_is_named(tmp_path, data):
    (tmp_path / "bad.wav").write_bytes(data)
    with pytest.raises(AudioDecodeError, match=r"bad\.wav cannot be decoded as audio") as raised:
        load_audio(tmp_path / "bad.wav")
    assert "\n" not in str(raised.value)


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(AudioDecodeError, match=r"x\.wav holds samples that are not finite"):
        decode_audio(encoded(np.array([0.0, np.nan, 1.0]), 16_000, subtype="FLOAT"), "x.wav")


@pytest.mark.parametrize("sample", [3e38, -3e38, 1e30, -32768.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_far_beyond_one_are_refused_by_name(sample, channels):
    audio = np.full((800, channels), 0.5, np.float32)
    audio[123, -1] = sample
    with pytest.raises(AudioDecodeError, match=r"x\.wav holds samples (that are not finite|as large as)") as raised:
        decode_audio(encoded(audio, 16_000, subtype="FLOAT"), "x.wav")
    assert "\n" not in str(raised.value)


def test_a_mix_that_overshoots_is_audio():
    audio = np.full(800, 3.5, np.float32)
    np.testing.assert_array_equal(decode_audio(encoded(audio, 16_000, subtype="FLOAT"), "x.wav"), audio)


def test_missing_files_and_empty_rows_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.wav"):
        load_audio(tmp_path / "nothing.wav")
    with pytest.raises(AudioDecodeError, match="neither bytes nor a path"):
        load_audio({"bytes": None, "path": None})


def test_a_file_without_samples_is_empty():
    assert decode_audio(encoded(np.zeros(0), 8_000), "x").shape == (0,)

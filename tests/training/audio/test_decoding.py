import io
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

from lighthubert_hf.training.audio.decoding import AudioDecodeError, Recording, load_audio, normalise, open_regular

from ...examples import examples
from ...precision import assert_as_exact
from ..stored_speech import encode


def encoded(waveform, sampling_rate, kind="WAV", subtype=None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decode_audio(data: bytes, name: str) -> np.ndarray:
    return Recording(data, name).read()[0]


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


def flac_of_unknown_length(waveform, sampling_rate) -> bytes:
    """The count of samples in the header is 0, as encoders write it that do not know the end."""
    data = bytearray(encoded(waveform, sampling_rate, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def test_flac_of_unknown_length_is_read():
    noise = 0.1 * np.random.default_rng(0).standard_normal((100_000, 2))
    known, unknown = (
        Recording(make(noise, 44_100), "x") for make in (lambda *a: encoded(*a, "FLAC"), flac_of_unknown_length)
    )
    assert unknown.num_samples == known.num_samples == round(100_000 * 16_000 / 44_100)
    np.testing.assert_array_equal(unknown.read()[0], known.read()[0])
    np.testing.assert_array_equal(unknown.read(20_000, 21_000)[0], known.read(20_000, 21_000)[0])


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data(), kind=st.sampled_from(["WAV", "FLAC", "OGG"]))
def test_a_part_is_what_the_whole_holds_there(data, kind):
    """Whatever the rate, and however the blocks fall."""
    sampling_rate = data.draw(st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 44_101]))
    if kind == "OGG" and sampling_rate == 44_101:
        sampling_rate = 44_100
    num_frames = data.draw(st.integers(sampling_rate // 2, sampling_rate * 2))
    noise = 0.1 * np.random.default_rng(num_frames).standard_normal((num_frames, data.draw(st.integers(1, 3))))
    recording = Recording(encoded(noise, sampling_rate, kind), "x")
    whole, _ = recording.read()
    assert abs(len(whole) - recording.num_samples) <= 1
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    part, _ = recording.read(start, stop)
    assert len(part) == stop - start
    np.testing.assert_allclose(part, whole[start:stop], atol=2e-6)


def test_blocks_change_nothing():
    import soxr

    noise = (0.1 * np.random.default_rng(0).standard_normal(300_000)).astype(np.float32)
    waveform = decode_audio(encoded(noise, 44_100, subtype="FLOAT"), "x")
    np.testing.assert_allclose(waveform, soxr.resample(noise, 44_100, 16_000), atol=1e-6)


@pytest.mark.parametrize("sampling_rate", [1, 999, 768_001, 2**31 - 1])
def test_rates_that_no_speech_has_are_refused(sampling_rate):
    data = bytearray(encoded(np.zeros(16_000), 16_000))
    data[24:28] = sampling_rate.to_bytes(4, "little")
    with pytest.raises(AudioDecodeError, match=r"x\.wav says that its sampling rate is .* rates from 1000 to 768000"):
        Recording(bytes(data), "x.wav")


@pytest.mark.parametrize(
    "array", [{"sampling_rate": None}, {"sampling_rate": "16k"}, {"array": [["a"]]}, {"array": 3}]
)
def test_arrays_that_are_no_audio_are_refused(array):
    with pytest.raises(AudioDecodeError, match="<an array>"):
        load_audio({"array": [0.0] * 100, "sampling_rate": 16_000, **array})


def test_arrays_are_read():
    both = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 800))
    waveform = load_audio({"array": both.tolist(), "sampling_rate": 16_000})
    np.testing.assert_allclose(waveform, both.mean(0), atol=1e-6)
    assert len(load_audio({"array": both[0], "sampling_rate": 8_000})) == 1600


def test_memory_follows_the_length_of_the_result():
    """One minute of eight channels at 48 kHz takes 92 MB as it is stored and 3.8 MB as a model hears it."""
    data = encoded(np.zeros((48_000 * 60, 8), dtype=np.int16), 48_000, "FLAC")
    code = (
        "import sys, resource, lighthubert_command\n"  # as the command starts: without torch, which takes seconds
        "from lighthubert_hf.training.audio.decoding import Recording\n"
        "data = sys.stdin.buffer.read()\n"
        "Recording(data, 'x').read(0, 16_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(Recording(data, 'x').read()[0]) == 16_000 * 60\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(done.stdout) < 20_000  # kB; the stored samples are 92,000


@pytest.mark.parametrize("channel", [0, 1])
def test_one_channel_is_heard_alone(channel):
    both = np.random.default_rng(0).uniform(-0.5, 0.5, (800, 2)).astype(np.float32)
    waveform, cancels = Recording(encoded(both, 16_000, subtype="FLOAT"), "x").read(channel=channel)
    np.testing.assert_array_equal(waveform, both[:, channel])
    assert not cancels


def test_a_channel_that_is_not_there_is_named():
    with pytest.raises(AudioDecodeError, match=r"x has 1 channels, so there is no channel 1"):
        Recording(encoded(np.zeros(800), 16_000), "x").read(channel=1)


@pytest.mark.parametrize(
    ("second", "expected"), [(-1.0, True), (-0.97, True), (0.0, False), (1.0, False), (-0.5, False)]
)
def test_channels_that_cancel_are_noticed(second, expected):
    one = 0.3 * np.random.default_rng(0).standard_normal(8_000)
    recording = Recording(encoded(np.stack([one, second * one], 1), 16_000, subtype="FLOAT"), "x")
    assert recording.read()[1] is expected
    assert recording.read(channel=0)[1] is False


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", tmp_path):
        with pytest.raises(AudioDecodeError, match="is no file: it is a folder, a device or a pipe"):
            open_regular(path)


@settings(max_examples=examples(200))
@given(st.integers(42, 10**6), st.integers(0, 7))
def test_a_flipped_bit_of_a_flac_is_an_error_or_changes_nothing(place, bit):
    """Its frames have checksums; the 42 bytes before say rate and length."""
    data = encode(0.3)
    damaged = bytearray(data)
    damaged[42 + (place - 42) % (len(data) - 42)] ^= 1 << bit
    try:
        found = decode_audio(bytes(damaged), "x")
    except AudioDecodeError:
        return
    np.testing.assert_array_equal(found, decode_audio(data, "x"))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_damaged_page_of_an_ogg_is_not_left_out_without_a_word(subtype):
    noise = 0.1 * np.random.default_rng(0).standard_normal(6 * 16_000)
    data = bytearray(encoded(noise, 16_000, "OGG", subtype))
    pages = [place for place in range(len(data)) if data[place : place + 4] == b"OggS"]
    data[pages[len(pages) // 2] + 200] ^= 1
    with pytest.raises(AudioDecodeError, match=r"x is damaged: [\d.]+ s of it are not there"):
        decode_audio(bytes(data), "x")

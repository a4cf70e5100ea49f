"""Long recordings in segments, and channels: all of a recording is heard, in bounded memory, resumable."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream

from ...examples import examples


def _ramp(folder, seconds, name="long.flac", sampling_rate=16_000, channels=1):
    """A recording whose samples say where they are; further channels are the negative of the first."""
    ramp = np.linspace(0, 0.9, round(seconds * sampling_rate))
    folder.mkdir(exist_ok=True)
    samples = np.stack([ramp if number == 0 else -ramp for number in range(channels)], 1)
    soundfile.write(folder / name, samples, sampling_rate, subtype="PCM_24")
    return AudioSource(folder)


def _places(stream, seconds, number=None):
    """Where in the recording each example begins, in seconds."""
    found = []
    for example in stream:
        found.append(float(example["input_values"][0]) / 0.9 * seconds)
        if len(found) == number:
            break
    return found


def test_every_epoch_hears_every_part(tmp_path):
    source = _ramp(tmp_path / "set", 21)
    options = {"crop_seconds": 2.0, "normalised": False, "shuffle_window": 100}
    places = _places(AudioStream([source], **options), 21, 50)
    for epoch in range(5):
        assert sorted(int(place / 2.1) for place in places[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert len(set(places)) == 50
    assert places[:10] != sorted(places[:10])


@settings(max_examples=examples(15), deadline=None)
@given(data=st.data())
def test_segments_resume(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "segments"
    for number, seconds in enumerate((3, 0.5, 9)):
        source = _ramp(folder, seconds, f"{number}.flac")
    options = {
        "crop_seconds": 1.0,
        "seed": data.draw(st.integers(0, 99)),
        "shuffle_window": data.draw(st.integers(1, 9)),
    }
    stop = data.draw(st.integers(1, 30))
    run = [item for item, _ in zip(AudioStream([source], **options).iterate(), range(40), strict=False)]
    state = json.loads(json.dumps(run[stop][1]))
    rest = [item for item, _ in zip(AudioStream([source], **options).iterate(state), range(39 - stop), strict=False)]
    for (one, _), (other, _) in zip(run[stop + 1 :], rest, strict=True):
        assert one["id"] == other["id"]
        np.testing.assert_array_equal(one["input_values"], other["input_values"])


@settings(max_examples=examples(30), deadline=None)
@given(seconds=st.floats(0.5, 12), crop=st.floats(0.5, 4))
def test_segments_cover_a_recording_once(tmp_path_factory, seconds, crop):
    source = _ramp(tmp_path_factory.mktemp("set"), seconds)
    stream = AudioStream([source], crop_seconds=crop, repeat=False, shuffle=False, normalised=False)
    examples = list(stream)
    total, length = round(seconds * 16_000), round(crop * 16_000)
    assert len(examples) == max(1, total // length)
    assert all(example["num_samples"] == min(length, total) for example in examples)
    begins = [example["input_values"][0] for example in examples]
    assert begins == sorted(begins)


@pytest.mark.parametrize("minutes", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_long_recording_is_all_used_in_bounded_memory(tmp_path, minutes):
    """44.1 kHz stereo, as recorders make it; six minutes are 127 MB when they are decoded, an hour 1.3 GB."""
    code = (
        "import resource, sys, lighthubert_command\n"  # as the command starts: without torch, which takes seconds
        "from lighthubert_hf.training.audio.sources import AudioSource\n"
        "from lighthubert_hf.training.audio.streaming import AudioStream\n"
        "import soundfile, soxr, datasets, pyarrow, aiohttp\n"
        "stream = AudioStream([AudioSource(sys.argv[1])], crop_seconds=15.6, repeat=False, num_workers=2)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "seconds = sum(example['num_samples'] / 16_000 for example in stream)\n"
        "print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    block = (0.1 * np.random.default_rng(0).standard_normal((44_100 * 60, 2)) * 2**15).astype(np.int16)
    (tmp_path / "set").mkdir()
    with soundfile.SoundFile(tmp_path / "set" / "hour.wav", "w", 44_100, 2, "PCM_16") as file:
        for _ in range(minutes):
            file.write(block)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    seconds, kilobytes = done.stdout.split()
    assert float(seconds) > 60 * minutes - 15.6
    assert int(kilobytes) < 100_000


def test_channels_as_examples_of_their_own(tmp_path, caplog):
    source = _ramp(tmp_path / "set", 1, channels=2)
    options = {"repeat": False, "shuffle": False, "normalised": False}
    (mixed,) = AudioStream([source], **options)
    assert np.abs(mixed["input_values"]).max() < 1e-3
    assert "cancel each other" in caplog.text
    assert "channel=split" in caplog.text
    caplog.clear()
    for number, sign in ((0, 1), (1, -1)):
        (one,) = AudioStream([AudioSource(source.path, channel=number)], **options)
        assert one["input_values"][-1] == pytest.approx(0.9 * sign, abs=1e-3)
    both = list(AudioStream([AudioSource(source.path, channel="split")], **options))
    assert [example["id"] for example in both] == ["0:0:0:c0", "0:0:0:c1"]
    assert [round(float(example["input_values"][-1]), 2) for example in both] == [0.9, -0.9]
    assert "cancel" not in caplog.text


def test_split_channels_are_cut_into_segments_too(tmp_path):
    source = _ramp(tmp_path / "set", 4, channels=2)
    stream = AudioStream([AudioSource(source.path, channel="split")], repeat=False, shuffle=False, crop_seconds=2)
    assert [example["id"] for example in stream] == ["0:0:0:c0:0", "0:0:0:c0:1", "0:0:0:c1:0", "0:0:0:c1:1"]


@pytest.mark.parametrize("channel", ["left", -1, True, 1.5, None])
def test_channels_that_make_no_sense_are_named(tmp_path, channel):
    with pytest.raises(ValueError, match="must be 'mean', 'split' or a number from 0"):
        AudioSource(str(tmp_path), channel=channel)


def test_remote_recordings_are_read_in_segments_too(faulty_server, tmp_path):
    """Parts of them are fetched, a fault of the network on the way is one, and channels are split."""
    _ramp(tmp_path / "set", 21, channels=2)
    faulty_server.folder = tmp_path / "set"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": f"{faulty_server.url}/long.flac"}))
    source = AudioSource(tmp_path / "rows.jsonl", allow_paths=(faulty_server.url,), channel="split")
    options = {"crop_seconds": 2.0, "normalised": False, "repeat": False, "shuffle": False, "retry_seconds": 0.001}
    faulty_server.faults.extend(["error", "drop", "error"])
    found = list(AudioStream([source], **options))
    assert len(found) == 20
    assert {example["id"].split(":")[3] for example in found} == {"c0", "c1"}
    starts = [float(abs(example["input_values"][0])) / 0.9 * 21 for example in found]
    assert sorted(int(start / 2.1) for start in starts) == sorted([*range(10)] * 2)
    assert len(list(AudioStream([AudioSource(source.path, allow_paths=source.allow_paths)], repeat=False))) == 1
    faulty_server.faults.extend(["error"] * 100)
    with pytest.raises(ConnectionError, match=r"reading .*long\.flac failed 3 times in a row"):
        list(AudioStream([source], max_retries=2, **options))

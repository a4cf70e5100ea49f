"""The resumable stream: exactly once per epoch, over processes, interruptions, broken files and network faults."""

import csv
import io
import json
import logging
import random
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.audio.decoding import normalise
from lighthubert_hf.training.audio.reading import ShuffledReader
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream

from ...examples import examples
from ..stored_speech import ROWS_PER_SHARD, encode, write_parquet_shards

NUM_ROWS = sum(ROWS_PER_SHARD)


def make_stream(path, **options):
    options = {"shuffle_window": 10, "num_open_shards": 2, **options}
    return AudioStream([AudioSource(str(path), text_column="text")], **options)


def texts_of(stream, number=None, state=None):
    """Texts of the next examples, and the state after them as it comes back from a file."""
    run = list(islice(stream.iterate(state), number))
    return [example["text"] for example, _ in run], json.loads(json.dumps(run[-1][1]))


def test_items_are_what_a_model_takes(shards):
    example = next(iter(make_stream(shards[0], shuffle=False)))
    assert set(example) == {"id", "path", "input_values", "text", "num_samples"}
    assert (example["id"], example["text"]) == ("0:0:0", "0-0")
    values = example["input_values"]
    assert values.dtype == np.float32
    assert values.shape == (example["num_samples"],)
    assert abs(values.mean(dtype=float)) < 1e-5  # rounding of a mean off by eps of the largest sample
    assert abs(values.std(dtype=float) - 1) < 1e-4  # what 1e-7 under the root does to synthetic noise


def test_all_columns_and_waveforms_as_they_are(shards):
    source = AudioSource(shards[0], all_columns=True)
    example = next(iter(AudioStream([source], shuffle=False, normalised=False)))
    assert example["columns"] == {"text": "0-0"}
    waveform, _ = soundfile.read(io.BytesIO(encode(len(example["input_values"]) / 16_000)), dtype="float32")
    np.testing.assert_array_equal(example["input_values"], waveform)


def test_unshuffled_pass_reads_rows_as_stored(shards):
    folder, texts = shards
    assert texts_of(make_stream(folder, shuffle=False, repeat=False))[0] == texts


@settings(max_examples=examples(12), deadline=None)
@given(seed=st.integers(0, 2**31), window=st.integers(1, 40), opened=st.integers(1, 7), world_size=st.integers(1, 9))
def test_every_row_once_per_epoch_over_all_processes(shards, seed, window, opened, world_size):
    # Nine processes are more than there are shards.
    folder, texts = shards
    seen = Counter()
    for rank in range(world_size):
        options = {"seed": seed, "shuffle_window": window, "num_open_shards": opened, "rank": rank}
        stream = make_stream(folder, **options, world_size=world_size, repeat=False)
        seen.update(texts_of(stream)[0])
    assert seen == Counter(texts)


def test_epochs_and_seeds_differ_and_repeat(shards):
    folder, texts = shards
    first_run, _ = texts_of(make_stream(folder, seed=1), 2 * NUM_ROWS)
    epochs = first_run[:NUM_ROWS], first_run[NUM_ROWS:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(texts)
    assert epochs[0] != epochs[1]
    assert first_run == texts_of(make_stream(folder, seed=1), 2 * NUM_ROWS)[0]
    assert epochs[0] != texts_of(make_stream(folder, seed=2), NUM_ROWS)[0]


def test_shuffling_mixes_shards(shards):
    texts, _ = texts_of(make_stream(shards[0], num_open_shards=4, shuffle_window=30), 20)
    assert len({text.split("-")[0] for text in texts}) >= 3


@settings(max_examples=examples(12), deadline=None)
@given(data=st.data())
def test_resuming_twice_changes_nothing(shards, data):
    folder, _ = shards
    options = {
        "seed": data.draw(st.integers(0, 1000)),
        "shuffle_window": data.draw(st.integers(1, 80)),
        "num_open_shards": data.draw(st.integers(1, 6)),
        "world_size": (world_size := data.draw(st.sampled_from([1, 2, 7]))),
        "rank": data.draw(st.integers(0, world_size - 1)),
    }
    total = 2 * NUM_ROWS // world_size + 5
    expected, _ = texts_of(make_stream(folder, **options), total)
    first = data.draw(st.integers(1, total - 2))
    second = data.draw(st.integers(1, total - first - 1))
    texts, state = texts_of(make_stream(folder, num_workers=data.draw(st.sampled_from([0, 2])), **options), first)
    for number in (second, total - first - second):
        more, state = texts_of(make_stream(folder, **options), number, state)
        texts += more
    assert texts == expected


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_another_number_of_processes_begins_the_epoch_again_and_says_what_comes_twice(shards, before, after):
    folder, texts = shards
    states, heard = [], Counter()
    for rank in range(before):
        found, state = texts_of(make_stream(folder, rank=rank, world_size=before), len(texts) // before + 5)
        states.append(state)
        heard.update(found)
    streams = [make_stream(folder, rank=rank, world_size=after) for rank in range(after)]
    dealt = [stream.dealt_anew(states) for stream in streams]
    assert [state["sources"][0]["epoch"] for state, _ in dealt] == [
        min(s["sources"][0]["epoch"] for s in states)
    ] * after
    once_each = Counter()
    for stream, (state, _) in zip(streams, dealt, strict=True):
        epoch = state["sources"][0]["epoch"]
        for example, place in stream.iterate(state):
            if place["sources"][0]["epoch"] != epoch:
                break
            once_each[example["text"]] += 1
    assert once_each == Counter(texts)
    assert sum(state["counts"]["seen"] for state, _ in dealt) == sum(heard.values())
    assert 0 < dealt[0][1] <= sum(heard.values())


def test_the_state_is_small_and_holds_no_audio(shards):
    _, state = texts_of(make_stream(shards[0], shuffle_window=1000), 40)
    assert len(json.dumps(state)) < 3000


def test_resuming_reads_at_most_a_window_again(shards, monkeypatch):
    """Rows before the window are skipped by row group; so a late resume costs no more than an early one."""
    folder, _ = shards
    reads = []
    original = ShuffledReader._read_window
    monkeypatch.setattr(ShuffledReader, "_read_window", lambda *args: reads.append(original(*args)) or reads[-1])
    _, state = texts_of(make_stream(folder), 55)
    reads.clear()
    texts_of(make_stream(folder), 1, state)
    assert len(reads) == 1


def test_a_state_of_other_settings_is_refused(shards, tmp_path):
    _, state = texts_of(make_stream(shards[0], seed=1), 3)
    with pytest.raises(ValueError, match="seed=1, this one has 2"):
        next(make_stream(shards[0], seed=2).iterate(state))
    write_parquet_shards(tmp_path, rows_per_shard=(3, 3))
    with pytest.raises(ValueError, match="num_shards"):
        next(make_stream(tmp_path, seed=1).iterate(state))


def test_decoding_threads_change_nothing(shards):
    alone, threaded = (make_stream(shards[0], num_workers=n, crop_seconds=0.3) for n in (0, 3))
    for (one, state), (other, other_state) in islice(zip(alone.iterate(), threaded.iterate(), strict=False), 90):
        assert state == other_state
        np.testing.assert_array_equal(one["input_values"], other["input_values"])


def test_fewer_shards_than_processes_warns(shards, caplog):
    make_stream(shards[0], world_size=6)
    assert "5 shards for 6 processes" in caplog.text


def test_a_process_without_rows_is_an_error(tmp_path):
    write_parquet_shards(tmp_path, rows_per_shard=(2,))
    with pytest.raises(ValueError, match="no rows for process 2 of 3"):
        next(iter(make_stream(tmp_path, rank=2, world_size=3)))


# Sources


def test_weights_set_the_mixture_and_resume(shards, tmp_path):
    write_parquet_shards(tmp_path, rows_per_shard=(6, 6))
    sources = [
        AudioSource(shards[0], text_column="text", weight=3),
        AudioSource("nowhere/to/be/found", weight=0),
        AudioSource(str(tmp_path), weight=1),
    ]
    stream = AudioStream(sources, shuffle_window=5)
    run = list(islice(stream.iterate(), 400))
    share = sum(example["id"].startswith("0:") for example, _ in run) / len(run)
    assert 0.68 < share < 0.82
    for source, size in ((0, NUM_ROWS), (1, 12)):  # each source goes through epochs of its own
        ids = [example["id"] for example, _ in run if example["id"].startswith(f"{source}:")]
        assert len(set(ids[:size])) == size
    resumed = AudioStream(sources, shuffle_window=5).iterate(json.loads(json.dumps(run[122][1])))
    assert [example["id"] for example, _ in islice(resumed, 100)] == [example["id"] for example, _ in run[123:223]]


def test_a_single_pass_reads_all_sources(shards, tmp_path):
    write_parquet_shards(tmp_path, rows_per_shard=(4,))
    stream = AudioStream([AudioSource(shards[0]), AudioSource(str(tmp_path))], repeat=False)
    assert len(list(stream)) == NUM_ROWS + 4


def _write_folder(folder, names):
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode(0.2, seed=number, kind=name.rsplit(".")[-1].upper()))
    return [f"text of {name}" for name in names]


def _audio_folder(folder):
    texts = _write_folder(folder, ["a.wav", "b.flac", "c.ogg"])
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((text.split()[-1], text) for text in texts)])
    return AudioSource(str(folder), text_column="text"), texts


def _plain_audio_files(folder):
    texts = _write_folder(folder, ["a.wav", "b.wav"])
    return AudioSource(f"{folder}/*.wav"), [None for _ in texts]


def _webdataset(folder):
    texts = _write_folder(folder, ["a.wav", "b.wav", "c.wav", "d.wav"])
    for text in texts:
        name = text.split()[-1]
        (folder / name.replace("wav", "txt")).write_text(text)
        with tarfile.open(folder / f"{'ab' if name[0] in 'ab' else 'cd'}.tar", "a") as tar:
            for member in (name, name.replace("wav", "txt")):
                tar.add(folder / member, member)
    for path in folder.glob("*.wav"):
        path.unlink()
        path.with_suffix(".txt").unlink()
    return AudioSource(str(folder), text_column="txt"), texts


def _parquet_without_features(folder):
    texts = write_parquet_shards(folder, rows_per_shard=(3, 2), features=False)
    return AudioSource(f"{folder}/data/*.parquet", text_column="text"), texts


@pytest.mark.parametrize("make", [_audio_folder, _plain_audio_files, _webdataset, _parquet_without_features])
def test_formats(tmp_path, make):
    source, texts = make(tmp_path / "set")
    stream = AudioStream([source], repeat=False)
    run = list(stream.iterate())
    assert sorted(str(example["text"]) for example, _ in run) == sorted(map(str, texts))
    for stop in range(len(run) - 1):
        rest = [example["id"] for example, _ in stream.iterate(json.loads(json.dumps(run[stop][1])))]
        assert rest == [example["id"] for example, _ in run[stop + 1 :]]


def test_torchcodec_is_never_imported(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # importing it fails
    assert (
        len(list(AudioStream([_webdataset(tmp_path / "w")[0], AudioSource(shards[0])], repeat=False))) == 4 + NUM_ROWS
    )


def test_a_program_may_end_in_the_middle_of_a_stream(shards):
    """Of one stream that reads ahead in threads and of one that does not."""
    code = (
        "import lighthubert_command\n"  # as the command starts: without transformers, which takes seconds
        "from lighthubert_hf.training.audio.batching import *\n"
        f"sources, streams = [AudioSource({shards[0]!r})], []\n"
        "for number in (0, 1):\n"
        "    loader = training_loader(sources, batch_seconds=1, crop_seconds=1, num_workers=number)\n"
        "    streams.append(iter(loader))\n"
        "    next(streams[-1])\n"
        "print('done')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({"path": "/no/such/folder"}, FileNotFoundError, "there is no data set /no/such/folder; check the path"),
        ({"path": "no_such/folder"}, FileNotFoundError, "there is no data set no_such/folder here, and "),
        ({"split": "tset"}, ValueError, r"Bad split: tset\. Available splits: \['train'\]"),
        ({"audio_column": "sound"}, ValueError, r"no column 'sound'; it has \['audio', 'text'\]"),
        ({"text_column": "words"}, ValueError, r"no column 'words' for the text; it has \['audio', 'text'\]"),
        ({"path": "x/*.parquet"}, FileNotFoundError, r"there is no data set x/\*\.parquet; check the path"),
        ({"path": "x/*.zip"}, ValueError, "must be parquet, tar or audio files"),
        ({"path": "/no/such/*.parquet"}, (ValueError, FileNotFoundError), "/no/such"),
        ({"weight": -1}, ValueError, "weight .* must be a number >= 0, got -1"),
    ],
)
def test_bad_sources_are_named(shards, monkeypatch, source, error, message):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message) as raised:
        AudioStream([AudioSource(**{"path": shards[0], **source})])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"shuffle_window": 0}, "shuffle_window"),
        ({"crop_seconds": 0.01}, "crop_seconds 0.01 is below min_seconds"),
    ],
)
def test_bad_options_are_named(shards, options, message):
    with pytest.raises(ValueError, match=message):
        make_stream(shards[0], **options)


# Filters, crops, broken files


def _folder_with(folder, **files):
    folder.mkdir()
    for name, data in files.items():
        (folder / f"{name}.flac").write_bytes(data)
    return AudioSource(str(folder))


def test_broken_files_are_skipped_counted_and_logged(tmp_path, caplog):
    files = {f"good{i}": encode(0.2, seed=i) for i in range(38)}
    files |= {"broken": b"this is no audio", "cut": encode(0.2)[:100], "short": encode(0.01), "long": encode(0.9)}
    source = _folder_with(tmp_path / "set", **files)
    examples = list(AudioStream([source], repeat=False, max_seconds=0.5, max_broken_share=0.1))
    assert len(examples) == 38
    for name in ("broken.flac", "cut.flac"):
        assert f"set/{name}" in caplog.text
    with pytest.raises(ValueError, match=r"more than 4\.0% of .* \(42 seen, 2 broken, 1 too short, 1 too long\)"):
        list(AudioStream([source], repeat=False, max_seconds=0.5, max_broken_share=0.04))


def test_an_endless_stream_of_broken_files_stops(tmp_path):
    files = {f"good{i}": encode(0.2, seed=i) for i in range(8)} | {"broken": b"no audio", "empty": b""}
    with pytest.raises(ValueError, match=r"more than 5\.0%"):
        list(islice(AudioStream([_folder_with(tmp_path / "set", **files)]), 1000))


@pytest.mark.parametrize("repeat", [True, False])
def test_a_source_without_usable_examples_stops(tmp_path, repeat):
    source = _folder_with(tmp_path / "set", short=encode(0.05), shorter=encode(0.01))
    with pytest.raises(ValueError, match=r"gives no usable example .* too short"):
        list(AudioStream([source], repeat=repeat))


def test_counts_go_on_after_a_resume(tmp_path):
    files = {f"good{i}": encode(0.2, seed=i) for i in range(20)} | {f"short{i}": encode(0.01) for i in range(5)}
    stream = AudioStream([_folder_with(tmp_path / "set", **files)], seed=3)
    run = [state["counts"] for _, state in islice(stream.iterate(), 40)]
    state = next(islice(stream.iterate(), 9, None))[1]
    assert [state["counts"] for _, state in islice(stream.iterate(state), 30)] == run[10:]
    assert run[-1]["too_short"] > 5


def test_crops_depend_on_seed_epoch_and_example(tmp_path):
    impulse = np.zeros(16_000)
    impulse[8_000] = 1.0  # in the middle, so that it is in every crop and shows where the crop began
    data = io.BytesIO()
    soundfile.write(data, impulse, 16_000, format="FLAC")
    source = _folder_with(tmp_path / "set", a=data.getvalue(), b=data.getvalue())

    def starts(seed):
        found = []
        for example in islice(AudioStream([source], seed=seed, crop_seconds=0.6), 12):
            start = 8_000 - int(example["input_values"].argmax())
            expected = normalise(impulse.astype(np.float32)[start : start + 9_600])
            np.testing.assert_allclose(example["input_values"], expected, atol=1e-5)  # the same code, on a crop
            found.append(start)
        return found

    assert len(set(starts(0))) == 12  # two files in six epochs
    assert starts(0) == starts(0)
    assert starts(0) != starts(1)


def test_a_truncated_shard_is_named(tmp_path):
    write_parquet_shards(tmp_path, rows_per_shard=(8, 8))
    path = sorted((tmp_path / "data").iterdir())[1]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"reading row 0 of shard 1 of .* failed .*repair or remove"):
        list(make_stream(tmp_path, shuffle=False, repeat=False))


# Network faults


@pytest.fixture
def remote(faulty_server):
    names = sorted(path.name for path in faulty_server.folder.iterdir())
    return AudioSource(tuple(f"{faulty_server.url}/{name}" for name in names), text_column="text")


@pytest.mark.parametrize("fault", ["drop", "error"])
def test_network_faults_are_retried_from_where_they_struck(shards, faulty_server, remote, caplog, fault):
    options = {"seed": 5, "shuffle_window": 10, "num_open_shards": 2}
    stream = AudioStream([remote], retry_seconds=0.001, **options)
    rng = random.Random(0)
    texts = []
    for example, _ in islice(stream.iterate(), 2 * NUM_ROWS):
        texts.append(example["text"])
        if rng.random() < 0.3 and not faulty_server.faults:
            faulty_server.faults.extend([fault] * rng.randint(1, 3))
    assert texts == texts_of(make_stream(shards[0], **options), 2 * NUM_ROWS)[0]
    assert "retry 2 of 5" in caplog.text


def test_remote_streams_resume(shards, remote):
    stream = AudioStream([remote], shuffle_window=10, num_open_shards=2)
    texts, state = texts_of(stream, 30)
    more, _ = texts_of(stream, 50, state)
    assert texts + more == texts_of(make_stream(shards[0]), 80)[0]


def test_faults_that_stay_are_an_error(faulty_server, remote):
    stream = AudioStream([remote], max_retries=2, retry_seconds=0.001)
    faulty_server.faults.extend(["error"] * 100)
    with pytest.raises(ConnectionError, match=r"reading row 0 of shard \d of .* failed 3 times in a row"):
        next(iter(stream))


def test_faults_while_opening_are_retried(faulty_server, remote, caplog):
    faulty_server.faults.extend(["error"] * 2)
    assert len(list(AudioStream([remote], repeat=False, retry_seconds=0.001))) == NUM_ROWS
    assert "opening" in caplog.text
    with caplog.at_level(logging.ERROR), pytest.raises(ConnectionError, match=r"none\.parquet"):
        AudioStream([AudioSource(f"{faulty_server.url}/none.parquet")], max_retries=1, retry_seconds=0.001)


def test_remote_audio_files_are_retried_too(faulty_server, tmp_path):
    """Rows that hold only a URL: the file is fetched when the row is decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    faulty_server.folder = tmp_path
    (tmp_path / "a.flac").write_bytes(encode(0.2))
    rows = [{"audio": {"bytes": None, "path": f"{faulty_server.url}/{name}"}} for name in ("a.flac", "missing.flac")]
    schema = pa.schema({"audio": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet")
    source = AudioSource(f"{tmp_path}/*.parquet", allow_paths=(faulty_server.url,))
    stream = AudioStream([source], repeat=False, max_broken_share=0.5, retry_seconds=0.001)
    faulty_server.faults.extend(["error", "drop"])
    ((example, _),) = stream.iterate()
    assert example["num_samples"] == 3200

"""Manifests as people have them, each read as it is meant."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.audio.examples import read_examples, transcript
from lighthubert_hf.training.audio.manifests import BadRow, Manifest, read_manifests
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream

from ...examples import examples
from ..stored_speech import encode

TEXTS = {"a.wav": "Grüße, «мир»", "b.wav": "null", "c.wav": "007", "d.wav": 'sie sagte "ja"'}


@pytest.fixture
def clips(tmp_path):
    """A folder with a recording for each text, of 0.3, 0.4, … seconds."""
    folder = tmp_path / "my [clean] data"
    folder.mkdir()
    for number, name in enumerate(TEXTS):
        (folder / name).write_bytes(encode(0.3 + 0.1 * number, seed=number, kind="WAV"))
    return folder


def _read(source, **options):
    stream = AudioStream([source], repeat=False, shuffle=False, **options)
    return {example["text"]: example for example in stream}


def _csv(folder, delimiter=","):
    with open(folder / "train.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([("path", "text"), *TEXTS.items()])
    return AudioSource(folder, text_column="text")


def _csv_with_semicolons(folder):
    return _csv(folder, ";")


def _common_voice(folder):
    (folder / "clips").mkdir()
    for name in TEXTS:
        (folder / name).rename(folder / "clips" / name)
    rows = [("client_id", "path", "sentence"), *((f"c{n}", *item) for n, item in enumerate(TEXTS.items()))]
    (folder / "train.tsv").write_text("\n".join(map("\t".join, rows)) + "\n", encoding="utf-8")
    return AudioSource(folder, text_column="sentence")


def _json_lines(folder):
    lines = [json.dumps({"audio_filepath": str(folder / name), "text": text}) for name, text in TEXTS.items()]
    (folder / "m.jsonl").write_text("\n".join(["", *lines, ""]), encoding="utf-8")
    return AudioSource(folder / "m.jsonl", text_column="text", audio_column="audio_filepath")


def _json_list(folder):
    (folder / "train.json").write_text(json.dumps([{"audio": n, "text": t} for n, t in TEXTS.items()]))
    return AudioSource(folder, text_column="text")


def _metadata(folder, suffix, delimiter=None):
    with open(folder / f"metadata.{suffix}", "w", newline="", encoding="utf-8") as file:
        if delimiter is None:
            file.writelines(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in TEXTS.items())
        elif delimiter == "\t":
            file.writelines("\t".join(row) + "\n" for row in [("file_name", "text"), *TEXTS.items()])
        else:
            csv.writer(file).writerows([("file_name", "text"), *TEXTS.items()])
    return AudioSource(folder, text_column="text")


def _metadata_csv(folder):
    return _metadata(folder, "csv", ",")


def _metadata_tsv(folder):
    return _metadata(folder, "tsv", "\t")


def _metadata_jsonl(folder):
    return _metadata(folder, "jsonl")


def _kaldi(folder):
    (folder / "wav.scp").write_text("".join(f"u-{name} {folder}/{name}\n" for name in TEXTS), encoding="utf-8")
    (folder / "text").write_text("".join(f"u-{n} {t}\n" for n, t in TEXTS.items()), encoding="utf-8")
    return AudioSource(folder, text_column="text")


def _in_memory(folder):
    from datasets import Dataset

    columns = {"audio": [str(folder / name) for name in TEXTS], "text": list(TEXTS.values())}
    return AudioSource(Dataset.from_dict(columns), text_column="text")


def _in_memory_audio(folder):
    from datasets import Audio

    source = _in_memory(folder)
    return AudioSource(source.path.cast_column("audio", Audio()), text_column="text")


def _saved_to_disk(folder):
    from datasets import Dataset, DatasetDict

    rows = [{"audio": {"bytes": (folder / name).read_bytes(), "path": name}, "text": t} for name, t in TEXTS.items()]
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}).save_to_disk(folder / "saved")
    return AudioSource(folder / "saved", text_column="text")


def _parquet(folder, audio):
    rows = [{"sound": audio(folder / name), "text": text} for name, text in TEXTS.items()]
    for name in TEXTS:
        (folder / name).rename(folder / f"{name}.flac")
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return AudioSource(folder / "rows.parquet", text_column="text", audio_column="sound")


def _arrays(folder):
    def array(path):
        samples, rate = soundfile.read(path, dtype="float32")
        return {"array": samples.tolist(), "sampling_rate": rate}

    return _parquet(folder, array)


def _plain_binary(folder):
    return _parquet(folder, lambda path: path.read_bytes())


def _paths_in_parquet(folder):
    return _parquet(folder, lambda path: f"{path.name}.flac")


def _sidecars(folder):
    with tarfile.open(folder / "train.tar", "w") as tar:
        for name, text in TEXTS.items():
            stem = name.removesuffix(".wav")
            for suffix, data in (("wav", (folder / name).read_bytes()), ("json", json.dumps({"text": text}).encode())):
                member = tarfile.TarInfo(f"{stem}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return AudioSource(folder / "train.tar", text_column="json.text")


KINDS = [
    _csv, _csv_with_semicolons, _common_voice, _json_lines, _json_list, _metadata_csv, _metadata_tsv, _metadata_jsonl,
    _kaldi, _in_memory, _in_memory_audio, _saved_to_disk, _arrays, _plain_binary, _paths_in_parquet, _sidecars,
]  # fmt: skip


@pytest.mark.parametrize("write", KINDS)
def test_texts_and_recordings_of_every_kind(clips, write):
    found = _read(write(clips))
    assert list(found) == list(TEXTS.values())
    assert [found[text]["num_samples"] for text in TEXTS.values()] == [4800, 6400, 8000, 9600]


@pytest.mark.parametrize("write", [_json_lines, _metadata_csv, _in_memory, _plain_binary])
def test_they_resume(clips, write):
    source = write(clips)
    stream = AudioStream([source], seed=3, shuffle_window=2)
    run = [(example["id"], state) for (example, state), _ in zip(stream.iterate(), range(13), strict=False)]
    for (_, state), (following, _) in pairwise(run):
        assert next(stream.iterate(json.loads(json.dumps(state))))[0]["id"] == following


def test_home_and_relative_paths(clips, monkeypatch):
    source = _csv(clips)
    monkeypatch.setenv("HOME", str(clips.parent))
    assert _read(AudioSource(f"~/{clips.name}", text_column="text")).keys() == _read(source).keys()
    monkeypatch.chdir(clips.parent)
    for path in (clips.name, f"{clips.name}/train.csv", f"./{clips.name}/../{clips.name}"):
        assert _read(AudioSource(path, text_column="text")).keys() == _read(source).keys()


def test_folders_with_the_characters_of_globs(clips):
    assert len(list(AudioStream([AudioSource(clips)], repeat=False))) == len(TEXTS)
    assert len(list(AudioStream([AudioSource(f"{clips}/a.wav")], repeat=False))) == 1
    pattern = str(clips.parent / "my *" / "?.wav")
    assert len(list(AudioStream([AudioSource(pattern)], repeat=False))) == len(TEXTS)


def test_offset_and_duration(clips):
    rows = [
        {"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.15, "text": "middle"},
        {"audio_filepath": "a.wav", "offset": 0.1, "duration": None, "text": "to the end"},
        {"audio_filepath": "a.wav", "duration": 0.2, "text": "from the beginning"},
        {"audio_filepath": "a.wav", "duration": 0.3004, "text": "rounded"},
        {"audio_filepath": "a.wav", "offset": "0.1", "duration": "0.1", "text": "as text"},
        *(
            {"audio_filepath": "a.wav", "offset": bad, "duration": 0.1, "text": "x"}
            for bad in (-1, "a", 1e12, True, 0.4)
        ),
        {"audio_filepath": "a.wav", "duration": 5, "text": "x"},
    ]
    (clips / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: dict = {}
    source = AudioSource(clips, text_column="text")
    stream = AudioStream([source], repeat=False, shuffle=False, normalised=False, max_broken_share=1.0)
    found = {example["text"]: example["input_values"] for example, _ in stream.iterate(counts=counts)}
    assert (counts["seen"], counts["broken"]) == (len(rows), 6)
    whole, _ = soundfile.read(clips / "a.wav", dtype="float32")
    expected = {"middle": (1600, 4000), "to the end": (1600, 4800), "from the beginning": (0, 3200)}
    expected |= {"rounded": (0, 4800), "as text": (1600, 3200)}
    for text, (start, stop) in expected.items():
        np.testing.assert_array_equal(found[text], whole[start:stop])


def test_kaldi_segments(clips):
    (clips / "wav.scp").write_text(f"rec {clips}/a.wav\n")
    (clips / "segments").write_text("u1 rec 0.0 0.12\nu2 rec 0.12 0.3\nu3 none 0 1\nu4 rec x\n")
    (clips / "text").write_text("u1 eins\nu2 zwei\n")
    (clips / "utt2spk").write_text("u1 s\nu2 s\n")
    source = AudioSource(clips, all_columns=True, text_column="text")
    found = _read(source, max_broken_share=1.0)
    assert {text: example["num_samples"] for text, example in found.items()} == {"eins": 1920, "zwei": 2880}
    assert found["eins"]["columns"]["speaker"] == "s"


def test_metadata_of_all_splits_in_one_file(clips):
    for split, name in zip(("train", "dev", "test", "test"), TEXTS, strict=True):
        (clips / split).mkdir(exist_ok=True)
        (clips / name).rename(clips / split / name)
    rows = [("file_name", "text"), ("train/a.wav", "A"), ("dev/b.wav", "B"), ("test/c.wav", "C"), ("test/d.wav", "D")]
    (clips / "metadata.csv").write_text("\n".join(map(",".join, rows)))
    for split, texts in (("train", "A"), ("validation", "B"), ("test", "CD")):
        assert list(_read(AudioSource(clips, split, text_column="text"))) == list(texts)
    with pytest.raises(ValueError, match=r"Bad split: more\. Available splits: \['dev', 'test', 'train'\]"):
        AudioStream([AudioSource(clips, "more", text_column="text")])


def test_bad_rows_are_counted_and_named(clips, caplog):
    good = json.dumps({"audio": "a.wav", "text": "x"}).encode()
    (clips / "train.jsonl").write_bytes(
        b"\n".join([good, b"{", b"[1]", b'{"audio": "\xff"}', b'{"audio": 7}', b"{}", good])
    )
    counts: dict = {}
    stream = AudioStream([AudioSource(clips, text_column="text")], repeat=False, max_broken_share=1.0)
    assert len(list(stream.iterate(counts=counts))) == 2
    assert (counts["seen"], counts["broken"]) == (7, 5)
    for line in (2, 3, 4, 5, 6):
        assert f"train.jsonl, line {line}: " in caplog.text


def test_rows_of_a_table_that_do_not_fit_its_header_are_bad(clips):
    (clips / "train.csv").write_text('path,text\na.wav,"x\ny"\nb.wav\nc.wav,a,b\nd.wav,z\n')
    found = _read(AudioSource(clips, text_column="text"), max_broken_share=1.0)
    assert list(found) == ["x\ny", "z"]


@settings(max_examples=examples(60), deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))), min_size=1, max_size=5
    ),
    bom=st.booleans(),
)
def test_any_table_is_read_as_it_was_written(tmp_path_factory, rows, bom):
    rows = [row for row in rows if any(row) and "\0" not in "".join(row)] or [("a", "b")]
    path = tmp_path_factory.getbasetemp() / "table.csv"
    with open(path, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("path", "text"), *rows])
    manifest = read_manifests([str(path)])
    found = [manifest.row(number) for number in range(len(manifest))]
    assert found == [{"path": path, "text": text} for path, text in rows]


@settings(max_examples=examples(100), deadline=None)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))
def test_any_bytes_are_rows_bad_rows_or_an_error_of_one_line(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"noise{suffix}"
    path.write_bytes(data)
    message = None
    try:
        manifest = read_manifests([str(path)])
    except ValueError as error:
        message = str(error)
    if message is not None:
        assert str(path) in message
        assert "\n" not in message
        return
    for number in range(len(manifest)):
        assert isinstance(manifest.row(number), (dict, BadRow))


@settings(max_examples=examples(50), deadline=None)
@given(number=st.integers(1, 300))
def test_shards_hold_every_row_once_in_order(number):
    manifest = Manifest([json.dumps({"n": row}) for row in range(number)], [str(row) for row in range(number)], [])
    shards = [list(manifest.open_shard(shard, None)) for shard in range(manifest.num_shards)]
    assert [row["n"] for shard in shards for row in shard] == list(range(number))
    assert all(shards)
    assert manifest.place(manifest.num_shards - 1, len(shards[-1]) - 1) == str(number - 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (23.0, "23"),
        (2.5, "2.5"),
        ("a\tb\u00a0c\u2009d\u3000e\n f ", "a b c d e f"),
        ("\ufeffa", "a"),
        ("007", "007"),
    ],
)
def test_transcripts_become_text(value, text):
    assert transcript(value, "x") == text


@pytest.mark.parametrize("value", [None, "", " \t\u3000", float("nan"), ["a"], {"a": 1}])
def test_what_is_no_transcript_is_an_error(value):
    with pytest.raises(ValueError, match="utterance x"):
        transcript(value, "x")


def test_empty_transcripts_are_left_out_counted_and_named(clips, caplog):
    texts = [1, None, "  ", "four"]
    lines = [json.dumps({"audio": name, "text": text}) for name, text in zip(TEXTS, texts, strict=True)]
    (clips / "train.jsonl").write_text("\n".join(lines))
    counts: dict = {}
    examples = read_examples([AudioSource(clips, text_column="text")], counts=counts, progress=False)
    assert [example.text for example in examples] == ["1", "four"]
    assert (counts["seen"], counts["unlabelled"]) == (4, 2)
    assert "train.jsonl, line 2: it has no 'text'" in caplog.text
    assert "left some out: 4 seen, 2 unlabelled" in caplog.text


def test_texts_are_utf_8_whatever_the_locale_says(clips):
    """A Cyrillic manifest with a byte order mark, under a locale of ASCII."""
    _csv(clips)
    code = (
        "import sys, lighthubert_command\n"
        "from lighthubert_hf.training.audio.examples import read_examples, AudioSource\n"
        f"found = read_examples([AudioSource({str(clips)!r}, text_column='text')], progress=False)\n"
        f"assert [example.text for example in found] == {list(TEXTS.values())!a}, found"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

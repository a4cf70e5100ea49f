"""Metadata files of audio folders: on the Hub, in the configurations of a folder, and as parquet."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream

from ...hub.conftest import serving
from ..stored_speech import encode

HOSTILE = (
    "/etc/passwd", "../../a.flac", "..\\a.flac", "%2e%2e/%2e%2e/a.flac", "file:///etc/passwd", "evil://x", "a\0b", "",
    "http://127.0.0.1:9/a.flac", "s3://bucket/a", "hf://datasets/a/b/a.flac", "zip://a.flac::/a.zip", "none.flac",
    None, "/dev/zero", "~/a.flac", 7, ["a.flac"],
)  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    from datasets import config

    with serving(tmp_path_factory.mktemp("cache")) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_ENDPOINT", server.endpoint)
        yield server


def _publish(hub, name, files):
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.endpoint)
    api.create_repo(name, repo_type="dataset")
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(name, additions, commit_message="data", repo_type="dataset")
    return AudioSource(name, text_column="text")


def _read(source):
    counts: dict = {}
    stream = AudioStream([source], repeat=False, shuffle=False, max_broken_share=1.0, max_retries=0)
    return sorted(example["text"] for example, _ in stream.iterate(counts=counts)), counts


def _lines(rows):
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows).encode()


def test_bad_rows_of_a_data_set_on_the_hub_are_counted_and_named(hub, caplog):
    rows = [*((name, "bad") for name in HOSTILE), ("deep/good.flac", "good")]
    files = {"data/metadata.jsonl": _lines(rows) + b"{no json\n", "data/deep/good.flac": encode(0.3)}
    texts, counts = _read(_publish(hub, "alice/hostile", files))
    assert texts == ["good"]
    assert counts["broken"] == len(HOSTILE) + 1
    assert caplog.text.count("skipping") == counts["broken"]
    assert "data/metadata.jsonl, line 1" in caplog.text


def test_rows_of_the_hub_are_read_as_datasets_reads_them(hub):
    """Splits, a column called `audio`, names of classes from the card, several metadata files of one split."""
    card = b"""---
dataset_info:
  features:
  - {name: audio, dtype: audio}
  - {name: text, dtype: string}
  - {name: label, dtype: {class_label: {names: {"0": "yes", "1": "no"}}}}
configs:
- config_name: default
  data_files:
  - {split: train, path: ["one/*", "two/*"]}
  - {split: test, path: "three/*"}
---
"""
    table = b"file_name,text,label\n%s.flac,%s,%d\n"
    files = {"README.md": card}
    for number, folder in enumerate(("one", "two", "three")):
        files[f"{folder}/{folder}.flac"] = encode(0.3)
        files[f"{folder}/metadata.csv"] = table % (folder.encode(), folder.encode(), number % 2)
    source = _publish(hub, "alice/classes", files)
    assert _read(source)[0] == ["one", "two"]
    options = {"audio_column": "audio", "text_column": "text", "all_columns": True}
    (example,) = AudioStream([AudioSource("alice/classes", "test", **options)], repeat=False)
    assert example["columns"] == {"text": "three", "label": "yes"}
    with pytest.raises(ValueError, match="validation"):
        AudioStream([AudioSource("alice/classes", "validation")])


@pytest.mark.parametrize("configured", [False, True])
def test_metadata_as_parquet_and_in_configurations_of_a_folder(tmp_path, caplog, configured):
    rows = [{"file_name": name, "text": "bad"} for name in HOSTILE if isinstance(name, str)]
    rows.append({"file_name": "a/good.flac", "text": "good"})
    folder = tmp_path / "set" / "part"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "good.flac").write_bytes(encode(0.3))
    (tmp_path / "a.flac").write_bytes(encode(0.3))
    os.mkfifo(folder / "none.flac")
    if configured:
        (folder / "metadata.jsonl").write_bytes(_lines([(row["file_name"], row["text"]) for row in rows]))
        (tmp_path / "set" / "README.md").write_text(
            "---\nconfigs:\n- config_name: mine\n  data_files:\n  - {split: train, path: 'part/**'}\n---\n"
        )
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    source = AudioSource(tmp_path / "set", config_name="mine" if configured else None, text_column="text")
    texts, counts = _read(source)
    assert texts == ["good"]
    assert counts["broken"] == len(rows) - 1 == caplog.text.count("skipping")

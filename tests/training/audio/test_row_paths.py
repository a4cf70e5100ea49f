"""What a row says about its file must not make this machine read, wait for or fetch anything else."""

import json
import os
import socket
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.audio.decoding import AudioDecodeError
from lighthubert_hf.training.audio.row_paths import RowPaths
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream

from ...examples import examples
from ..stored_speech import encode


@pytest.fixture
def listener():
    """The URL of a server that notes who calls."""
    server, called = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        try:
            while True:
                connection, _ = server.accept()
                called.append(connection.recv(100))
                connection.close()
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", called
    server.close()


def _hostile_paths(tmp_path: Path, url: str) -> list[str]:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.flac").write_bytes(encode(0.3))
    inside = tmp_path / "set"
    inside.mkdir()
    (inside / "good.flac").write_bytes(encode(0.3))
    (inside / "link.flac").symlink_to(outside / "a.flac")
    (inside / "zero.flac").symlink_to("/dev/zero")
    (inside / "folder.flac").mkdir()
    os.mkfifo(inside / "pipe.flac")
    return [
        str(outside / "a.flac"),
        "../outside/a.flac",
        "sub/../../outside/a.flac",
        "link.flac",
        f"file://{outside}/a.flac",
        f"local://{outside}/a.flac",
        f"zip://a.flac::{outside}/a.zip",
        "simplecache::" + f"{url}/a.flac",
        f"{url}/a.flac",
        "evil://x",
        "s3://bucket/a.flac",
        "hf://datasets/a/b/a.flac",
        "/dev/zero",
        "/dev/stdin",
        "zero.flac",
        "pipe.flac",
        "folder.flac",
        "missing.flac",
        "a\0b",
        "",
        "~/a.flac",
    ]


def _parquet(folder: Path, paths: list[str]) -> AudioSource:
    schema = pa.schema({"audio": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    rows = [{"audio": {"bytes": None, "path": path}} for path in paths]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "train.parquet")
    return AudioSource(str(folder / "*.parquet"))


def _parquet_folder(folder: Path, paths: list[str]) -> AudioSource:
    _parquet(folder, paths)
    for file in (*folder.glob("link*"), *folder.glob("zero*")):
        assert file.is_symlink()
    return AudioSource(str(folder))


def _json_lines(folder: Path, paths: list[str]) -> AudioSource:
    (folder / "train.jsonl").write_text("".join(json.dumps({"audio": path}) + "\n" for path in paths))
    return AudioSource(str(folder))


def _json_file(folder: Path, paths: list[str]) -> AudioSource:
    _json_lines(folder, paths)
    return AudioSource(str(folder / "train.jsonl"))


def _metadata(folder: Path, paths: list[str]) -> AudioSource:
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": path}) + "\n" for path in paths))
    return AudioSource(str(folder))


def _kaldi(folder: Path, paths: list[str]) -> AudioSource:
    commands = [f"cat {folder}/good.flac |", f"touch {folder}/executed |"]
    paths = [*(path for path in paths if path.strip() and "\0" not in path), *commands]
    (folder / "wav.scp").write_text("".join(f"u{number} {path}\n" for number, path in enumerate(paths)))
    return AudioSource(str(folder))


@pytest.mark.parametrize("write", [_parquet, _json_lines, _json_file, _metadata, _kaldi])
def test_hostile_rows_are_counted_and_named_and_end_nothing(tmp_path, listener, caplog, write):
    url, called = listener
    paths = _hostile_paths(tmp_path, url)
    source = write(tmp_path / "set", [*paths, "good.flac"])
    counts: dict = {}
    stream = AudioStream([source], repeat=False, shuffle=False, max_broken_share=1.0, max_retries=0)
    assert len(list(stream.iterate(counts=counts))) == 1
    assert counts["broken"] == counts["seen"] - 1 >= len(paths) - 2
    assert not called
    assert caplog.text.count("skipping") == counts["broken"]
    assert not (tmp_path / "set" / "executed").exists()


def test_what_is_allowed_is_read(tmp_path):
    outside = tmp_path / "out side"
    (outside / "deep").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    (outside / "deep" / "a.flac").write_bytes(encode(0.3))
    for path in (str(outside / "deep" / "a.flac"), "../out side/deep/a.flac", f"file://{outside}/deep/a.flac"):
        source = _json_file(tmp_path / "set", [path])
        with pytest.raises(ValueError, match=r"allow_paths=\[.*out side/deep\]"):
            list(AudioStream([source], repeat=False))
        allowed = AudioSource(source.path, allow_paths=(outside,))
        assert len(list(AudioStream([allowed], repeat=False))) == 1


SEGMENTS = st.sampled_from(["..", ".", "a", "set", "outside", "", "%2e%2e", "evil.com", "link", "\\..", "a\0"])


@settings(max_examples=examples(200), deadline=None)
@given(
    parts=st.lists(SEGMENTS, max_size=8),
    prefix=st.sampled_from(["", "/", "/set/", "file:///", "http://host/data/", "http://host.evil/data/"]),
)
def test_whatever_is_resolved_lies_inside(tmp_path_factory, parts, prefix):
    root = tmp_path_factory.getbasetemp() / "resolved"
    (root / "set").mkdir(parents=True, exist_ok=True)
    if not (root / "set" / "link").is_symlink():
        (root / "set" / "link").symlink_to("/")
    paths = RowPaths([str(root / "set")], [str(root / "set")], ["http://host/data"])
    path = prefix.replace("/set/", f"{root}/set/") + "/".join(parts)
    try:
        found = paths.resolve(path)
    except AudioDecodeError:
        return
    if found.startswith("http"):
        assert found.startswith("http://host/data/")
        assert ".." not in found
    else:
        assert Path(found).resolve().is_relative_to((root / "set").resolve())


def test_symbolic_links_that_were_listed_are_files_of_the_folder(tmp_path):
    """A folder of links to recordings elsewhere is a common way to make a corpus; its owner made the links."""
    (tmp_path / "set").mkdir()
    (tmp_path / "a.flac").write_bytes(encode(0.3))
    (tmp_path / "set" / "a.flac").symlink_to(tmp_path / "a.flac")
    (tmp_path / "set" / "zero.flac").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "set" / "pipe.flac")
    stream = AudioStream([AudioSource(tmp_path / "set")], repeat=False, max_broken_share=1.0)
    assert len(list(stream)) == 1

"""Files and folders appear as a whole or not at all, whenever the process that writes them dies."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lighthubert_hf import files
from lighthubert_hf.files import (
    WriteError,
    is_leftover,
    replacing_file,
    replacing_folder,
    scratch_folder,
    sweep,
    write_json,
    write_text,
)

from .examples import examples

fcntl = pytest.importorskip("fcntl")
resource = pytest.importorskip("resource")

# Loads the module by itself, without the package around it, which takes seconds.
_CHILD = f"""
import importlib.util, os, signal, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
place = Path(sys.argv[1])

def write_folder(version):
    with files.replacing_folder(place / "model") as new:
        (new / "deep").mkdir()
        for name in ("a", "b", "deep/c"):
            (new / name).write_text(version * 5000, encoding="utf-8")

def write_file(version):
    files.write_text(place / "table.json", version * 5000)
"""


def start(place: Path, code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _CHILD + code, str(place)], stdout=subprocess.PIPE, text=True)


def versions(place: Path) -> set[str]:
    """The versions that a reader finds in the folder and, apart from it, in the file: each must be whole."""
    for group in (("model/a", "model/b", "model/deep/c"), ("table.json",)):
        found = [(place / name).read_text(encoding="utf-8") for name in group if (place / name).exists()]
        if found:
            assert len(found) == len(group)
            assert len(set(found)) == 1
            assert found[0] in ("1" * 5000, "2" * 5000)
    return {path.read_text(encoding="utf-8")[0] for path in place.rglob("*") if path.is_file()}


def leftovers(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if is_leftover(path)]


@contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20)


@settings(max_examples=examples(30), deadline=None)
@given(name=names.filter(lambda name: name not in (".", "..")), old=st.text(), new=st.text())
def test_any_name_and_text(tmp_path_factory, name, old, new):
    place = tmp_path_factory.mktemp("any")
    write_text(place / "x" / name, old)
    assert (place / "x" / name).read_bytes() == old.encode()
    write_text(place / "x" / name, new)
    assert (place / "x" / name).read_bytes() == new.encode()
    with pytest.raises(ZeroDivisionError), replacing_file(place / "x" / name) as beside:
        beside.write_text("half" * (1 // 0))
    assert (place / "x" / name).read_bytes() == new.encode()
    assert [path.name for path in (place / "x").iterdir()] == [name]


def test_a_folder_replaces_a_folder(tmp_path):
    for version in ("one", "two"):
        with replacing_folder(tmp_path / "deep" / "model") as new:
            (new / version).write_text(version)
            assert new.parent == tmp_path / "deep"
        assert [path.name for path in (tmp_path / "deep" / "model").iterdir()] == [version]

    def interrupted():
        with replacing_folder(tmp_path / "deep" / "model") as new:
            (new / "three").write_text("three")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in (tmp_path / "deep" / "model").iterdir()] == ["two"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_json_is_utf8_and_has_no_nan(tmp_path):
    write_json(tmp_path / "data.json", {"ü": [1, None]})
    assert json.loads((tmp_path / "data.json").read_text(encoding="utf-8")) == {"ü": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "data.json", float("nan"))
    assert "ü" in (tmp_path / "data.json").read_text(encoding="utf-8")


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=r"folder is a folder; give the name of a file"):
        write_text(tmp_path / "folder", "")
    with pytest.raises(WriteError, match=r"file is a file; choose a folder"), replacing_folder(tmp_path / "file"):
        pass
    with pytest.raises(WriteError, match=r"file.below cannot be written: .*file"):
        write_text(tmp_path / "file" / "below", "")
    with pytest.raises(FileNotFoundError, match="nothing was written"), replacing_file(tmp_path / "none"):
        pass
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WriteError, match="no ordinary file"):
        write_text(tmp_path / "fifo", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_links_are_followed(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big", target_is_directory=True)
    with replacing_folder(tmp_path / "link") as new:
        (new / "a").write_text("a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "a").read_text() == "a"


WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(100_000)),
    "safetensors": lambda path: save_file({"weight": torch.zeros(25_000)}, path),
    "torch": lambda path: torch.save(torch.zeros(25_000), path),
    "torch-open": lambda path: torch.save(torch.zeros(25_000), path.open("wb")),
    "copy": lambda path: shutil.copyfile(torch.nn.functional.__file__, path),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_one_line_with_the_name(tmp_path, writer):
    write_text(tmp_path / "file", "kept")
    with replacing_folder(tmp_path / "folder") as new:
        (new / "weights").write_text("kept")

    def to_file(path):
        with replacing_file(path) as new:
            writer(new)

    def to_folder(path):
        with replacing_folder(path) as new:
            writer(new / "weights")

    def to_file_in_folder(path):
        with replacing_folder(path.parent) as new:
            to_file(new / path.name)

    for write, name in ((to_file, "file"), (to_folder, "folder"), (to_file_in_folder, "folder/weights")):
        with pytest.raises(WriteError) as caught, largest_file(4096):
            write(tmp_path / name)
        named = str(caught.value).partition(" cannot be written: ")[0]
        inside = [str(tmp_path / name / "weights")] if write is to_folder else []  # an error may name the very file
        assert named in [str(tmp_path / name), *inside]
        assert "\n" not in str(caught.value)
        assert ".new" not in str(caught.value)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "weights").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_other_errors_pass_as_they_are(tmp_path):
    for error in (FileNotFoundError("there is no teacher"), ConnectionResetError(104, "reset"), RuntimeError("shape")):
        with pytest.raises(type(error)) as caught, replacing_folder(tmp_path / "folder"):
            raise error
        assert caught.value is error
    with pytest.raises(FileNotFoundError), replacing_folder(tmp_path / "folder"):
        (tmp_path / "elsewhere").read_text()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing_folder(tmp_path / "folder") as new:
            save_file({"weight": torch.zeros(2)}, new / "a.safetensors")  # which it makes private
            (new / "deep").mkdir()
            (new / "deep" / "b").write_text("b")
        with replacing_file(tmp_path / "c.safetensors") as new:
            save_file({"weight": torch.zeros(2)}, new)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    file, folder = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {"folder": folder, "deep": folder, "a.safetensors": file, "b": file, "c.safetensors": file}


@pytest.mark.parametrize("step", ["write", "replace 0", "replace 1", "replaced 0", "replaced 1", "rmtree 0"])
def test_killed_at_every_step(tmp_path, step):
    """Of an exchange: while writing, before and after each rename, before the old one is removed."""
    kind, _, number = step.partition(" ")
    die = f"""
write_folder("1")
count = -1
def dying(function, late):
    def wrapped(*arguments, **options):
        global count
        count += 1
        if not late and count == {number or 0}:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if late and count == {number or 0}:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped
kind = {kind!r}
if kind in ("replace", "replaced"):
    os.replace = dying(os.replace, kind == "replaced")
elif kind == "rmtree":
    files.shutil.rmtree = dying(files.shutil.rmtree, False)
else:
    files._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
write_folder("2")
"""
    assert start(tmp_path, die).wait() == -signal.SIGKILL
    assert leftovers(tmp_path)
    sweep(tmp_path)
    survived = "1" if step in ("write", "replace 0") else "2"
    assert versions(tmp_path) == {survived}
    assert leftovers(tmp_path) == []


def test_killed_at_any_time(tmp_path):
    """Again and again, while it writes a folder and a file in turn."""
    loop = """
write_folder("1")
write_file("1")
print("ready", flush=True)
while True:
    for version in "12":
        write_folder(version)
        write_file(version)
"""
    chance = random.Random(0)
    for _ in range(examples(12)):
        child = start(tmp_path, loop)
        child.stdout.readline()
        time.sleep(chance.uniform(0.005, 0.06))
        child.kill()
        child.wait()
        sweep(tmp_path)
        assert leftovers(tmp_path) == []
        assert versions(tmp_path) <= {"1", "2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "table.json"]


def test_the_next_write_sweeps_what_is_of_its_name(tmp_path):
    for name in (".model.0123abcd.new", ".other.0123abcd.new", ".model.0123abcd.txt", ".model.4567cdef.old"):
        (tmp_path / name).mkdir()
    with replacing_folder(tmp_path / "model"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.0123abcd.txt", ".other.0123abcd.new", "model"]


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    wait = """
with files.replacing_folder(place / "model") as new:
    print("writing", flush=True)
    sys.stdin.readline()
    for name in ("a", "b", "deep/c"):
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_text("2" * 5000)
"""
    command = [sys.executable, "-c", _CHILD + wait, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        child.stdout.readline()
        sweep(tmp_path)
        with replacing_folder(tmp_path / "model") as new:
            (new / "a").write_text("mine")
        assert (tmp_path / "model" / "a").read_text() == "mine"
        assert len(leftovers(tmp_path)) == 1
        child.stdin.write("\n")
        child.stdin.close()
    assert child.returncode == 0
    assert versions(tmp_path) == {"2"}
    assert leftovers(tmp_path) == []


def test_scratch_is_swept_with_what_it_was_for(tmp_path):
    with scratch_folder(tmp_path / "model.onnx") as scratch:
        assert scratch.parent == tmp_path
        assert is_leftover(scratch)
        (scratch / "exact.onnx").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_data_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    seen = []
    sync, replace = files._sync, os.replace
    monkeypatch.setattr(files, "_sync", lambda path: (seen.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(f"name {Path(b).name}"), replace(a, b)))
    write_text(tmp_path / "file", "")
    assert seen == ["sync file", "name file", f"sync {tmp_path.name}"]
    seen.clear()
    with replacing_folder(tmp_path / "folder") as new:
        (new / "a").write_text("a")
    assert seen == ["sync a", f"sync {new.name}", "name folder", f"sync {tmp_path.name}"]
    seen.clear()
    write_text(tmp_path / "file", "", sync=False)
    assert seen == ["name file"]

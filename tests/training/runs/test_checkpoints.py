"""What a lost or changed bit of a checkpoint does, wherever it is: never another result, always a name."""

import json
import logging
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.runs.checkpoints import (
    MARKER,
    CheckpointError,
    check_complete,
    checkpoint_folder,
    latest_checkpoint,
    mark_complete,
    num_processes_of,
    rotate,
)

from ...examples import examples

FILES = {"model/weights": bytes(range(256)), "state/optimizer.pt": b"\0" * 100, "rng_state.pth": b"7", "empty": b""}


def write(checkpoints, step, processes=2):
    folder = checkpoint_folder(checkpoints, step)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    mark_complete(folder, processes)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"), 7)


def test_what_was_written_is_complete(written):
    check_complete(written)
    assert num_processes_of(written) == 2
    assert latest_checkpoint(written.parent) == written


def flip(content, bit):
    flipped = bytearray(content)
    flipped[bit // 8 % len(content)] ^= 1 << bit % 8
    return bytes(flipped)


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data())
def test_whatever_happens_to_a_file_is_seen(written, tmp_path_factory, data):
    name = data.draw(st.sampled_from([*FILES, MARKER]))
    before = (written / name).read_bytes()
    kind = data.draw(st.sampled_from(["lost", "emptied", "zeroed", "cut", "flipped", "grown"]))
    after = {
        "emptied": b"",
        "zeroed": bytes(len(before)),
        "cut": before[:-1],
        "flipped": flip(before, data.draw(st.integers(0, 8 * len(before)))) if before else before,
        "grown": before + b"\0",
    }.get(kind)
    if after == before:
        return
    folder = checkpoint_folder(tmp_path_factory.mktemp("copy"), 7)
    shutil.copytree(written, folder)
    (folder / name).write_bytes(after) if after is not None else (folder / name).unlink()
    try:
        same = json.loads(after) == json.loads(before) if name == MARKER and after else False
    except ValueError:
        same = False
    if same:  # white space in the mark, which says what it said
        return
    with pytest.raises(CheckpointError, match=name) as error:
        check_complete(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_the_one_before_a_damaged_one_is_taken_and_the_damaged_one_named(tmp_path, caplog):
    first, second, third = (write(tmp_path, step) for step in (1, 2, 3))
    (third / "state/optimizer.pt").write_bytes(flip(FILES["state/optimizer.pt"], 77))
    (second / MARKER).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == first
    assert len(caplog.messages) == 2
    assert "step-00000003: state/optimizer.pt has changed" in caplog.messages[0]
    assert f"step-00000002: {MARKER} is empty or damaged; the run goes on from step-00000001" in caplog.messages[1]
    (first / "rng_state.pth").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*step-00000003.*--overwrite") as error:
        latest_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    folders = [write(tmp_path, step) for step in (1, 2, 3)]
    (folders[2] / MARKER).write_bytes(b"")
    rotate(tmp_path, 2)
    assert all(folder.exists() for folder in folders)

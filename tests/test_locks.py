"""One writer at a time, the second is told who the first is, and the dead hold nothing."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from lighthubert_hf.locks import InUseError, lock_file, locked

pytest.importorskip("fcntl")

# As the command starts: without torch, which takes seconds.
_HOLD = """
import sys, lighthubert_command
from lighthubert_hf.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(place) -> subprocess.Popen:
    command = [sys.executable, "-c", _HOLD, str(place)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    return child


def test_the_second_is_told_who_the_first_is_and_the_dead_hold_nothing(tmp_path):
    place = tmp_path / "run"
    for ending in (signal.SIGKILL, None):
        child = holder(place)
        with pytest.raises(InUseError) as caught, locked(place):
            pass
        said = str(caught.value)
        assert f"{place} is being written by process {child.pid} on " in said
        assert "\n" not in said
        if ending:
            child.send_signal(ending)
        child.stdin.close()
        child.wait()
        assert lock_file(place).exists() == (ending is not None)
        with locked(place):
            assert json.loads(lock_file(place).read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


def test_some_wait_a_moment(tmp_path):
    child = holder(tmp_path / "a")
    threading.Timer(0.3, child.stdin.close).start()
    with locked(tmp_path / "a", patience=30):
        pass
    child.wait()


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        with locked(tmp_path / "a"):
            pass
        assert lock_file(tmp_path / "a").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\0" * 100, "[" * 4000])
def test_a_damaged_lock_of_nobody_is_no_obstacle(tmp_path, text):
    lock_file(tmp_path / "a").write_text(text)
    with locked(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    child = holder(tmp_path / "real")
    with pytest.raises(InUseError), locked(tmp_path / "link"):
        pass
    child.stdin.close()
    child.wait()

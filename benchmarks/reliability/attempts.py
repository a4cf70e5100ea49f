"""One attempt: a command in a process of its own, which may be killed, and what is to be said of its end."""

import contextlib
import io
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

SECONDS = 90  # an attempt that takes longer hangs


@dataclass(frozen=True)
class End:
    """How a command ended.

    Args:
        status: Its exit status; `None` if it was killed, or never ended.
        said: What it wrote to standard error.
    """

    status: int | None
    said: str = ""

    @property
    def is_one_line(self) -> bool:
        lines = [line for line in self.said.splitlines() if line.startswith("lighthubert: ")]
        return self.status == 2 and len(lines) == 1 and "Traceback" not in self.said


def attempt(arguments: tuple[str, ...], *, largest_file: int | None = None, kill_after: float | None = None) -> End:
    """Run a command in a child, forked because imports take seconds.

    Args:
        largest_file: No file may grow beyond so many bytes.
        kill_after: Seconds until it is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(arguments, writing, largest_file)
    os.close(writing)
    answer = _read(reading, SECONDS if kill_after is None else kill_after)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return End(None) if not answer else End(*json.loads(answer))


def _child(arguments: tuple[str, ...], writing: int, largest_file: int | None) -> None:
    from lighthubert_hf.cli import main

    said, status = io.StringIO(), 0
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["lighthubert", *arguments]
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException as error:  # what `main` let through ends in a traceback
            status, _ = 1, said.write(f"Traceback: {error!r}")
    with os.fdopen(writing, "w") as pipe:
        json.dump((status, said.getvalue()), pipe)
    os._exit(0)


def _read(pipe: int, seconds: float) -> bytes | None:
    """All that is written to a pipe; `None` if that is not over after so many seconds."""
    answer, end = b"", time.monotonic() + seconds
    with os.fdopen(pipe, "rb", buffering=0) as reading:
        while True:
            ready, _, _ = select.select([reading], [], [], max(end - time.monotonic(), 0))
            if not ready:
                return None
            piece = reading.read(1 << 16)
            if not piece:
                return answer
            answer += piece


def files_below(names: tuple[str, ...]) -> list[Path]:
    found = [path for name in names for path in ([Path(name)] if Path(name).is_file() else Path(name).rglob("*"))]
    return sorted(path for path in found if path.is_file() and path.stat().st_size)


def mutate(file: Path, rng: random.Random) -> tuple[str, int]:
    """Change a file as disks, transfers and people do. Returns how, and where."""
    raw = bytearray(file.read_bytes())
    kind = rng.choice(("cut", "flip", "flip", "zero", "insert", "empty"))
    at = rng.randrange(len(raw))
    if file.suffix == ".safetensors" and rng.random() < 0.5:  # its header is a small part of it
        at = rng.randrange(min(len(raw), 8 + int.from_bytes(raw[:8], "little")))
    if kind == "cut":
        del raw[at:]
    elif kind == "flip":
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    elif kind == "insert":
        raw[at:at] = rng.randbytes(16)
    else:
        raw.clear()
    file.write_bytes(raw)
    return kind, at


def unseeable(file: Path, sound: bytes) -> str | None:
    """Why nothing can tell a changed input from another sound one, if nothing can; by where it was changed.

    * "other weights": bits of weights, all as many as before, under the same header. The file has no checksum.
    * "other values": text that a user may have written so: of the same structure, with other values.
    """
    now = file.read_bytes()
    if file.suffix == ".safetensors":
        start = 8 + int.from_bytes(sound[:8], "little")
        return "other weights" if len(now) == len(sound) and now[:start] == sound[:start] else None
    if file.suffix == ".flac":  # the frames have checksums, the header of rate and length has none
        return "other values" if now[42:] == sound[42:] else None
    if file.suffix in (".md", ".svg", ".py"):  # prose, pictures and code, which are passed on
        return "other values"
    parse = {".json": json.loads, ".yaml": yaml.safe_load, ".jsonl": _lines}.get(file.suffix)
    if parse is None:
        return None
    try:
        before, after = parse(sound.decode()), parse(now.decode())
    except (ValueError, yaml.YAMLError, RecursionError):
        return None
    return "other values" if before != after and _shape(before) == _shape(after) else None


def _lines(text: str) -> list:
    return [json.loads(line) for line in text.splitlines()]


def _shape(data: object) -> object:
    """Keys and kinds of plain data."""
    if isinstance(data, dict):
        return {key: _shape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_shape(value) for value in data]
    return "number" if isinstance(data, int | float) and not isinstance(data, bool) else type(data).__name__


@contextlib.contextmanager
def disk_of(size: int, place: Path) -> Iterator[bool]:
    """A file system of so many bytes at `place`, if this process may mount one (on Linux, as root); else a folder."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, free: int) -> None:
    """Leave so many bytes of a file system."""
    found = os.statvfs(place)
    with (place / "filler").open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(found.f_bavail * found.f_frsize - free, 0)))

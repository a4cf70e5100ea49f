"""One writer at a time: whoever writes a folder or file for long holds its lock, and a second one is told who it is.

The lock of NAME is a file `.NAME.lock` beside it. The kernel holds it for the process, and lets go when that dies, so
a file that a killed process left is no obstacle. Where the file system has no locks, a holder counts as long as its
process lives on this machine; on Windows nothing is locked.
"""

import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import WriteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: dict[tuple[int, Path], tuple[int, int]] = {}  # (process, place): (descriptor, times taken)
_guard = threading.RLock()


class InUseError(ValueError):
    """Another process is writing there. One line: the place, and who it is."""


@contextmanager
def locked(path: str | os.PathLike, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder or file that is going to be written, which need not exist yet.

    A process may take a lock that it holds again.

    Args:
        patience: seconds to wait for another process. Only for what takes each of them a moment.

    Raises:
        InUseError: if another process holds it.
        WriteError: if nothing can be written beside it.
    """
    path = Path(os.path.realpath(path))
    if fcntl is None:
        yield
        return
    key = (os.getpid(), path)
    end = time.monotonic() + patience
    while True:
        try:
            with _guard:
                descriptor, times = _held[key] if key in _held else (_acquired(path), 0)
                _held[key] = descriptor, times + 1
            break
        except InUseError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        with _guard:
            descriptor, times = _held.pop(key)
            if times > 1:
                _held[key] = descriptor, times - 1
            else:
                lock_file(path).unlink(missing_ok=True)
                os.close(descriptor)


def lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _acquired(path: Path) -> int:
    file = lock_file(path)
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise WriteError(f"{path} cannot be written: {error.strerror} ({error.filename})") from error
        try:
            # Of the process, not of the descriptor: children that outlive it do not inherit it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN) or _lives(holder):
                os.close(descriptor)
                raise InUseError(_told(path, holder)) from None
        if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
            break
        os.close(descriptor)  # its holder removed it in this instant
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
    except OSError as error:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        raise WriteError(f"{path} cannot be written: {error.strerror}; what was there before is as it was") from error
    return descriptor


def _myself() -> dict[str, str | int]:
    # Without what may be secret: further arguments.
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.strftime("%F %T")}


def _holder(descriptor: int) -> dict:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # it has not written its name yet
        return {}
    return found if isinstance(found, dict) else {}


def _lives(holder: dict) -> bool:
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _told(path: Path, holder: dict) -> str:
    name = "another process"
    if holder:
        name = "process {pid} on {host} ({command}, since {since})".format_map(_Known(holder))
    return f"{path} is being written by {name}; wait for it, or choose another place"


class _Known(dict):
    def __missing__(self, key: str) -> str:
        return f"unknown {key}"

"""Writing files and folders so that nobody ever sees half of one: beside their place first, then renamed into it.

What is being written lies in a hidden folder beside its place until it is complete and on disk:

    .NAME.0123abcd.new     what will be NAME: the folder itself, or a folder that holds the one file
    .NAME.0123abcd.old     the folder that was NAME, for the moment between the two renames that exchange it

A process that is killed leaves these behind, and nothing else. The next write of NAME clears them away, and puts NAME
back where the kill fell between the two renames; [`sweep`] does so for everything in a folder. The writer holds a lock
on its `.new`, which the kernel lets go when the process dies, so what a living process writes is left alone. Where
there are no such locks (Windows, some network file systems) leftovers stay, but a NAME that is missing is put back.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<tag>[0-9a-f]{8})\.(?P<kind>new|old)", re.DOTALL)

_CHECKSUM = "checksum"

# What the operating system says without a file's name when writing fails, as far as it means the disk.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class WriteError(OSError):
    """Something could not be written. One line: its name, and why. What was there before is as it was."""


@contextmanager
def replacing_file(path: str | os.PathLike, *, sync: bool = True) -> Iterator[Path]:
    """A place to write a file to that becomes `path` if the block succeeds, and vanishes if it fails.

    Args:
        path: the file. It may exist; folders on the way to it are made. A symbolic link is followed.
        sync: wait until the data are on the disk before the file takes its place, so that it survives a power cut.
            Only for what can be made again, and comes in thousands, that may be too slow.

    Yields:
        A path with the same name in another folder, where nothing lies yet.

    Raises:
        WriteError: if the disk is full or cannot be written to, or something else than a file is in the way.
    """
    path = _resolved(path)
    if path.exists() and not path.is_file():
        raise WriteError(f"{path} is {'a folder' if path.is_dir() else 'no ordinary file'}; give the name of a file")
    with _folder_beside(path) as folder, _named_errors(folder, path, path.parent):
        new = folder / path.name
        yield new
        if not new.is_file():
            raise FileNotFoundError(f"nothing was written to {path}")
        _open_to_others(folder, [new])
        if sync:
            _sync(new)
        os.replace(new, path)
        if sync:
            _sync(path.parent)


@contextmanager
def replacing_folder(path: str | os.PathLike, *, sync: bool = True) -> Iterator[Path]:
    """An empty folder to fill that becomes `path` if the block succeeds, and vanishes if it fails.

    Args:
        path: the folder. Whatever it holds is replaced as a whole: whether that may be is the caller's to know.
            Folders on the way to it are made. A symbolic link is followed.
        sync: as for [`replacing_file`].

    Raises:
        WriteError: if the disk is full or cannot be written to, or a file is in the way.
    """
    path = _resolved(path)
    if path.exists() and not path.is_dir():
        raise WriteError(f"{path} is a file; choose a folder to write to")
    with _folder_beside(path) as new, _named_errors(new, path):
        yield new
        contents = [Path(root, name) for root, folders, files in os.walk(new) for name in (*folders, *files)]
        files = [entry for entry in contents if entry.is_file() and not entry.is_symlink()]
        _open_to_others(new, files)
        if sync:
            for entry in (*files, *(entry for entry in contents if entry.is_dir() and not entry.is_symlink()), new):
                _sync(entry)
        old = new.with_suffix(".old")
        with _alone_in(path.parent):
            if path.is_dir():
                os.replace(path, old)
            try:
                os.replace(new, path)
            except OSError:
                if old.is_dir():
                    os.replace(old, path)
                raise
        if sync:
            _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)  # what stays of it is swept by the next write


@contextmanager
def scratch_folder(beside: str | os.PathLike) -> Iterator[Path]:
    """An empty folder for what is needed while `beside` is made: on the same disk, and swept with its leftovers."""
    path = _resolved(beside)
    with _folder_beside(path) as folder, _named_errors(folder, path):
        yield folder


def remove_folder(path: str | os.PathLike) -> None:
    """Remove a folder so that a kill in the middle leaves nothing that looks like it, or half of it."""
    path = _resolved(path)
    with _folder_beside(path) as grave:
        os.replace(path, grave / path.name)


def write_text(path: str | os.PathLike, text: str, *, sync: bool = True) -> None:
    """Write a text file, in UTF-8 and with the line ends that `text` has, as a whole or not at all."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_bytes(path: str | os.PathLike, content: bytes, *, sync: bool = True) -> None:
    """Write a file as a whole or not at all."""
    with replacing_file(path, sync=sync) as new:
        new.write_bytes(content)


def write_json(path: str | os.PathLike, data: Any, *, indent: int | None = 2, sync: bool = True) -> None:
    """Write plain data as JSON, as a whole or not at all.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", sync=sync)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`; a last line that a kill cut short is left out.

    Other damaged lines are named in a warning and left out, too: a log is no reason not to go on.
    """
    entries = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line else None
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
        elif line and number < len(lines):
            logger.warning("%s: line %d is damaged and left out", path, number)
    return entries


def read_object(path: str | os.PathLike, remedy: str = "restore it") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what to do if there is none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else. One line, with the file's name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; {remedy}")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON (not UTF-8 at byte {error.start}); {remedy}") from None
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read (nested too deeply); {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}; {remedy}")
    return data


def with_checksum(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data with the checksum by which [`read_checked`] sees that they are what was written."""
    return data | {_CHECKSUM: data_checksum(data)}


def read_checked(path: str | os.PathLike, remedy: str = "restore it") -> dict[str, Any]:
    """The JSON object in a file that holds what [`with_checksum`] made, without the checksum.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else. One line, with the file's name.
    """
    data = read_object(path, remedy)
    if data.pop(_CHECKSUM, None) != data_checksum(data):
        raise ValueError(f"{path} is damaged: it is not what was written; {remedy}")
    return data


def file_checksum(path: str | os.PathLike) -> str:
    """What tells the content of a file from any other: BLAKE2b, 32 digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def data_checksum(data: Any) -> str:
    """The same of plain data, as JSON says them, whatever the order of their keys."""
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()


def sweep(folder: str | os.PathLike) -> None:
    """Clear away what killed writes left in `folder`, not below it, and put back what they were exchanging."""
    folder = _resolved(folder)
    if folder.is_dir():
        _sweep(folder, _leftovers(folder))


def is_leftover(path: str | os.PathLike) -> bool:
    """Whether the name is one of those that a write in progress, or a killed one, has, or that of a lock."""
    name = os.path.basename(path)
    return _is_of_a_write(name) or (name.startswith(".") and name.endswith(".lock"))


def _is_of_a_write(name: str) -> bool:
    return _LEFTOVER.fullmatch(name) is not None


def _resolved(path: str | os.PathLike) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A new folder `.NAME.TAG.new`, locked; whatever is left of it in the end is removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, (entry for entry in _leftovers(path.parent) if _name_of(entry) == path.name))
        new, lock = _new_folder(path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error} ({error.filename})") from error
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _new_folder(path: Path) -> tuple[Path, int | None]:
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    with _alone_in(path.parent):  # or another process might sweep it in the instant before it is locked
        new.mkdir()
        return new, _locked(new)


def _leftovers(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if _is_of_a_write(entry.name)]


def _name_of(leftover: Path) -> str:
    return _LEFTOVER.fullmatch(leftover.name)["name"]


def _sweep(parent: Path, leftovers: Iterable[Path]) -> None:
    leftovers = sorted(leftovers)
    if not leftovers:
        return
    with _alone_in(parent):  # nobody is between the two renames of an exchange now, or about to lock a new folder
        for old in (entry for entry in leftovers if entry.suffix == ".old" and entry.is_dir()):
            path, new = parent / _name_of(old), old.with_suffix(".new")
            if not path.exists():
                # The exchange begins when the new one is complete.
                os.replace(new if new.is_dir() else old, path)
        dead = {entry: lock for entry in leftovers if (lock := _locked(entry)) is not None}
    for entry, lock in dead.items():
        shutil.rmtree(entry, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds a lock on a folder until it is closed; `None` if another has it, or there are none."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # gone, or nothing to be locked
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other processes that exchange or put back something in `folder`, as far as it can be locked.

    A folder that is being written belongs to its writer, who already holds its lock.
    """
    descriptor = None if fcntl is None or is_leftover(folder) else os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF):
                    raise
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_to_others(folder: Path, files: Iterable[Path]) -> None:
    """Give files the modes that the umask asks for, where a library made them private (safetensors does)."""
    allowed = stat.S_IMODE(folder.stat().st_mode) & 0o666  # the folder was made with all bits that the umask leaves
    for file in files:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode | allowed != mode:
            file.chmod(mode | allowed)


def _sync(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on the disk."""
    if os.name == "nt":  # where only a file opened for writing can be flushed, and folders cannot
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _named_errors(new: Path, path: Path, home: Path | None = None) -> Iterator[None]:
    """Turn what fails about the disk into a [`WriteError`] with the name that the user knows.

    Args:
        new: the hidden folder that is written to.
        path: what is written.
        home: where what lies in `new` will lie; by default in `path`.
    """
    try:
        yield
    except WriteError as error:  # of something inside the folder, which is called otherwise for the user
        raise WriteError(str(error).replace(str(new), str(path))) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        failure = _failure(error, new, path, home or path)
        if failure is None:
            raise
        raise WriteError(*failure) from error


def _failure(error: Exception, new: Path, path: Path, home: Path) -> tuple[str] | None:
    """What to say of an error of writing; `None` if it is about something else."""
    if isinstance(error, SafetensorError):
        reason = str(error).partition("I/O error: ")[2].partition(" (os error")[0]
        return (_unwritten(path, reason),) if "while serializing" in str(error) and reason else None
    if isinstance(error, RuntimeError):  # how torch.save fails: given an open file, or given a path
        cause = error.__context__
        if isinstance(cause, OSError):
            return _failure(cause, new, path, home)
        full = "inline_container.cc" in str(error) and "unexpected pos" in str(error)
        return (_unwritten(path, "the disk, or what may be used of it, is full"),) if full else None
    if error.errno is None:
        return None
    # Of a copy, the second name is where to.
    names = [os.fsdecode(name) for name in (error.filename2, error.filename) if isinstance(name, str | bytes)]
    name = next(iter(names), None)
    if name is None and error.errno in _OF_THE_DISK:
        return (_unwritten(path, error.strerror),)
    if name is not None and (name == str(new) or name.startswith(f"{new}{os.sep}")):
        return (_unwritten(home / Path(name).relative_to(new), error.strerror),)
    return None


def _unwritten(path: Path | str, reason: str) -> str:
    return f"{path} cannot be written: {reason}; what was there before is as it was"

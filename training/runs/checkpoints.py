"""The checkpoints of a run: `checkpoints/step-N`, each complete or not there, and known to be as it was written.

A disk that loses power, or a bit, may hold files other than were written. The mark of a checkpoint therefore names all
its files with their checksums, and its own. A checkpoint that differs is never gone on from: the one before it is.
"""

import json
import logging
from pathlib import Path
from typing import Any

from lighthubert_hf.files import data_checksum, file_checksum, remove_folder

logger = logging.getLogger(__name__)

MARKER = "complete.json"


class CheckpointError(ValueError):
    """A checkpoint is not as it was written. The message names what of it."""


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The number of steps that a checkpoint comes after."""
    return int(folder.name.removeprefix("step-"))


def mark_complete(folder: Path, num_processes: int) -> None:
    """Note all files with sizes and checksums, and whose they are: the last thing written into a checkpoint."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "blake2b": file_checksum(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    mark = {"processes": num_processes, "files": files}
    text = json.dumps(mark | {"blake2b": data_checksum(mark)}, indent=1)
    (folder / MARKER).write_text(text, encoding="utf-8")


def check_complete(folder: Path, *, contents: bool = True) -> None:
    """See that a checkpoint is as it was written.

    Args:
        contents: Read all files and compare their checksums; otherwise only the mark's own, and the files' sizes.

    Raises:
        CheckpointError: It is not.
    """
    for name, facts in _mark(folder)["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks {name}")
        if (size := file.stat().st_size) != facts["size"]:
            raise CheckpointError(f"{folder}: {name} has {size} bytes instead of {facts['size']}")
        if contents and file_checksum(file) != facts["blake2b"]:
            raise CheckpointError(f"{folder}: {name} has changed since it was written (its checksum is another)")


def _mark(folder: Path) -> dict[str, Any]:
    file = folder / MARKER
    try:
        mark = json.loads(file.read_text(encoding="utf-8"))
        intact = mark.pop("blake2b") == data_checksum(mark)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} lacks {MARKER}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False  # whatever is in it, it is no mark
    if not intact:
        raise CheckpointError(f"{folder}: {MARKER} is empty or damaged")
    return mark


def num_processes_of(folder: Path) -> int:
    """How many processes wrote a checkpoint, each with its own place in the data."""
    return _mark(folder)["processes"]


def latest_checkpoint(checkpoints: Path, *, contents: bool = True) -> Path | None:
    """The checkpoint of the highest step that is as it was written; a later one that is not is named in a warning.

    Args:
        contents: As for `check_complete`.

    Raises:
        CheckpointError: There are checkpoints, but none is as it was written.
    """
    problems = []
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            check_complete(folder, contents=contents)
        except CheckpointError as problem:
            problems.append(str(problem))
            continue
        for problem in problems:
            logger.warning("%s; the run goes on from %s instead", problem, folder.name)
        return folder
    if problems:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} can be gone on from: {problems[0]}; restore one from a copy, or start "
            "over with --overwrite (overwrite=True)"
        )
    return None


def rotate(checkpoints: Path, keep: int, in_use: Path | None = None) -> None:
    """Delete all but the newest `keep` checkpoints, and not the one in use (uploaded now; the best).

    One that is not in full length stays: it does not count as one of those kept, and somebody may want to look at it.
    """
    complete = []
    for folder in sorted(checkpoints.glob("step-*")):
        try:
            check_complete(folder, contents=False)
        except CheckpointError:
            continue
        complete.append(folder)
    for folder in complete[:-keep]:
        if folder != in_use:
            remove_folder(folder)

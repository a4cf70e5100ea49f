"""The one rule of what a command replaces: only what it made itself, from the same source, and nobody changed since.

A folder that was made here holds a hidden record of that, [`RECORD`]: by what, from which source, and a checksum of
every file. Anything else is refused. To insist (`--overwrite`) replaces any model, but never the source itself, and
nothing that is no model.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lighthubert_hf.files import file_checksum, is_leftover, read_object, replacing_folder, write_json
from lighthubert_hf.locks import locked

RECORD = ".made.json"
REMEDY = "choose another folder, or insist with --overwrite (overwrite=True)"


@contextmanager
def written_beside(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    by: str = "save",
    overwrite: bool = False,
    remedy: str = REMEDY,
    record: bool = True,
) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place if the block succeeds and vanishes if it fails.

    Args:
        folder: where to.
        source: what it is made from: a folder, a file, or a name on the Hub (with the commit, `name@commit`).
        by: what makes it.
        overwrite: replace another model, too.
        remedy: what to do if that is refused.
        record: put the record into the folder. Without, only a folder of the very same content is replaced.

    Raises:
        ValueError: if `folder` holds something else, or another process is writing it.
    """
    folder, origin = Path(folder), _identity(source)
    with locked(folder):
        check_output(folder, source=source, by=by, overwrite=overwrite or not record, remedy=remedy)
        with replacing_folder(folder) as new:
            yield new
            if not record:
                _check_same(folder, new, overwrite, remedy)
                return
            write_json(new / RECORD, {"by": by, "source": origin, "files": _checksums(new)}, sync=False)


def check_output(
    folder: Path,
    *,
    source: str | Path | None = None,
    by: str = "save",
    overwrite: bool = False,
    remedy: str = REMEDY,
) -> None:
    """Raise a ValueError if `folder` may not be replaced, as [`written_beside`] would."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder to write to")
    check_not_source(folder, source)
    if not folder.is_dir() or not any(not is_leftover(entry) for entry in folder.iterdir()):
        return
    if not any((folder / name).is_file() for name in ("config.json", "model_card.json", RECORD)):
        raise ValueError(f"{folder} is not empty and no saved model; choose another folder or empty it")
    if not overwrite and (reason := _difference(folder, by, _identity(source))):
        raise ValueError(f"{folder} exists, and {reason}; {remedy}")


def _check_same(folder: Path, new: Path, overwrite: bool, remedy: str) -> None:
    before = _checksums(folder)
    if before and not overwrite and before != _checksums(new):
        raise ValueError(f"{folder} exists, and holds something else; {remedy}")


def check_not_source(output: str | Path, source: str | Path | None) -> None:
    """Raise a ValueError if what is about to be replaced is, or holds, what it is made from."""
    if source is None or not os.path.exists(source):
        return
    inner, outer = os.path.realpath(source), os.path.realpath(output)
    if inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep):
        what = "is" if inner == outer else "holds"
        raise ValueError(f"{output} {what} the source {source}; choose another place for the result")


def _difference(folder: Path, by: str, origin: str | None) -> str | None:
    """What makes a folder another than what would be replaced without loss."""
    if not (folder / RECORD).is_file():
        return "was not made by this command"
    record = read_object(folder / RECORD, "delete it")
    if record.get("by") != by:
        return f"was made by another command ({record.get('by')})"
    if record.get("source") != origin:
        return "was made from another source"
    before, now = record.get("files"), _checksums(folder)
    if not isinstance(before, dict):
        return "its record is damaged"
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            kind = "added" if name not in before else "deleted" if name not in now else "changed"
            return f"{name} in it was {kind} since"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}" if path.is_symlink() else file_checksum(path)
        for path in files
        if path.name != RECORD and not is_leftover(path)
    }


def _identity(source: Any) -> str | None:
    """What tells one source from another: the content of a folder's model or of a file; else the name."""
    if source is None:
        return None
    path = Path(source)
    if path.is_file():
        return file_checksum(path)
    if not path.is_dir():
        return str(source)
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    parts = [f"{file.name} {file_checksum(file)}" for file in files if file.is_file()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

"""The checkpoints of a run: `checkpoints/step-N`, each complete or not there."""

import json
from pathlib import Path

from lighthubert_hf.files import remove_folder

MARKER = "complete.json"


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The number of steps that a checkpoint comes after."""
    return int(folder.name.removeprefix("step-"))


def mark_complete(folder: Path, num_processes: int) -> None:
    """Note the names and sizes of all files, and whose they are: the last thing that is written into a checkpoint."""
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    (folder / MARKER).write_text(json.dumps({"processes": num_processes, "files": sizes}, indent=1), encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether every file that the save wrote is there in full length."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    sizes = json.loads(marker.read_text(encoding="utf-8"))["files"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def num_processes_of(folder: Path) -> int:
    """How many processes wrote a checkpoint, each with its own place in the data."""
    return json.loads((folder / MARKER).read_text(encoding="utf-8"))["processes"]


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted(folder for folder in checkpoints.glob("step-*") if is_complete(folder))


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The complete checkpoint of the highest step."""
    return next(reversed(complete_checkpoints(checkpoints)), None)


def rotate(checkpoints: Path, keep: int, in_use: Path | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints, and not the one in use (uploaded now; the best)."""
    for folder in complete_checkpoints(checkpoints)[:-keep]:
        if folder != in_use:
            remove_folder(folder)

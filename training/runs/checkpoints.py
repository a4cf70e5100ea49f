"""The checkpoints of a run: `checkpoints/step-N`, each complete or not there."""

import json
from pathlib import Path

from lighthubert_hf.files import remove_folder

MARKER = "complete.json"


def is_complete(folder: Path) -> bool:
    """Whether every file that the save wrote is there in full length."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    sizes = json.loads(marker.read_text(encoding="utf-8"))
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The complete checkpoint of the highest step."""
    complete = [folder for folder in checkpoints.glob("step-*") if is_complete(folder)]
    return max(complete, default=None, key=lambda folder: folder.name)


def rotate(checkpoints: Path, keep: int, in_use: Path | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints, and not the one that is being uploaded."""
    complete = sorted(folder for folder in checkpoints.glob("step-*") if is_complete(folder))
    for folder in complete[:-keep]:
        if folder != in_use:
            remove_folder(folder)

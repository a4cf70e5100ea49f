"""The checkpoints of a run: `checkpoints/step-N`, each complete or not there."""

import json
import os
import shutil
from pathlib import Path

MARKER = "complete.json"
_PARTIAL = ".partial"


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


def remove_partial(output_dir: Path) -> None:
    """Clear away what killed saves left behind."""
    for folder in [*output_dir.glob(f".*{_PARTIAL}"), *output_dir.glob(f"checkpoints/.*{_PARTIAL}")]:
        shutil.rmtree(folder)


def rotate(checkpoints: Path, keep: int, in_use: Path | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints, and not the one that is being uploaded."""
    complete = sorted(folder for folder in checkpoints.glob("step-*") if is_complete(folder))
    for folder in complete[:-keep]:
        if folder != in_use:
            # Renamed first: a kill in the middle must not leave something that looks like a checkpoint.
            doomed = folder.with_name(f".{folder.name}{_PARTIAL}")
            os.replace(folder, doomed)
            shutil.rmtree(doomed)


def fresh_partial(folder: Path) -> Path:
    """An empty folder beside `folder`, to be renamed to it."""
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial

"""Puts a finished run back to an earlier checkpoint, as if it had been killed after it."""

import shutil
from pathlib import Path

from lighthubert_hf.training.runs.checkpoints import checkpoint_folder


def rewind(recipe, step: int) -> None:
    output = Path(recipe.output_dir)
    kept = checkpoint_folder(output / "checkpoints", step)
    assert kept.exists()
    shutil.rmtree(output / "model")
    for folder in (output / "checkpoints").iterdir():
        if folder.name > kept.name:
            shutil.rmtree(folder)

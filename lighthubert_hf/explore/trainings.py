"""What the page of a distillation run shows: what `log.jsonl` says so far."""

from pathlib import Path
from typing import Any

from lighthubert_hf.files import read_log

FILE = "log.jsonl"
_CURVES = ("loss", "lr", "gradient_norm", "audio_per_second")


def training_data(folder: Path) -> dict[str, Any]:
    """The curves of the run in `folder`, as plain data; while it runs, what there is by now.

    Raises:
        ValueError: if no line of the log says anything yet.
    """
    entries = read_log(folder / FILE)
    if not entries:
        raise ValueError(f"{folder / FILE} has no line yet; wait for the first (logging.every steps) and try again")
    steps = [entry for entry in entries if "validation" not in entry]
    curves = {
        name: [[entry["step"], entry[name]] for entry in steps if entry.get(name) is not None] for name in _CURVES
    }
    validations = [entry for entry in entries if "validation" in entry]
    names = list(dict.fromkeys(name for entry in validations for name in entry["validation"]))
    last = steps[-1] if steps else {}
    return {
        "kind": "training",
        "title": f"Distillation in {folder.resolve().name}",
        "curves": curves,
        "validation": {
            name: [[entry["step"], entry["validation"][name]] for entry in validations if name in entry["validation"]]
            for name in names
        },
        "step": entries[-1]["step"],
        "audio_seconds": last.get("audio_seconds"),
        "skipped_steps": last.get("skipped_steps"),
    }

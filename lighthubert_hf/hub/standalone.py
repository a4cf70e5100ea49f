"""Proof that saved models need nothing of this package: they are loaded by a process that cannot import it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD = """
import importlib.util, json, sys
assert importlib.util.find_spec("lighthubert_hf") is None, "the package is importable, so this would prove nothing"
import torch
from transformers import AutoFeatureExtractor, AutoModel
wave = torch.sin(torch.arange(16000) * 0.05).numpy()
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    with torch.inference_mode():
        states = model(**extractor(wave, sampling_rate=16000, return_tensors="pt")).last_hidden_state
    found = {"class": type(model).__name__, "shape": list(states.shape), "mean": states.abs().mean().item()}
    print(json.dumps(found), flush=True)
"""


def load_without_package(*folders: str | os.PathLike) -> list[dict]:
    """Load `folders` with `AutoModel` and `trust_remote_code=True` in a new process that has no `lighthubert_hf`.

    The process sees every other installed package, through links, and the network is not asked. There is one for all
    folders, because most of its time is the import of transformers.

    Returns:
        For each folder `{"class", "shape", "mean"}`: the class, and shape and mean magnitude of its output for one
        second of a tone.

    Raises:
        ValueError: if a folder does not load; the message names it and ends with the process's last line.
    """
    folders = [Path(folder).resolve() for folder in folders]
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    with tempfile.TemporaryDirectory() as temporary:
        packages, modules = Path(temporary, "packages"), Path(temporary, "modules")
        packages.mkdir()
        for site in (Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")):
            for entry in site.iterdir():
                ours = entry.name.startswith(("lighthubert_hf", "__editable__")) or entry.suffix == ".pth"
                if not ours and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
        environment = os.environ | {
            "PYTHONPATH": str(packages),
            "HF_MODULES_CACHE": str(modules),  # where transformers keeps the code it finds in the folder
            "HF_HUB_OFFLINE": "1",
        }
        # -S: no site packages but the links above, so no editable install either; -P: nothing from the current folder.
        done = subprocess.run(
            [sys.executable, "-S", "-P", "-c", _CHILD, *map(str, folders)],
            env=environment,
            cwd=temporary,
            capture_output=True,
            text=True,
        )
    loaded = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        failed = folders[min(len(loaded), len(folders) - 1)]
        raise ValueError(f"{failed} does not load without the package: {last}")
    return loaded

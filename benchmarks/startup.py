"""Before the first result: importing, answering `--help`, loading a model; each in processes of their own.

python benchmarks/startup.py [--original CHECKOUT] [--json OUT] [--docs docs/performance.md]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from contenders import arguments, machine, markdown, original_model, publish, static_model, summary

from lighthubert_hf import SearchSpace

PYTHON = [sys.executable, "-c"]
LOAD = "from {module} import {cls}; {cls}.from_pretrained({folder!r})"


def commands(folder: Path, original: str | None) -> dict[str, list[str]]:
    """Command lines by what they show. Models are the 27M default, saved in `folder`."""
    model = static_model(SearchSpace.small().default())
    model.save_pretrained(folder / "ours")
    model.to_hubert().save_pretrained(folder / "hubert")
    found = {
        "lighthubert --help": [str(Path(sys.executable).parent / "lighthubert"), "--help"],
        "import torch": [*PYTHON, "import torch"],
        "import transformers' HubertModel": [*PYTHON, "from transformers import HubertModel"],
        "import LightHubertModel": [*PYTHON, "from lighthubert_hf import LightHubertModel"],
        "import and load, transformers": [
            *PYTHON, LOAD.format(module="transformers", cls="HubertModel", folder=str(folder / "hubert"))
        ],
        "import and load, ours": [
            *PYTHON, LOAD.format(module="lighthubert_hf", cls="LightHubertModel", folder=str(folder / "ours"))
        ],
    }  # fmt: skip
    if original:
        checkpoint = folder / "original.pt"
        torch.save({"model": original_model(original).state_dict()}, checkpoint)
        start = f"import sys; sys.path.insert(0, {original!r}); import torch, lighthubert; "
        load = (
            f"state = torch.load({str(checkpoint)!r}); c = lighthubert.LightHuBERTConfig(); "
            "c.supernet_type = 'small'; lighthubert.LightHuBERT(c).load_state_dict(state['model'])"
        )
        found["import, original"] = [*PYTHON, start]
        found["import and load (its 95M supernet), original"] = [*PYTHON, start + load]
    return found


def main() -> None:
    options = arguments(__doc__, rounds=7).parse_args()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        contenders = commands(Path(folder), options.original)
        times = {name: [] for name in contenders}
        for index in range(options.rounds + 1):  # the first fills the disk cache
            for name, command in contenders.items():
                start = time.perf_counter()
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{name} failed: {json.dumps(done.stderr[-500:])}")
                if index:
                    times[name].append(1e3 * (time.perf_counter() - start))
    rows = {name: summary(values) for name, values in times.items()}
    results = {"machine": machine(), "contenders": rows}
    cells = [[name, f"{median(times[name]):.0f}", f"{row['least_ms']:.0f}"] for name, row in rows.items()]
    publish("startup", results, markdown(["", "median ms", "least ms"], cells), options)


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Install the wheels that gpu_bundle.py fetched and this checkout, without a network, and see that all can be imported:
#     bash benchmarks/gpu_start.sh [build/gpu]
# The checkout is installed editable: a PYTHONPATH does not know where conversion/ and training/ belong.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-build/gpu}
PIP="python3 -m pip install --quiet --no-index --no-deps --disable-pip-version-check"
$PIP "$wheels"/*.whl
$PIP --no-build-isolation --editable .
python3 - <<'PYTHON'
import importlib
from importlib.metadata import version

import accelerate, datasets, evaluate, jiwer, scipy, sklearn, soundfile, soxr, torch, transformers, xxhash  # noqa: E401

for module in ("training.distillation.run", "training.synthetic.speech", "costs.profiling", "hub.publishing"):
    importlib.import_module(f"lighthubert_hf.{module}")
names = ("torch", "transformers", "huggingface_hub", "datasets", "accelerate", "numpy", "lighthubert_hf")
print(", ".join(f"{name} {version(name)}" for name in names))
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "torch sees no GPU here")
PYTHON

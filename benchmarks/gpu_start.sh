#!/usr/bin/env bash
# Run a command where the wheels that gpu_bundle.py fetched, and this checkout, can be imported; without a network:
#     bash benchmarks/gpu_start.sh python3 benchmarks/gpu.py runs/gpu
# The machine's own packages stay as they are: the wheels go into a folder beside them, which Python looks into first.
set -euo pipefail
cd "$(dirname "$0")/.."
site=build/gpu/site
if [ ! -d $site ]; then
    rm -rf $site.partial
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --target $site.partial build/gpu/*.whl
    mv $site.partial $site
fi
export PYTHONPATH=$PWD/$site:$PWD
python3 - <<'PYTHON'
import importlib
from importlib.metadata import version

for module in ("training.distillation.run", "training.synthetic.speech", "costs.profiling", "hub.publishing", "cli"):
    importlib.import_module(f"lighthubert_hf.{module}")
import torch

names = ("torch", "transformers", "huggingface_hub", "datasets", "accelerate", "pydantic", "numpy")
print(", ".join(f"{name} {version(name)}" for name in names))
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "torch sees no GPU here")
PYTHON
exec "$@"

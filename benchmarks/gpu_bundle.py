"""The wheels that a GPU machine without a network lacks, for Linux on x86-64.

    python benchmarks/gpu_bundle.py                                      # here: about 40 MB into build/gpu
    bash benchmarks/gpu_start.sh python3 benchmarks/gpu.py runs/gpu      # there, in the same checkout

Such a machine is expected to have torch, numpy, scipy, scikit-learn, pandas, pyarrow, PyYAML, typer and pytest of its
own. Versions are those of constraints.txt; what the packages below need in turn, and the machine may have in an older
version, is not carried.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MISSING = (
    "accelerate",
    "annotated-types",
    "datasets",
    "dill",
    "espeakng-loader",
    "evaluate",
    "httpcore2",
    "httpx2",
    "huggingface_hub",
    "jiwer",
    "multiprocess",
    "pydantic",
    "pydantic_core",
    "pytest-timeout",
    "RapidFuzz",
    "safetensors",
    "soundfile",
    "soxr",
    "tokenizers",
    "transformers",
    "truststore",
    "typing-inspection",
    "xxhash",
)


def pinned(constraints: str) -> list[str]:
    """The lines of constraints.txt for `MISSING`."""
    lines = {line.partition("==")[0]: line for line in constraints.split() if "==" in line}
    unknown = [name for name in MISSING if name not in lines]
    if unknown:
        raise ValueError(f"constraints.txt names no version of {', '.join(unknown)}")
    return [lines[name] for name in MISSING]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=ROOT / "build" / "gpu", type=Path)
    parser.add_argument("--python", default="3.12", help="of that machine (default %(default)s)")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", options.python, "--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *pinned((ROOT / "constraints.txt").read_text())], check=True)
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 2**20:.0f} MiB in {folder}")


if __name__ == "__main__":
    main()

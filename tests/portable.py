"""Runs the tests marked `numerical` as other processors would: `make test-portable`, or `python -m tests.portable`.

A sum rounds otherwise on other vector units, on other numbers of threads, and in MKL's bitwise reproducible mode.
Libraries can be told to use less than the processor has, so one processor imitates several. What it lacks it cannot
imitate, and a library may not obey (MKL on processors that are not Intel's): both are said.

    python -m tests.portable [--levels SSE4 …] [--threads 1 …] [pytest options, such as -k NAME]
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What each level tells ATen, oneDNN, MKL, and the BLAS of numpy and scipy. Lowest first.
LEVELS = {
    "SSE4": ("default", "SSE41", "SSE4_2", "Nehalem"),
    "AVX2": ("avx2", "AVX2", "AVX2", "Haswell"),
    "AVX512": ("avx512", "AVX512_CORE", "AVX512", "SkylakeX"),
}
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")
REPRODUCIBLE = "reproducible"  # as the processor is, in MKL's mode for equal bits on all processors
NATIVE = "as it is"
# Threads split sums, whatever the level: every level runs with one and with several.
THREADS = {"SSE4": (1, 2), "AVX2": (1, 3), "AVX512": (1, 2), REPRODUCIBLE: (1, 2), NATIVE: (1, 2, 3)}


def environment(level: str, threads: int = 1) -> dict[str, str]:
    own = dict(zip(VARIABLES, LEVELS[level])) if level in LEVELS else {}
    if level == REPRODUCIBLE:
        own = {"MKL_CBWR": "COMPATIBLE"}
    inherited = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "MKL_CBWR")}
    own |= {"OMP_NUM_THREADS": str(threads), "TEST_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    return inherited | own


def report() -> None:
    """What the libraries do in this process, as JSON in the last line. oneDNN says its own before."""
    import torch

    x = torch.arange(3, 3 + 300 * 300, dtype=torch.float32).reciprocal().view(300, 300)
    packing = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    if packing is not None:
        packing(x)
    product = hashlib.sha256((x @ x).numpy().tobytes()).hexdigest()
    print(json.dumps({"aten": torch.backends.cpu.get_cpu_capability(), "product": product}))


def probe(level: str) -> dict[str, str]:
    """Which instructions ATen and oneDNN use at `level`, and what a product is then."""
    code = "from tests.portable import report; report()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(level) | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    isa = re.search(r"cpu,isa:(.*)", result.stdout)
    return json.loads(result.stdout.splitlines()[-1]) | {"onednn": isa[1] if isa else "none"}


def imitable() -> tuple[list[str], list[str]]:
    """The levels to run here, and remarks on what could not be imitated."""
    native, levels, remarks = probe(NATIVE), [], []
    order = [names[0].upper() for names in LEVELS.values()]
    for level, (capability, *_) in LEVELS.items():
        # Beyond what the processor has, ATen would obey and crash.
        if native["aten"] not in order or order.index(capability.upper()) > order.index(native["aten"]):
            remarks.append(f"{level}: cannot be imitated, this processor is {native['aten']} to ATen")
            continue
        found = probe(level)
        if found["aten"] != capability.upper():
            remarks.append(f"{level}: cannot be imitated, ATen stays with {found['aten']}")
            continue
        levels.append(level)
        if level == "SSE4":  # it has no fused multiply-add, so that a product cannot come out the same
            if found["product"] == native["product"]:
                remarks.append("MKL ignores MKL_ENABLE_INSTRUCTIONS here: its own kernels are the same at every level")
            if "SSE4" not in found["onednn"]:
                remarks.append(f"oneDNN ignores ONEDNN_MAX_CPU_ISA here: {found['onednn']}")
    if probe(REPRODUCIBLE)["product"] == native["product"]:
        remarks.append("MKL_CBWR=COMPATIBLE changes nothing here: no MKL, or the same kernels")
    return [*(levels or [NATIVE]), REPRODUCIBLE], remarks


def run(level: str, threads: int, options: list[str], folder: Path) -> dict:
    name = f"{level}-{threads}"
    log, used = folder / f"{name}.log", folder / f"{name}.bounds"
    workers = max(1, (os.cpu_count() or 1) // threads)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [
        "-m",
        "numerical and not slow and not gpu",
        "-n",
        str(workers if workers > 1 else 0),
        "--dist",
        "loadfile",
    ]
    start = time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(
            [*command, "tests", *options],
            env=environment(level, threads) | {"PRECISION_LOG": str(used)},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    text = log.read_text()
    noted = used.read_text().splitlines() if used.is_file() else []
    # The tests of the measure itself go beyond bounds on purpose.
    shares = [float(line.split()[0]) for line in noted if "tests/test_precision" not in line]
    return {
        "level": level,
        "threads": threads,
        "ok": code == 0,
        "result": (re.findall(r"^.*\b(?:passed|failed|error).* in .*$", text, re.M) or [f"pytest ended with {code}"])[
            -1
        ],
        "largest share of a bound": max(shares, default=0.0),
        "seconds": time.monotonic() - start,
        "failures": re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", nargs="+", choices=[*LEVELS, REPRODUCIBLE, NATIVE], help="only these")
    parser.add_argument("--threads", nargs="+", type=int, help="these numbers of threads instead of each level's own")
    chosen, options = parser.parse_known_args()
    levels, remarks = imitable()
    folder, rows = Path(tempfile.mkdtemp(prefix="test-portable-")), []
    for level in [level for level in levels if level in (chosen.levels or levels)]:
        for threads in chosen.threads or THREADS[level]:
            rows.append(run(level, threads, options, folder))
            print(line(rows[-1]), flush=True)
    print(f"\n{'level':<14}{'threads':>8}{'':>4}{'bound used':>12}{'seconds':>9}  result")
    print("\n".join(map(line, rows)))
    print("\n".join([*remarks, f"logs: {folder}"]))
    return 0 if rows and all(row["ok"] for row in rows) else 1


def line(row: dict) -> str:
    """A row of the table, and a line for every failure."""
    verdict = "ok" if row["ok"] else "NO"
    text = f"{row['level']:<14}{row['threads']:>8}{verdict:>4}{row['largest share of a bound']:>12.0%}"
    return "\n".join([f"{text}{row['seconds']:>9.0f}  {row['result']}", *(f"    {name}" for name in row["failures"])])


if __name__ == "__main__":
    sys.exit(main())

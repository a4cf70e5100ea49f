"""`lighthubert demo` from nothing to the end: how long it takes, how much memory, and what comes out.

    python benchmarks/demo.py OUTPUT [--levels native avx2] [--publish]

Runs the demo once a level, in `OUTPUT/LEVEL`, one process after the other; `avx2` switches AVX-512 off in torch,
oneDNN and MKL. A level that ran to its end is not run again; one that was interrupted starts over, since its time
would be that of a part. Memory is the most that the demo's processes held together, shared pages counted once, sampled
twice a second. `--publish` writes `results/demo.json`, the picture, and the tables of docs/demo.md and README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import copyfile
from typing import Any

import psutil
from contenders import insert, machine, markdown

from lighthubert_hf.files import write_json
from lighthubert_hf.training.demo.report import findings, render_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
PICTURE = ROOT / "docs" / "images" / "demo-pareto.png"
COMMAND = "python benchmarks/demo.py OUTPUT --publish"
LEVELS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
_NAMES = {"native": "as it is", "avx2": "without AVX-512"}


def run_level(folder: Path, level: str, options: list[str]) -> dict[str, Any]:
    """Run the demo, or read what a run to the end left: `{"seconds", "peak_bytes", "results"}`."""
    record = folder / f"{level}.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    output = folder / level
    command = [sys.executable, "-m", "lighthubert_hf", "demo", "--output", str(output), "--overwrite", *options]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, env=os.environ | LEVELS[level]) as process:
        while process.poll() is None:
            peak = max(peak, held_by(process.pid))
            time.sleep(0.5)
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"the demo failed in {output}")
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    measured = {"seconds": round(seconds, 1), "peak_bytes": peak, "results": results}
    write_json(record, measured)
    return measured


def held_by(pid: int) -> int:
    """Bytes of memory of a process and all that descend from it; pages that they share count once."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            memory = one.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
        pass
    return total


def time_table(levels: dict[str, dict[str, Any]]) -> str:
    """Where the time goes: a column a level."""
    parts = list(next(iter(levels.values()))["results"]["seconds"])
    rows = [[part, *(f"{run['results']['seconds'][part]:.0f}" for run in levels.values())] for part in parts]
    rows.append(["all, with the start of Python", *(f"**{run['seconds']:.0f}**" for run in levels.values())])
    rows.append(["most memory, GB", *(f"{run['peak_bytes'] / 1e9:.1f}" for run in levels.values())])
    return markdown(["seconds", *(_NAMES[level] for level in levels)], rows)


def publish(levels: dict[str, dict[str, Any]], folder: Path, where: dict[str, Any]) -> None:
    first = next(iter(levels))
    results = levels[first]["results"]
    command = COMMAND if levels.keys() == LEVELS.keys() else f"{COMMAND} --levels {' '.join(levels)}"
    heading = f"{where['date']}, {where['device']}, {where['threads']} threads, torch {where['torch']}; `{command}`"
    minutes = ", ".join(f"{run['seconds'] / 60:.1f} minutes {_NAMES[level]}" for level, run in levels.items())
    table = render_table(results)
    whole = [heading, "", table, "", *findings(results), "", time_table(levels), ""]
    write_json(RESULTS, {"machine": where, "levels": levels})
    copyfile(folder / first / "pareto.png", PICTURE)
    insert(ROOT / "docs" / "demo.md", "demo", "\n".join(whole))
    insert(ROOT / "README.md", "demo", "\n".join([table, "", f"{heading}: {minutes}.", ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a folder for the demos and their times")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--publish", action="store_true", help="write the results into the checkout")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    more = ["--tiny"] if options.tiny else []
    levels = {level: run_level(options.output, level, more) for level in options.levels}
    where = machine()
    print(render_table(next(iter(levels.values()))["results"]), time_table(levels), sep="\n\n")
    if options.publish:
        publish(levels, options.output, where)


if __name__ == "__main__":
    main()

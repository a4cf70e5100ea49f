"""The paper's claims, tested in miniature: synthetic speech, a small teacher, three seeds, two CPU cores.

    python benchmarks/miniature/run.py                       all of it, or what is left of it; then the report
    python benchmarks/miniature/run.py --part stage2 --seed 1
    python benchmarks/miniature/run.py --part report         the report of what is there
    python benchmarks/miniature/run.py --setting tiny --output runs/tiny       every part in a few steps

Parts are processes, `--processes` at a time, with one thread each. A part that is finished is not done again, so a run
may be stopped and called again.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for what all benchmarks share

from parts import Part, Results, all_parts, run_part
from settings import SETTINGS, Setting


def main() -> int:
    options = _arguments()
    setting, output = SETTINGS[options.setting], options.output or Path("runs") / f"miniature-{options.setting}"
    parts = all_parts(setting)
    try:
        Results(output).claim(setting)
        if options.part not in (None, "report"):
            for part in _named(parts, options.part, options.seed):
                run_part(part, setting, output)
            return 0
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    seeds = {None, options.seed} if options.seed is not None else None
    wanted = [part for part in parts if seeds is None or part.seed in seeds]
    left = [] if options.part == "report" else _run_all(wanted, setting, output, options.processes, options.minutes)
    from report import write_report

    print(write_report(setting, output, options.json, options.docs))
    return 1 if left else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    parser.add_argument("--output", type=Path, help="folder (default runs/miniature-SETTING)")
    parser.add_argument("--part", help="one part, or 'report'")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--processes", type=int, default=2, help="parts at a time (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after so long; what is left is for the next call")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all results to this file")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="replace tables and plots of a Markdown file")
    return parser.parse_args()


def _named(parts: list[Part], name: str, seed: int | None) -> list[Part]:
    """The parts of a name, of one seed or of all."""
    found = [part for part in parts if part.name == name and (seed is None or part.seed in (None, seed))]
    if not found:
        names = dict.fromkeys(part.name for part in parts)
        seeds = sorted({part.seed for part in parts} - {None})
        raise ValueError(f"no part {name!r} with seed {seed}; parts: report, {', '.join(names)}; seeds: {seeds}")
    return found


def _run_all(parts: list[Part], setting: Setting, output: Path, processes: int, minutes: float | None) -> list[Part]:
    """Run what is not done, each part when its needs are done; returns the parts that failed or were not reached."""
    results, start = Results(output), time.perf_counter()
    waiting = [part for part in parts if not results.done(part)]
    running: dict[Part, subprocess.Popen] = {}
    failed: list[Part] = []
    try:
        while waiting or running:
            seconds = time.perf_counter() - start
            if minutes is not None and seconds > 60 * minutes:
                print(f"stopped after {minutes:g} minutes; the same command goes on", flush=True)
                break
            for part in [part for part, process in running.items() if process.poll() is not None]:
                del running[part]
                failed += [] if results.done(part) else [part]
                outcome = "done" if results.done(part) else f"failed, see {_log(output, part)}"
                print(f"[{seconds:6.0f} s] {part.key} {outcome}", flush=True)
            failed += [part for part in waiting if set(part.needs) & set(failed)]
            waiting = [part for part in waiting if part not in failed]
            ready = [part for part in waiting if all(results.done(need) for need in part.needs)]
            for part in ready[: processes - len(running)]:
                waiting.remove(part)
                threads = processes if part.seed is None else 1  # what everything waits for may use all cores
                running[part] = _start(part, setting, output, threads)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return [*failed, *waiting, *running]


def _start(part: Part, setting: Setting, output: Path, threads: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--setting", setting.name, "--output", str(output), "--part", part.name]
    command += [] if part.seed is None else ["--seed", str(part.seed)]
    log = _log(output, part)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def _log(output: Path, part: Part) -> Path:
    return output / "logs" / f"{part.key}.log"


if __name__ == "__main__":
    sys.exit(main())

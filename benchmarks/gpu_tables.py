"""What `gpu.py` measured, as the guides' tables. Imported by it."""

from pathlib import Path
from typing import Any

from contenders import insert, markdown

COMMAND = "python benchmarks/gpu.py"


def insert_tables(parts: dict[str, Any], docs: Path) -> None:
    """Put the table of every part that has results into its guide, under the machine and the date.

    Raises:
        ValueError: The results are of tiny models, which say nothing; or a guide lacks the place for its table.
    """
    if any(part["tiny"] for part in parts.values()):
        raise ValueError("these are the results of --tiny, which only tries the program out; measure at full size")
    encoding = [part["result"] for name, part in parts.items() if name.startswith("encoding-")]
    training = [part["result"] for name, part in parts.items() if name.startswith("training-")]
    tables = {
        "gpu_tests": ("performance.md", tests_table(parts["tests"]["result"]) if "tests" in parts else ""),
        "gpu_encoding": ("performance.md", encoding_table(encoding)),
        "gpu_training": ("performance.md", training_table(training)),
        "gpu_recipes": ("training.md", recipes_table(training)),
        "gpu_economical": (
            "training.md",
            economical_table(parts["economical"]["result"]) if "economical" in parts else "",
        ),
    }
    where = next(iter(parts.values()))["machine"]
    heading = f"{where['date']}, {where['device']}, torch {where['torch']}; `{COMMAND}`"
    for name, (guide, table) in tables.items():
        if table:
            insert(docs / guide, name, f"{heading}\n\n{table}\n")


def tests_table(result: dict) -> str:
    rows = [["passed", str(result["passed"])]]
    rows += [[f"failed: {name}", why] for name, why in result["failed"].items()]
    rows += [[f"left out: {name}", why] for name, why in result["skipped"].items()]
    return markdown(["tests on the device", ""], rows)


def encoding_table(results: list[dict]) -> str:
    """A column per batch: milliseconds, times ours, share of the peak; what failed says why at the foot."""
    if not results:
        return ""
    names = dict.fromkeys(name for result in results for name in result["contenders"])
    header = ["median ms (× ours; share of peak)", *(f"{r['batch']} × {r['seconds']:g} s" for r in results)]
    rows = [[name, *(_cell(result["contenders"].get(name)) for result in results)] for name in names]
    rows.append(["bf16 product, TFLOP/s", *(f"{result['peak_tflops']:.0f}" for result in results)])
    failed = {name: why for result in results for name, why in result["failed"].items()}
    return "\n".join([markdown(header, rows), *_footnotes(failed)])


def _cell(row: dict | None) -> str:
    return "" if row is None else f"{row['ms']:.2f} ({row['times_ours']:.2f}; {row['share']:.0%})"


def training_table(results: list[dict]) -> str:
    """A row per recipe and batch."""
    header = [
        "recipe, seconds of audio a batch",
        "audio s/s",
        "step ms",
        "share of peak",
        "peak memory, GB",
        "skipped",
    ]
    rows, failed = [], {}
    for result in results:
        for seconds, row in result["batches"].items():
            memory = "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
            cells = [f"{row['audio_per_second']:,.0f}", f"{row['step_ms']:.0f}", f"{row['share']:.0%}", memory]
            rows.append([f"`{result['recipe']}`, {float(seconds):g}", *cells, str(row["skipped"])])
        failed |= {f"{result['recipe']}, {seconds} s": why for seconds, why in result["failed"].items()}
    return "\n".join([markdown(header, rows), *_footnotes(failed)]) if rows else ""


def recipes_table(results: list[dict]) -> str:
    """A row per recipe, at its own batch. An hour of audio an hour is a second of it a second."""
    header = ["recipe", "audio-hours per GPU-hour", "audio, h", "GPU-hours", "share of peak"]
    rows = []
    for result in results:
        row = result["batches"].get(str(result["own_batch_seconds"]))
        if row is not None:
            speed, audio = row["audio_per_second"], result["audio_hours"]
            cells = [f"{speed:,.0f}", f"{audio:,.0f}", f"{audio / speed:,.0f}", f"{row['share']:.0%}"]
            rows.append([f"`{result['recipe']}`", *cells])
    return markdown(header, rows) if rows else ""


def economical_table(result: dict, points: int = 12) -> str:
    """Loss in training, and on held-out audio where it was measured, against time."""
    header = ["minutes", "steps", "audio, h", "audio s/s", "training loss", "held out: smallest", "default", "largest"]
    validation = {entry["step"]: entry["validation"] for entry in result["log"] if "validation" in entry}
    steps = [entry for entry in result["log"] if "audio_seconds" in entry]
    shown = {entry["step"] for entry in steps[:: max(len(steps) // points, 1)]} | validation.keys()
    rows, minutes, before = [], 0.0, 0.0
    for entry in steps:
        minutes += (entry["audio_seconds"] - before) / entry["audio_per_second"] / 60
        before = entry["audio_seconds"]
        if entry["step"] in shown:
            losses = validation.get(entry["step"], {})
            cells = [str(entry["step"]), f"{before / 3600:.1f}", f"{entry['audio_per_second']:,.0f}"]
            cells.append("" if entry["loss"] is None else f"{entry['loss']:.4f}")
            held_out = [f"{losses[n]:.4f}" if n in losses else "" for n in ("smallest", "default", "largest")]
            rows.append([f"{minutes:.1f}", *cells, *held_out])
    return markdown(header, rows)


def _footnotes(failed: dict[str, str]) -> list[str]:
    return ["", *(f"- {name}: {why}" for name, why in failed.items())] if failed else []

"""Constants that were tuned on one processor: is their value the best one here, and without AVX-512?

    python benchmarks/thresholds.py [--levels native avx2] [--json OUT] [--docs docs/performance.md]

Each candidate of a constant runs in turn with the others; a figure is the median, over the rounds, of its time over
that of the value in use. `avx2` switches AVX-512 off in torch, oneDNN and MKL, in a process of its own. One thread,
and its processor time, which other work on the machine hardly changes. The 27M default subnet, random weights, fp32.
Two of the questions are about no constant: whether oneDNN's product pays, and F(2, 2).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import SAMPLING_RATE, add_outputs, machine, markdown, matmul_rate, measure, publish, static_model
from torch.nn import functional as F

from lighthubert_hf import SearchSpace
from lighthubert_hf.model import channels_last, channels_last_autograd, elastic, fast_encoder, fast_linear
from lighthubert_hf.model.channels_last import SLACK, PackedConv, window_parts

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
LEVELS = {"native": {}, "avx2": AVX2}

Contenders = dict[Any, Callable[[], Any]]


def candidates(module, name: str, values: tuple[int, ...], run: Callable[[], Any]) -> tuple[Any, Contenders]:
    """The value in use, and `run` with each of `values` in its place."""

    def with_value(value):
        def timed():
            before = getattr(module, name)
            setattr(module, name, value)
            try:
                return run()
            finally:
                setattr(module, name, before)

        return timed

    return getattr(module, name), {value: with_value(value) for value in values}


def front_end(name: str, values: tuple[int, ...], model, seconds: float):
    audio = torch.randn(1, round(seconds * SAMPLING_RATE))
    return candidates(channels_last, name, values, lambda: model.feature_extractor(audio))


def front_end_training(model):
    audio, parameters = torch.randn(1, 4 * SAMPLING_RATE), list(model.feature_extractor.parameters())

    def step():
        with torch.enable_grad():
            return torch.autograd.grad(model.feature_extractor(audio).sum(), parameters)

    return candidates(channels_last_autograd, "TILE_ROWS", (512, 1024, 2048), step)


def positional(model, frames: int, training: bool = False):
    """By Fourier transform (a threshold of no frames) or direct (of more than there are)."""
    conv = model.encoder.pos_conv_embed.conv
    states = torch.randn(1, frames, model.config.hidden_size)

    def step():
        with torch.enable_grad():
            return torch.autograd.grad(conv(states).sum(), list(conv.parameters()))

    name = "MIN_FOURIER_FRAMES_TRAINING" if training else "MIN_FOURIER_FRAMES"
    value, runs = candidates(elastic, name, (0, frames + 1), step if training else lambda: conv(states))
    in_use = "Fourier" if frames >= value else "direct"
    return in_use, dict(zip(("Fourier", "direct"), runs.values()))


def grouping(model):
    lengths = torch.arange(1, 9) * SAMPLING_RATE // 2  # eight rows of half a second to four seconds
    mask = (torch.arange(int(lengths[-1])) < lengths[:, None]).long()
    features = model.extract_features(torch.randn(mask.shape) * mask, mask)
    return candidates(fast_encoder, "FRAMES_PER_GROUP", (50, 100, 200), lambda: model.encode(features, mask))


def products(model, frames: int):
    """The encoder's layers by oneDNN's product, or by torch's own."""
    states = torch.randn(1, frames, model.config.hidden_size)
    in_use, possible = "oneDNN", fast_linear.has_onednn
    values = (possible, lambda: False)
    _, runs = candidates(fast_linear, "has_onednn", values, lambda: model.encoder(states))
    return in_use, dict(zip(("oneDNN", "@"), runs.values()))


def pairs(rows: int):
    """A layer of 512 channels, kernel 3, stride 2."""
    weight = torch.randn(512, 512, 3)
    in_pairs, direct = PackedConv(weight, 2), PackedConv(weight, 2)
    direct.in_pairs, direct.weight = False, weight.permute(2, 1, 0).reshape(-1, 512).contiguous()
    direct.parts = window_parts(len(direct.weight), 2 * 512)
    source, out = torch.randn(in_pairs.rows_in(rows) + SLACK, 512), torch.empty(rows + 1, 512)
    # The source is overwritten by every run: differences of differences, kept finite.
    runs = {"F(2, 2)": in_pairs, "direct": direct}
    return "F(2, 2)", {
        name: lambda conv=conv: conv.multiply(source.copy_(F.hardtanh(source)), rows, out)
        for name, conv in runs.items()
    }


def questions() -> dict[str, tuple[Any, Contenders]]:
    model = static_model(SearchSpace.small().default())
    found = {f"`CHUNK_FRAMES`, {s} s": front_end("CHUNK_FRAMES", (64, 128, 256), model, s) for s in (1, 5)}
    found |= {f"`TILE_ROWS`, {s} s": front_end("TILE_ROWS", (512, 1024, 2048), model, s) for s in (1, 5)}
    found["`TILE_ROWS`, training, 4 s"] = front_end_training(model)
    found["`FRAMES_PER_GROUP`, 8 rows to 4 s"] = grouping(model)
    found |= {f"`MIN_FOURIER_FRAMES`, {frames} frames": positional(model, frames) for frames in (1, 4, 8, 16, 49)}
    counts = (32, 99, 199, 249, 499)
    found |= {f"`MIN_FOURIER_FRAMES_TRAINING`, {n} frames": positional(model, n, training=True) for n in counts}
    found |= {f"oneDNN's product, {frames} frames": products(model, frames) for frames in (49, 249)}
    return found | {"F(2, 2), a tile": pairs(channels_last.TILE_ROWS)}


def run_level(rounds: int, only: str) -> dict[str, Any]:
    """Each question's candidates: median time over that of the value in use."""
    rows, rates = {}, []
    with torch.no_grad():
        for question, (in_use, contenders) in questions().items():
            if only not in question:
                continue
            times = measure(contenders, rounds, clock=time.process_time)
            rates.append(matmul_rate(times))
            ratios = {
                str(value): round(median(a / b for a, b in zip(times[value], times[in_use])), 3)
                for value in contenders
            }
            rows[question] = {"in_use": str(in_use), "ratios": ratios}
    return {"capability": torch.backends.cpu.get_cpu_capability(), "matmul_gflops": round(median(rates)), "rows": rows}


def launch(level: str, options) -> dict[str, Any]:
    """`run_level` in a process whose libraries see `level`."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, "--worker", str(answer), "--rounds", str(options.rounds)]
        command += ["--only", options.only]
        subprocess.run(command, env=os.environ | LEVELS[level], check=True)
        return json.loads(answer.read_text())


def table(levels: dict[str, dict]) -> str:
    """The value in use is bold."""

    def cell(row: dict) -> str:
        shown = (f"{value}: {ratio:.2f}" for value, ratio in row["ratios"].items())
        return ", ".join(f"**{text}**" if text.startswith(f"{row['in_use']}: ") else text for text in shown)

    header = ["", *(f"{level}: {found['capability']}" for level, found in levels.items())]
    names = next(iter(levels.values()))["rows"]
    rows = [[name, *(cell(found["rows"][name]) for found in levels.values())] for name in names]
    rows.append(["matmul, GFLOP/s", *(str(found["matmul_gflops"]) for found in levels.values())])
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--rounds", type=int, default=7, help="how often each candidate runs (default %(default)s)")
    parser.add_argument("--only", metavar="TEXT", default="", help="questions that contain this")
    parser.add_argument("--worker", metavar="OUT", help=argparse.SUPPRESS)
    add_outputs(parser)
    options = parser.parse_args()
    if options.worker:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        Path(options.worker).write_text(json.dumps(run_level(options.rounds, options.only)), encoding="utf-8")
        return
    levels = {level: launch(level, options) for level in options.levels}
    publish("thresholds", {"machine": machine(), "levels": levels}, table(levels), options)


if __name__ == "__main__":
    main()

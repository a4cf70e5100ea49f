"""Memory that features of long recordings take, chunk by chunk and in one forward.

    python benchmarks/long_audio.py [--minutes 1 60] [--json OUT] [--docs docs/model.md]

Every row is measured in a process of its own, whose peak resident memory is compared with that right before the
forward, when model and recording are in memory. Weights are random (the default subnet of the `small` space): they do
not change the memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from contenders import add_outputs, machine, markdown, publish

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.long_audio import exact_context, iterate_long_features
from lighthubert_hf.model.extraction import subnet_config
from lighthubert_hf.preprocessing import SAMPLING_RATE

WINDOW = 16  # frames: 0.32 seconds
WHOLE_UP_TO = 5  # minutes that one forward is tried with
GLOBAL_UP_TO = 10  # minutes that chunks with global attention are tried with: the memory is that of a chunk


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(minutes: float, window: int | None, whole: bool) -> dict:
    """One row of the table, in this process."""
    space = SearchSpace.small()
    config = subnet_config(LightHubertConfig(search_space=space, attention_window=window), space.default())
    model = LightHubertModel(config).eval()
    recording = torch.randn(int(minutes * 60 * SAMPLING_RATE))
    with torch.no_grad():
        model(recording[None, : 2 * SAMPLING_RATE])  # libraries allocate their own on first use
    before, start = peak_megabytes(), time.perf_counter()
    if whole:
        with torch.no_grad():
            frames = model(recording[None]).last_hidden_state.shape[1]
    else:
        frames = sum(len(chunk) for chunk in iterate_long_features(model, recording))
    return {
        "minutes": minutes,
        "window": window,
        "how": "one forward" if whole else "chunks",
        "exact": whole or exact_context(model) is not None,
        "frames": frames,
        "extra_megabytes": round(peak_megabytes() - before),
        "recording_megabytes": round(recording.nbytes / 2**20),
        "seconds": round(time.perf_counter() - start, 1),
    }


def cases(minutes: list[float]) -> list[dict]:
    """Chunks with a sliding window at every length; with global attention, and in one forward, at the short ones."""
    found = [{"minutes": m, "window": WINDOW, "whole": False} for m in minutes]
    found += [{"minutes": m, "window": None, "whole": False} for m in minutes if m <= GLOBAL_UP_TO]
    return found + [
        {"minutes": m, "window": w, "whole": True} for w in (WINDOW, None) for m in minutes if m <= WHOLE_UP_TO
    ]


def table(rows: list[dict]) -> str:
    header = ["audio", "attention", "computed", "frames", "exact", "the recording, MB", "more memory, MB", "seconds"]
    cells = [
        [
            f"{row['minutes']:g} min",
            f"window of {row['window']} frames" if row["window"] else "global",
            row["how"],
            f"{row['frames']:,}",
            "yes" if row["exact"] else "no",
            str(row["recording_megabytes"]),
            str(row["extra_megabytes"]),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return markdown(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 60])
    parser.add_argument("--row", help=argparse.SUPPRESS)  # how this program calls itself
    add_outputs(parser)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(**json.loads(options.row))))
        return
    rows = []
    for case in cases(options.minutes):
        command = [sys.executable, __file__, "--row", json.dumps(case)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    publish("long_audio", {"machine": machine(), "rows": rows}, table(rows), options)


if __name__ == "__main__":
    main()

"""Memory that features of long recordings take, chunk by chunk and in one forward.

    python benchmarks/long_audio.py [--minutes 1 10 60] [--output results.json]

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

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.extraction import subnet_config
from lighthubert_hf.long_audio import SAMPLING_RATE, exact_context, iterate_long_features

WINDOW = 32  # frames: 0.64 seconds
WHOLE_UP_TO = 5  # minutes that one forward is tried with


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60])
    parser.add_argument("--output", help="write the rows as JSON to this file")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # how this program calls itself
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(**json.loads(options.row))))
        return
    rows = []
    cases = [(m, window, whole) for window in (WINDOW, None) for whole in (False, True) for m in options.minutes]
    print("minutes  window  how          exact  extra memory  time")
    for minutes, window, whole in cases:
        if whole and minutes > WHOLE_UP_TO:
            continue
        arguments = json.dumps({"minutes": minutes, "window": window, "whole": whole})
        command = [sys.executable, __file__, "--row", arguments]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        row = rows[-1]
        print(
            f"{minutes:7g}  {window or 'global':6}  {row['how']:11}  {'yes' if row['exact'] else 'no':5}  "
            f"{row['extra_megabytes']:9} MB  {row['seconds']:.0f} s",
            flush=True,
        )
    if options.output:
        with open(options.output, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

"""Who is measured against whom, and how: in turn, medians, beside the machine's own matrix products.

Imported by the other programs in this folder.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig, HubertModel

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.costs.measuring import MATMUL_FLOP, describe_machine, matmul_contender
from lighthubert_hf.model.extraction import subnet_config
from lighthubert_hf.progress import progress_bar

SAMPLING_RATE = 16_000
MATMUL = "matmul"
PLACES = {"--original": "CHECKOUT", "--model": "FOLDER"}  # options that name a place on this machine


def arguments(description: str, rounds: int, original: bool = True) -> argparse.ArgumentParser:
    """The options all programs share; `original`: whether the original implementation is a contender."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if original:
        parser.add_argument("--original", metavar="CHECKOUT", help="the original implementation (commit d53e545)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="how often each contender runs (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    add_outputs(parser)
    return parser


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Where [`publish`] writes to."""
    parser.add_argument("--json", metavar="OUT", help="write all results to this file")
    parser.add_argument("--docs", metavar="FILE", help="replace this benchmark's table in a Markdown file")


def static_model(subnet: Subnet, space: SearchSpace | None = None) -> LightHubertModel:
    """The subnet of a space, by default `small`, extracted, with random weights."""
    config = LightHubertConfig(search_space=space or SearchSpace.small())
    return LightHubertModel(subnet_config(config, subnet)).eval()


def hubert_base(**overrides) -> HubertModel:
    return HubertModel(HubertConfig(**overrides)).eval()


def original_model(checkout: str, space: str = "small"):
    """The original's model of the space `small` or `base` with random weights."""
    sys.path.insert(0, checkout)
    original = importlib.import_module("lighthubert")
    config = original.LightHuBERTConfig()
    config.supernet_type = space
    return original.LightHuBERT(config).eval()


def activate_original(model, subnet: Subnet) -> None:
    heads, depth = list(subnet.num_attention_heads), subnet.num_hidden_layers
    model.set_sample_config(
        {
            "atten_dim": [64 * number for number in heads],
            "embed_dim": subnet.hidden_size,
            "ffn_embed": list(subnet.intermediate_size),
            "heads_num": heads,
            "layer_num": depth,
            "slide_wsz": ["global"] * depth,
        }
    )


def count_flop(run: Callable[[], Any]) -> int:
    """What torch counts: convolutions and matrix products, without those inside the CPU's fused attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(
    contenders: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of every run of every contender and of a plain matrix product, all in turn; two rounds warm up."""
    contenders = {MATMUL: matmul_contender(torch.device("cpu"), torch.float32)} | contenders
    times = {name: [] for name in contenders}
    for index in progress_bar(range(rounds + 2), "measuring", unit="rounds"):
        for name, run in contenders.items():
            start = clock()
            run()
            if index >= 2:
                times[name].append(1e3 * (clock() - start))
    return times


def matmul_rate(times: dict[str, list[float]]) -> float:
    """GFLOP/s of the matrix product in this run."""
    return MATMUL_FLOP / median(times[MATMUL]) / 1e6


def summary(times: list[float]) -> dict[str, float]:
    """Median, least, and the middle half's width as a share of the median: how noisy the run was."""
    ordered = sorted(times)
    spread = (ordered[(3 * len(ordered)) // 4] - ordered[len(ordered) // 4]) / median(ordered)
    return {"median_ms": round(median(ordered), 2), "least_ms": round(ordered[0], 2), "spread": round(spread, 3)}


def machine() -> dict[str, Any]:
    """`commit` is `None` in a copy of the checkout that git does not know."""
    commit = None
    if shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        commit = done.stdout.strip() or None
    return describe_machine() | {"date": date.today().isoformat(), "commit": commit}


def publish(name: str, results: dict[str, Any], table: str, options: argparse.Namespace) -> None:
    """Print the table; write results and table where the options say."""
    where = results["machine"]
    heading = (
        f"{where['date']}, {where['device']}, {where['threads']} threads, torch {where['torch']}; "
        f"`python {' '.join([f'benchmarks/{name}.py', *_shown_arguments()])}`"
    )
    text = f"{heading}\n\n{table}\n"
    print(text)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.docs:
        insert(Path(options.docs), name, text)


def insert(guide: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of `name` in a Markdown file."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = guide.read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{guide} has no place for this table: add the lines {begin.strip()!r} and {end!r}")
    guide.write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")


def _shown_arguments() -> list[str]:
    """The command line as a reader may repeat it: without what names a place on this machine."""
    shown, skip = [], False
    for argument in sys.argv[1:]:
        if skip:
            skip = False
        elif argument in ("--json", "--docs"):
            skip = True
        elif argument in PLACES:
            shown += [argument, PLACES[argument]]
            skip = True
        else:
            shown.append(argument)
    return shown


def markdown(header: list[str], rows: list[list[str]]) -> str:
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, align, *rows])

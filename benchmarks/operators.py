"""Where our own time goes, operator by operator: what bounds encoding.

    python benchmarks/operators.py [--json OUT] [--docs docs/performance.md]

The 27M default subnet, random weights, fp32, under torch.profiler, which makes all a little slower.
"""

import torch
from contenders import SAMPLING_RATE, arguments, machine, markdown, publish, static_model
from torch.profiler import ProfilerActivity, profile

from lighthubert_hf import SearchSpace

LEAST_SHARE = 0.01


@torch.inference_mode()
def shares(model: torch.nn.Module, seconds: float, rounds: int) -> dict[str, float]:
    """Each operator's share of the time, callees not included, largest first; the small ones together."""
    audio = torch.randn(1, round(seconds * SAMPLING_RATE))
    for _ in range(2):
        model(audio)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(rounds):
            model(audio)
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(times.values())
    found = {name: time / total for name, time in times.items() if time >= LEAST_SHARE * total}
    found = dict(sorted(found.items(), key=lambda item: -item[1]))
    return found | {"all others": 1 - sum(found.values())}


def main() -> None:
    parser = arguments(__doc__, rounds=5, original=False)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10], help="lengths of audio")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = static_model(SearchSpace.small().default())
    columns = {
        f"{name}, {seconds:g} s": shares(module, seconds, options.rounds)
        for name, module in {"front end": model.feature_extractor, "whole model": model}.items()
        for seconds in options.seconds
    }
    names = dict.fromkeys(name for column in columns.values() for name in column if name != "all others")
    rows = [
        [f"`{name}`" if "::" in name else name]
        + [f"{column[name]:.0%}" if name in column else "" for column in columns.values()]
        for name in [*names, "all others"]
    ]
    publish("operators", {"machine": machine(), "columns": columns}, markdown(["", *columns], rows), options)


if __name__ == "__main__":
    main()

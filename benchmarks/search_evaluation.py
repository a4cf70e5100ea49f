"""What scoring a subnet costs: from cached targets and features, and as the original does it.

python benchmarks/search_evaluation.py [--original CHECKOUT] [--json OUT] [--docs docs/performance.md]

Contenders, in turn on the same audio and subnets: the cached score; teacher and full student for every subnet, with
this package and with the original's student. All students have the same random weights, the teacher has the shape of
HuBERT Base. How much the scores differ is reported too.
"""

import argparse
import random
import time
from collections.abc import Callable
from statistics import median

import torch
from contenders import (
    activate_original,
    arguments,
    hubert_base,
    machine,
    markdown,
    original_model,
    publish,
)

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet
from lighthubert_hf.conversion.original.names import HEAD, from_original
from lighthubert_hf.costs.measuring import MATMUL_FLOP, matmul_contender
from lighthubert_hf.training.distillation.scoring import DistillationScore, teacher_targets

SPACE = SearchSpace.small()
CACHED, IN_FULL, ORIGINAL = "cached score", "teacher and full student, ours", "teacher and full student, original"


def supernet(original: torch.nn.Module | None) -> LightHubertForPreTraining:
    """The supernet of the `small` space, with the original's weights if that is at hand."""
    model = LightHubertForPreTraining(LightHubertConfig(search_space=SPACE)).eval()
    if original is not None:
        state = {from_original(name): tensor for name, tensor in original.state_dict().items()}
        state.pop(None, None)
        names = {name: name if name == HEAD else f"lighthubert.{name}" for name in state}
        model.load_state_dict({names[name]: tensor for name, tensor in state.items()}, strict=True)
    return model


def scores(options: argparse.Namespace) -> dict[str, Callable[[Subnet], float]]:
    """What is measured: functions from a subnet to its loss."""
    torch.manual_seed(0)
    original = original_model(options.original) if options.original else None
    student, targets = supernet(original), teacher_targets(hubert_base())
    wave = torch.randn(options.clips, round(options.seconds * 16_000))
    batch = {"input_values": wave, "attention_mask": torch.ones_like(wave, dtype=torch.long)}

    @torch.inference_mode()
    def in_full(subnet: Subnet) -> float:
        with student.subnet_activated(subnet):
            return student(wave, targets=targets(batch)).loss.item()

    @torch.inference_mode()
    def by_the_original(subnet: Subnet) -> float:
        activate_original(original, subnet)
        prediction = original(wave, mask=False)["layer_heads"][-1][0]
        return (prediction - targets(batch)).abs().mean().item()

    found = {CACHED: DistillationScore(student, [batch], targets, progress=False), IN_FULL: in_full}
    return found | {ORIGINAL: by_the_original} if original is not None else found


def measure(contenders: dict[str, Callable], subnets: list[Subnet], rounds: int) -> tuple[dict, dict, float]:
    """Median milliseconds and score for each contender and subnet, and the GFLOP/s of a matrix product."""
    times = {name: {subnet: [] for subnet in subnets} for name in contenders}
    values = {name: {} for name in contenders}
    matmul, rates = matmul_contender(torch.device("cpu"), torch.float32), []
    for function in contenders.values():
        function(subnets[0])  # warm-up
    for _ in range(rounds):
        for subnet in subnets:
            start = time.perf_counter()
            matmul()
            rates.append(MATMUL_FLOP / (time.perf_counter() - start) / 1e9)
            for name, function in contenders.items():
                start = time.perf_counter()
                values[name][subnet] = function(subnet)
                times[name][subnet].append(1e3 * (time.perf_counter() - start))
    medians = {name: [median(times[name][subnet]) for subnet in subnets] for name in contenders}
    return medians, values, median(rates)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--clips", type=int, default=4, help="clips in the batch (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip (default %(default)s)")
    parser.add_argument(
        "--random", type=int, default=5, help="subnets beside smallest, default and largest (default %(default)s)"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rng = random.Random(0)
    subnets = [SPACE.smallest(), SPACE.default(), SPACE.largest(), *(SPACE.sample(rng) for _ in range(options.random))]
    medians, values, rate = measure(scores(options), subnets, options.rounds)
    results = {"machine": machine(), "matmul_gflops": round(rate, 1), "contenders": {}}
    for name, found in medians.items():
        ratios = [slow / fast for slow, fast in zip(found, medians[CACHED])]
        results["contenders"][name] = {
            "median_ms_per_subnet": round(median(found), 1),
            "times_the_cached": round(median(ratios), 2),
            "times_the_cached_least": round(min(ratios), 2),
            "largest_score_difference": max(abs(values[name][s] - values[CACHED][s]) for s in subnets),
        }
    cells = [
        [
            name,
            f"{row['median_ms_per_subnet']:.0f}",
            f"{row['times_the_cached']:.1f} ({row['times_the_cached_least']:.1f})",
            f"{row['largest_score_difference']:.1g}",
        ]
        for name, row in results["contenders"].items()
    ]
    header = ["", "median ms per subnet", "times the cached score (least)", "score differs by at most"]
    publish("search_evaluation", results, markdown(header, cells), options)


if __name__ == "__main__":
    main()

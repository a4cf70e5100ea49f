"""What scoring a subnet costs: from cached targets and features, and as the original does it, both in one run.

    python benchmarks/search_evaluation.py [--original CHECKOUT] [--output FILE.json]

Contenders, run in turn on the same audio and subnets: the cached score; teacher and full student for every subnet with
this package; and, given a checkout of the original (commit d53e545), teacher and the original's student. Weights are
random and the same for all students, the teacher has the shape of HuBERT Base. Reported are milliseconds per subnet
(medians over the subnets), ratios, and by how much the scores differ.
"""

import argparse
import importlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import HubertConfig, HubertModel

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet
from lighthubert_hf.conversion.original_names import from_original
from lighthubert_hf.measuring import MATMUL_FLOP, describe_machine, matmul_contender, stopwatch
from lighthubert_hf.training.scoring import DistillationScore, teacher_targets

CPU = torch.device("cpu")


def make_original(checkout: str) -> tuple[torch.nn.Module, Callable[[Subnet], None]]:
    """The original's `small` model with random weights, and how to make it run a subnet."""
    sys.path.insert(0, checkout)
    original = importlib.import_module("lighthubert")
    config = original.LightHuBERTConfig()
    config.supernet_type = "small"
    model = original.LightHuBERT(config).eval()

    def activate(subnet: Subnet) -> None:
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

    return model, activate


def make_student(original: torch.nn.Module | None) -> LightHubertForPreTraining:
    """The supernet of the `small` space, with the original's weights if it is at hand."""
    student = LightHubertForPreTraining(LightHubertConfig(search_space=SearchSpace.small())).eval()
    if original is not None:
        names = {name: from_original(name) for name in original.state_dict()}
        state = {names[name]: tensor for name, tensor in original.state_dict().items() if names[name] is not None}
        prefixed = {
            name if name.startswith("prediction_head") else f"lighthubert.{name}": state[name] for name in state
        }
        student.load_state_dict(prefixed, strict=True)
    return student


def run(arguments: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    original, activate = make_original(arguments.original) if arguments.original else (None, None)
    student = make_student(original)
    targets = teacher_targets(HubertModel(HubertConfig()))
    wave = torch.randn(arguments.clips, round(arguments.seconds * 16_000))
    batch = {"input_values": wave, "attention_mask": torch.ones_like(wave).long()}
    score = DistillationScore(student, [batch], targets, progress=False)

    def cached(subnet: Subnet) -> float:
        return score(subnet)

    @torch.inference_mode()
    def in_full(subnet: Subnet) -> float:
        with student.subnet_activated(subnet):
            return student(batch["input_values"], targets=targets(batch)).loss.item()

    @torch.inference_mode()
    def by_the_original(subnet: Subnet) -> float:
        activate(subnet)
        prediction = original(batch["input_values"], mask=False)["layer_heads"][-1][0]
        return (prediction - targets(batch)).abs().mean().item()

    contenders = {"cached": cached, "in full": in_full} | ({"original": by_the_original} if original else {})
    space, rng = SearchSpace.small(), random.Random(0)
    subnets = [
        space.smallest(),
        space.default(),
        space.largest(),
        *(space.sample(rng) for _ in range(arguments.random)),
    ]
    return measure(contenders, subnets, arguments)


def measure(contenders: dict[str, Callable[[Subnet], float]], subnets: list[Subnet], arguments) -> dict:
    times = {name: {subnet: [] for subnet in subnets} for name in contenders}
    values = {name: {} for name in contenders}
    matmul, rates = matmul_contender(CPU, torch.float32), []
    for round_index in range(arguments.rounds + 1):  # the first warms up
        for subnet in subnets if round_index else subnets[:1]:
            for name, function in contenders.items():
                milliseconds = stopwatch(lambda n=name, f=function, s=subnet: values[n].update({s: f(s)}), CPU)
                if round_index:
                    times[name][subnet].append(milliseconds)
        rates.append(MATMUL_FLOP / stopwatch(matmul, CPU) / 1e6)
    medians = {name: [median(times[name][subnet]) for subnet in subnets] for name in contenders}
    ratios = {
        name: [slow / fast for slow, fast in zip(medians[name], medians["cached"])]
        for name in contenders
        if name != "cached"
    }
    return {
        "machine": describe_machine(),
        "matmul_gflops": round(median(rates), 1),
        "audio": f"{arguments.clips} x {arguments.seconds:g} s",
        "subnets": len(subnets),
        "rounds": arguments.rounds,
        "ms_per_subnet": {name: round(median(found), 1) for name, found in medians.items()},
        "times_cached": {
            name: {"median": round(median(r), 2), "least": round(min(r), 2)} for name, r in ratios.items()
        },
        "largest_score_difference": {
            name: max(abs(values[name][subnet] - values["cached"][subnet]) for subnet in subnets) for name in ratios
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", help="a checkout of the original implementation")
    parser.add_argument("--clips", type=int, default=4, help="clips in the batch of audio")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--random", type=int, default=5, help="random subnets beside smallest, default and largest")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    text = json.dumps(run(arguments), indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

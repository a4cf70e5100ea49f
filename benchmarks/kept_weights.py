"""What is it worth to keep weights arranged between calls, and what does it cost to find out whether they changed?

    python benchmarks/kept_weights.py [--rounds 12] [--json OUT] [--docs docs/performance.md]

The 27M default subnet, random weights, fp32. Processor time of one thread, so that other work on the machine disturbs
little; medians, with the contenders in turn.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from contenders import arguments, machine, markdown, publish, static_model
from torch.nn import functional as F

from lighthubert_hf import SearchSpace
from lighthubert_hf.model.channels_last import PackedConv
from lighthubert_hf.model.fast_linear import product
from lighthubert_hf.model.fast_paths import are_equal


def contenders(model) -> dict[str, Callable[[], object]]:
    layers = [module for module in model.encoder.layers.modules() if isinstance(module, torch.nn.Linear)]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    arranged = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in weights]
    copies = [weight.clone() for weight in weights]
    runs = {}
    for name, frames in (("1 s", 49), ("10 s", 499)):
        inputs = [torch.randn(frames, layer.in_features) for layer in layers]
        for how, multiply, used in (
            ("torch's `@`", F.linear, weights),
            ("oneDNN, weights as they lie", product, weights),
            ("oneDNN, weights arranged before", product, arranged),
        ):
            runs[f"linear layers, {name}: {how}"] = lambda m=multiply, i=inputs, u=used: list(map(m, i, u, biases))
    convs = model.feature_extractor.conv_layers
    kernels, position = [layer.conv.weight for layer in convs], model.encoder.pos_conv_embed.conv
    kernel_copies, position_copies = ([w.clone() for w in tensors] for tensors in (kernels, position.parameters()))
    return runs | {
        "linear layers: all weights compared with a copy": lambda: are_equal(weights, copies),
        "convolutions: weights arranged": lambda: [PackedConv(c.conv.weight, c.conv.stride[0]) for c in convs],
        "convolutions: all weights compared with a copy": lambda: are_equal(kernels, kernel_copies),
        "positional convolution: spectrum made": position._weight_spectrum,
        "positional convolution: all weights compared with a copy": lambda: are_equal(
            list(position.parameters()), position_copies
        ),
    }


def processor_milliseconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return 1e3 * (time.thread_time() - start)


def main() -> None:
    options = arguments(__doc__, rounds=12, original=False).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        runs = contenders(static_model(SearchSpace.small().default()))
        times = {name: [] for name in runs}
        for _ in range(options.rounds + 1):
            for name, run in runs.items():
                times[name].append(processor_milliseconds(run))
    found = {name: round(median(of_run[1:]), 2) for name, of_run in times.items()}  # the first warms up
    table = markdown(["", "ms"], [[name, f"{value:.1f}"] for name, value in found.items()])
    publish("kept_weights", {"machine": machine(), "processor_ms": found}, table, options)


if __name__ == "__main__":
    main()

"""What a narrow front end gains: subnets of `small_elastic`, beside HuBERT Base and what else they could be run as.

    python benchmarks/narrow_front_ends.py [--original CHECKOUT] [--json OUT] [--docs docs/performance.md]

Each narrow subnet runs as our static model and, in transformers, as the plain `HubertModel` of `to_hubert`.
The 27M default with its whole front end, DistilHuBERT's shape and, given a checkout, the original's 27M default stand
beside them. Weights are random, fp32. The table shows how many times as fast as HuBERT Base each is.
"""

from collections.abc import Callable

import torch
from contenders import (
    activate_original,
    arguments,
    hubert_base,
    machine,
    markdown,
    matmul_rate,
    measure,
    original_model,
    publish,
    static_model,
    summary,
)
from inference import ORIGINAL, batch_of

from lighthubert_hf import SearchSpace, Subnet

BASE = "HuBERT Base"
WIDE, NARROW = (128, 128, 192, 256, 256, 384, 512), (64, 96, 128, 192, 256, 384, 512)
SUBNETS = {
    "384 wide, 12 layers, front end 128–512": Subnet(384, (6,) * 12, (1536,) * 12, WIDE),
    "384 wide, 10 layers, front end 64–512": Subnet(384, (4,) * 10, (1152,) * 10, NARROW),
    "256 wide, 10 layers, front end 64–512": Subnet(256, (4,) * 10, (768,) * 10, NARROW),
}


def build(options) -> tuple[dict, dict[str, float]]:
    """Contenders, which take `(batch, samples)` audio and its mask, and their millions of parameters where known."""
    space = SearchSpace.small_elastic()
    models: dict[str, torch.nn.Module] = {
        BASE: hubert_base(),
        "DistilHuBERT's shape": hubert_base(num_hidden_layers=2),
        "the 27M default, whole front end": static_model(SearchSpace.small().default()),
    }
    for name, subnet in SUBNETS.items():
        if subnet not in space:
            raise ValueError(f"{subnet} is not in the space small_elastic")
        models[name] = static_model(subnet, space)
        models[f"{name}, plain in transformers"] = models[name].to_hubert()
    contenders = {name: runner(model) for name, model in models.items()}
    if options.original:
        original = original_model(options.original)
        activate_original(original, SearchSpace.small().default())
        contenders[ORIGINAL] = lambda audio, valid: original.extract_features(
            audio, padding_mask=None if valid is None else valid == 0
        )
    return contenders, {name: model.num_parameters() / 1e6 for name, model in models.items()}


def runner(model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor | None], object]:
    return lambda audio, valid: model(audio, attention_mask=valid)


def run_setting(contenders: dict, batch: int, seconds: float, uneven: bool, rounds: int) -> dict:
    audio, valid = batch_of(batch, seconds, uneven)
    mask = valid.long() if uneven else None
    with torch.inference_mode():
        times = measure({name: lambda run=run: run(audio, mask) for name, run in contenders.items()}, rounds)
    rows = {name: summary(times[name]) for name in contenders}
    base = dict(rows[BASE])
    for row in rows.values():
        row["times_base"] = round(base["median_ms"] / row["median_ms"], 2)
        row["times_base_least"] = round(base["least_ms"] / row["least_ms"], 2)
    rate = round(matmul_rate(times), 1)
    return {"batch": batch, "seconds": seconds, "uneven": uneven, "matmul_gflops": rate, "contenders": rows}


def table(settings: list[dict], parameters: dict[str, float]) -> str:
    header = ["times as fast as HuBERT Base, by medians (by least times)", "M parameters"]
    header += [f"{s['batch']} × {s['seconds']:g} s" + (", uneven" if s["uneven"] else "") for s in settings]
    rows = []
    for name in settings[0]["contenders"]:
        cells = [f"{parameters[name]:.1f}" if name in parameters else ""]
        found = [setting["contenders"][name] for setting in settings]
        rows.append([name, *cells, *(f"{row['times_base']:.2f} ({row['times_base_least']:.2f})" for row in found)])
    base = (f"{s['contenders'][BASE]['median_ms']:.0f}" for s in settings)
    rows.append(["HuBERT Base, ms", "", *base])
    return markdown(header, [*rows, ["matmul, GFLOP/s", "", *(f"{s['matmul_gflops']:.0f}" for s in settings)]])


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    contenders, parameters = build(options)
    settings = [(1, 1, False), (1, 10, False), (4, 4, True)]
    settings = [run_setting(contenders, *setting, options.rounds) for setting in settings]
    results = {"machine": machine(), "parameters": parameters, "settings": settings}
    publish("narrow_front_ends", results, table(settings, parameters), options)


if __name__ == "__main__":
    main()

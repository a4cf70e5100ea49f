"""Encoding audio: how long each contender takes, and which share of the machine's matmul rate it reaches.

    python benchmarks/inference.py [--original CHECKOUT] [--json OUT] [--docs docs/performance.md]

Contenders: our extracted subnets of the `small` space (smallest, default, largest), transformers' HubertModel with
the weights of our default, HuBERT Base, DistilHuBERT's shape, and, given a checkout, the original's default subnet.
Weights are random, fp32. FLOP are those of the plain computation as torch counts them, which leaves out the products
inside the fused attention; so a share is a little understated, and one above 100 % is possible where a fast algorithm
saves FLOP, or where another library multiplies faster than torch's `@`: oneDNN, which computes torch's convolutions.
"""

from collections.abc import Callable
from statistics import median

import torch
from contenders import (
    SAMPLING_RATE,
    activate_original,
    arguments,
    count_flop,
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

from lighthubert_hf import SearchSpace
from lighthubert_hf.costs.measuring import MATMUL_FLOP, MATMUL_SHAPE
from lighthubert_hf.model.fast_linear import product
from lighthubert_hf.model.fast_paths import has_onednn

OURS = "ours, 27M default"
TWIN = "transformers HubertModel, the 27M"
ORIGINAL = "original, 27M default"
ONEDNN = "oneDNN's product"


def build(options) -> dict:
    """Contenders as functions of `(batch, samples)` audio."""
    space = SearchSpace.small()
    default = static_model(space.default())
    contenders = {
        OURS: default,
        "ours, 11M smallest": static_model(space.smallest()),
        "ours, 44M largest": static_model(space.largest()),
        TWIN: default.to_hubert(),
        "HuBERT Base, 95M": hubert_base(),
        "DistilHuBERT's shape, 23M": hubert_base(num_hidden_layers=2),
    }
    if options.original:
        original = original_model(options.original)
        activate_original(original, space.default())
        contenders[ORIGINAL] = original.extract_features
    return contenders


def onednn_product() -> Callable[[], torch.Tensor]:
    """The product that `measure` runs as `a @ b`, by oneDNN: what our linear layers are made of."""
    rows, inner, columns = MATMUL_SHAPE
    weight, a = torch.randn(columns, inner), torch.randn(rows, inner)
    return lambda: product(a, weight, None)


def batch_of(batch: int, seconds: float, uneven: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`(batch, samples)` audio and which of it is valid. Uneven rows last from `seconds / batch` to `seconds`."""
    audio = torch.randn(batch, round(seconds * SAMPLING_RATE))
    lengths = audio.shape[1] * torch.arange(1 if uneven else batch, batch + 1) // batch
    valid = (torch.arange(audio.shape[1]) < lengths[:, None]).expand_as(audio)
    return audio * valid, valid


def run_setting(contenders: dict, batch: int, seconds: float, uneven: bool, rounds: int) -> dict:
    audio, valid = batch_of(batch, seconds, uneven)

    def runs(name: str):
        if not uneven:
            return lambda: contenders[name](audio)
        # The original's mask says what is padding.
        mask = {"padding_mask": ~valid} if name == ORIGINAL else {"attention_mask": valid.long()}
        return lambda: contenders[name](audio, **mask)

    runs = {name: runs(name) for name in contenders}
    with torch.inference_mode():
        found, wanted = runs[OURS]().last_hidden_state, runs[TWIN]().last_hidden_state
        frames = contenders[OURS]._get_feature_vector_attention_mask(found.shape[1], valid)
        difference = (found - wanted)[frames].abs().max().item()
        products = {ONEDNN: onednn_product()} if has_onednn() else {}
        times = measure(runs | products, rounds)
    rate, rows = matmul_rate(times), {name: summary(times[name]) for name in runs}
    ours = dict(rows[OURS])
    for name, row in rows.items():
        row["times_ours"] = round(row["median_ms"] / ours["median_ms"], 2)
        row["times_ours_least"] = round(row["least_ms"] / ours["least_ms"], 2)
        if isinstance(contenders[name], torch.nn.Module) and not uneven:
            flop = count_flop(runs[name])
            row |= {"gflop": round(flop / 1e9, 2), "share": round(flop / row["median_ms"] / rate / 1e6, 3)}
    return {
        "batch": batch,
        "seconds": seconds,
        "uneven": uneven,
        "matmul_gflops": round(rate, 1),
        "onednn_gflops": round(MATMUL_FLOP / median(times[ONEDNN]) / 1e6, 1) if products else None,
        "largest_difference_from_transformers": difference,
        "contenders": rows,
    }


def table(settings: list[dict]) -> str:
    header = ["median ms (× ours; share of matmul rate)"]
    header += [f"{s['batch']} × {s['seconds']:g} s" + (", uneven" if s["uneven"] else "") for s in settings]
    rows = []
    for name in settings[0]["contenders"]:
        cells = []
        for setting in settings:
            row = setting["contenders"][name]
            share = f"; {row['share']:.0%}" if "share" in row else ""
            cells.append(f"{row['median_ms']:.0f} ({row['times_ours']:.2f}{share})")
        rows.append([name, *cells])
    rows.append(["matmul, GFLOP/s", *(f"{s['matmul_gflops']:.0f}" for s in settings)])
    if settings[0]["onednn_gflops"] is not None:
        rows.append(["oneDNN's product, GFLOP/s", *(f"{s['onednn_gflops']:.0f}" for s in settings)])
    differences = (s["largest_difference_from_transformers"] for s in settings)
    rows.append(["largest difference from transformers", *(f"{value:.0e}" for value in differences)])
    return markdown(header, rows)


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10], help="lengths of audio")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes")
    parser.add_argument(
        "--uneven", type=int, nargs=2, default=[4, 4], metavar=("ROWS", "SECONDS"),
        help="also a padded batch of rows of different lengths, up to SECONDS (default 4 4); 0 0 for none",
    )  # fmt: skip
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    contenders = build(options)
    settings = [(batch, seconds, False) for batch in options.batch for seconds in options.seconds]
    if all(options.uneven):
        settings.append((*options.uneven, True))
    settings = [run_setting(contenders, *setting, options.rounds) for setting in settings]
    publish("inference", {"machine": machine(), "settings": settings}, table(settings), options)


if __name__ == "__main__":
    main()

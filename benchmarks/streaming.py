"""Time per chunk of a stream, and its delay, against computing the chunk and its context anew.

    python benchmarks/streaming.py [--rounds 15] [--json OUT] [--docs docs/streaming.md]

The default subnet of the `small` space with random weights, in the middle of a stream. *Anew* is one forward over the
samples of a chunk and its context, as a program without a `StreamingEncoder` would do it: the same frames come out.
Contenders run in turn; times are medians.
"""

import sys
from pathlib import Path

import torch
from contenders import (
    SAMPLING_RATE,
    arguments,
    machine,
    markdown,
    matmul_rate,
    measure,
    publish,
    static_model,
    summary,
)

from lighthubert_hf import LightHubertModel, SearchSpace
from lighthubert_hf.streaming import StreamingEncoder

WINDOW = 8
# (window, chunk, left, right): seconds; None: as much as is exact
CASES = (
    (WINDOW, 0.1, None, None),
    (WINDOW, 0.2, None, None),
    (WINDOW, 0.5, None, None),
    (None, 0.2, 2.0, 0.0),
    (None, 0.2, 2.0, 0.32),
    (None, 0.5, 5.0, 1.0),
)
STREAMS = 4


def steps(model: LightHubertModel, chunk: float, left: float | None, right: float | None, streams: int):
    """Functions that compute the next chunk of so many streams: kept state, and anew; and the encoder."""
    encoder = StreamingEncoder(model, chunk, left, right)
    piece = encoder.chunk * 320
    audio = torch.randn(streams, piece)
    names = range(streams)
    # As much as fills the left context, and makes the chunk after it the next to come.
    begun = round(encoder.latency_ms * SAMPLING_RATE / 1000) + -(-encoder.left // encoder.chunk) * piece
    encoder.feed_many({name: torch.randn(begun) for name in names})

    def kept() -> None:
        found = encoder.feed_many({name: audio[name] for name in names})
        assert all(len(frames) == encoder.chunk for frames in found.values())

    seen = torch.randn(streams, (encoder.left + encoder.chunk + encoder.right - 1) * 320 + 400)

    def anew() -> None:
        with torch.no_grad():
            model(seen)

    return kept, anew, encoder


def main() -> None:
    parser = arguments(__doc__, rounds=15, original=False)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    models = {
        window: static_model(SearchSpace.small().default()) if window is None else _with_window(window)
        for window in {case[0] for case in CASES}
    }
    contenders, cases = {}, []
    for window, chunk, left, right in CASES:
        for streams in (1, STREAMS) if chunk == 0.2 and not right else (1,):
            kept, anew, encoder = steps(models[window], chunk, left, right, streams)
            key = f"{window} {chunk} {left} {right} {streams}"
            contenders |= {f"{key} kept": kept, f"{key} anew": anew}
            cases.append((key, window, chunk, streams, encoder))
    times = measure(contenders, options.rounds)
    rows = []
    for key, window, chunk, streams, encoder in cases:
        kept, anew = (summary(times[f"{key} {how}"]) for how in ("kept", "anew"))
        rows.append(
            {
                "window": window,
                "chunk": chunk,
                "streams": streams,
                "exact": encoder.exact,
                "left_frames": encoder.left,
                "right_frames": encoder.right,
                "latency_ms": encoder.latency_ms,
                "kept": kept,
                "anew": anew,
                "ratio": anew["median_ms"] / kept["median_ms"],
                "share": kept["median_ms"] / (1000 * chunk * streams),
            }
        )
    results = {"machine": machine(), "matmul_gflops": matmul_rate(times), "rows": rows}
    publish(Path(__file__).stem, results, table(rows), options)


def _with_window(window: int) -> LightHubertModel:
    model = static_model(SearchSpace.small().default())
    return LightHubertModel(type(model.config).from_dict(model.config.to_dict() | {"attention_window": window})).eval()


def table(rows: list[dict]) -> str:
    header = ["attention", "chunk", "context", "output", "delay", "streams", "anew ÷ kept", "computing ÷ audio"]
    cells = [
        [
            f"window of {row['window']} frames" if row["window"] else "global",
            f"{row['chunk']:g} s",
            f"{row['left_frames'] / 50:.2f} s and {row['right_frames'] / 50:.2f} s",
            "offline" if row["exact"] else "chunks",
            f"{row['latency_ms'] / 1000:.2f} s",
            str(row["streams"]),
            f"{row['ratio']:.1f}",
            f"{row['share']:.3f}",
        ]
        for row in rows
    ]
    return markdown(header, cells)


if __name__ == "__main__":
    sys.exit(main())

"""int8 and bf16 on this CPU: how fast, and what they do to the outputs.

    python benchmarks/quantisation.py [--model FOLDER] [--json OUT] [--docs docs/performance.md]

Contenders: our fp32 model; the same with bf16 weights; its linear layers in dynamic int8 by torch; its ONNX file in
fp32, in dynamic int8 (matrix products) and in static int8 (convolutions too; weights by channel, activations by ranges
seen on other sentences). The error is the norm of all differences from the fp32 outputs over the norm of these, the
cosine the least of any frame. Audio is synthetic speech; needs the `dev` extra. Without --model the weights are those
of a fresh 27M default: trained weights have outliers that these lack, so errors of a trained model tend to be larger.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
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
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torch import nn
from torch.nn import functional as F

from lighthubert_hf import LightHubertModel, SearchSpace
from lighthubert_hf.conversion.onnx import export_onnx
from lighthubert_hf.training.synthetic.espeak import speak

FP32 = "ours, fp32"
PRODUCTS = ["MatMul", "Gemm"]


def speech(seconds: float, sentence: str, voice: str) -> torch.Tensor:
    """`(1, samples)` of normalised speech: the sentence over and over."""
    wave = torch.from_numpy(speak(sentence, voice).astype(np.float32))
    samples = round(seconds * SAMPLING_RATE)
    wave = wave.repeat(-(-samples // len(wave)))[:samples]
    return F.layer_norm(wave, wave.shape)[None]


def feed(audio: torch.Tensor) -> dict[str, np.ndarray]:
    return {"input_values": audio.numpy(), "attention_mask": np.ones(audio.shape, dtype=np.int64)}


class Sentences(CalibrationDataReader):
    """What static quantisation takes the ranges of activations from."""

    def __init__(self):
        self._batches: Iterator = iter(
            feed(speech(2, sentence, voice))
            for sentence, voice in [
                ("the river runs slowly under the old stone house", "en-us+f1"),
                ("seven birds sing near that green garden", "en-us+m2"),
                ("every dog sleeps behind a small red door", "en-us+f3"),
                ("nine horses never walk over this dark mountain", "en-us+m4"),
            ]
        )

    def get_next(self):
        return next(self._batches, None)


def onnx_files(model: LightHubertModel, folder: Path) -> dict[str, Path]:
    model.save_pretrained(folder / "model")
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "dynamic int8", "static int8")}
    export_onnx(folder / "model", files["fp32"])
    quantize_dynamic(
        files["fp32"],
        files["dynamic int8"],
        weight_type=QuantType.QInt8,
        op_types_to_quantize=PRODUCTS,
        per_channel=True,
    )
    quantize_static(
        files["fp32"], files["static int8"], Sentences(), op_types_to_quantize=[*PRODUCTS, "Conv"], per_channel=True
    )
    return files


def dynamic_int8(model: LightHubertModel) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao, which is no dependency
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def build(model: LightHubertModel, folder: Path) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Functions from audio to features."""
    models = {
        FP32: model,
        "ours, bf16": copy.deepcopy(model).bfloat16(),
        "ours, linear layers in dynamic int8": dynamic_int8(model),
    }
    found = {name: lambda audio, run=run: run(audio).last_hidden_state for name, run in models.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for name, path in onnx_files(model, folder).items():
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found[f"onnxruntime, {name}"] = lambda audio, run=session.run: torch.from_numpy(run(None, feed(audio))[0])
    return found


def compare(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    found = found.float()
    return {
        "relative_error": ((found - wanted).norm() / wanted.norm()).item(),
        "least_cosine": F.cosine_similarity(found, wanted, dim=-1).min().item(),
    }


@torch.inference_mode()
def run_setting(contenders: dict, seconds: float, rounds: int) -> dict:
    audio = speech(seconds, "two quiet cats open the window of a large city today", "en-us+f5")
    wanted = contenders[FP32](audio)
    errors = {name: compare(run(audio), wanted) for name, run in contenders.items()}
    times = measure({name: lambda run=run: run(audio) for name, run in contenders.items()}, rounds)
    rows = {name: summary(times[name]) | errors[name] for name in contenders}
    for row in rows.values():
        row["speed"] = round(rows[FP32]["median_ms"] / row["median_ms"], 2)
    return {"seconds": seconds, "matmul_gflops": round(matmul_rate(times), 1), "contenders": rows}


def table(settings: list[dict]) -> str:
    header = [
        "",
        *(f"{s['seconds']:g} s: ms (speed against fp32)" for s in settings),
        "relative error",
        "least cosine",
    ]
    rows = []
    for name in settings[0]["contenders"]:
        found = [setting["contenders"][name] for setting in settings]
        cells = [f"{row['median_ms']:.0f} ({row['speed']:.2f} ×)" for row in found]
        worst = max(row["relative_error"] for row in found), min(row["least_cosine"] for row in found)
        rows.append([name, *cells, f"{worst[0]:.1g}", f"{worst[1]:.4f}"])
    return markdown(header, rows)


def main() -> None:
    parser = arguments(__doc__, rounds=7, original=False)
    parser.add_argument("--model", metavar="FOLDER", help="a static model; a fresh 27M default if not given")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10], help="lengths of audio")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.model:
        model = LightHubertModel.from_pretrained(options.model, dtype=torch.float32).eval()
    else:
        model = static_model(SearchSpace.small().default())
    with tempfile.TemporaryDirectory() as folder:
        contenders = build(model, Path(folder))
        settings = [run_setting(contenders, seconds, options.rounds) for seconds in options.seconds]
    publish("quantisation", {"machine": machine(), "settings": settings}, table(settings), options)


if __name__ == "__main__":
    main()

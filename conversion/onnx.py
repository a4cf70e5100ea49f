"""A static model as ONNX, checked with onnxruntime against PyTorch. Needs the `onnx` extra."""

import copy
import logging
import re
import statistics
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lighthubert_hf import LightHubertForCTC, LightHubertForSequenceClassification, LightHubertModel
from lighthubert_hf.extras import require
from lighthubert_hf.files import scratch_folder
from lighthubert_hf.loading import load
from lighthubert_hf.model.front_end import receptive_field
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .checkpoints.errors import ConversionError, first_line, listed
from .checkpoints.reading import read_json
from .checkpoints.writing import file_written_beside
from .sources import resolve
from .verification import probe_waveform

# Classes that are exported, and the output that is.
_OUTPUTS = {
    LightHubertModel: "last_hidden_state",
    LightHubertForCTC: "logits",
    LightHubertForSequenceClassification: "logits",
}

# How far the file may be from the exact result: so many times as far as PyTorch itself is in single precision on this
# processor, and what onnxruntime's approximations of exp and erf add, which PyTorch's have not.
_FACTOR = 4
_APPROXIMATIONS = 1e-5

_INPUTS = ("input_values", "attention_mask")
_MAX_SAMPLES = SAMPLING_RATE * 60 * 60
# An hour at most; two frames at least, because torch.export makes a special case of one. The file computes that too.
_MIN_SAMPLES = 720


@dataclass(frozen=True)
class OnnxReport:
    """What an export did.

    Args:
        output: the file.
        num_bytes: its size.
        int8: whether the weights of its matrix products are 8-bit integers.
        checked: the batches compared with PyTorch, `(batch_size, samples)`.
        max_difference: the largest absolute difference from PyTorch's outputs in double precision, over valid frames.
        relative_error: norm of all such differences over norm of the outputs: the accuracy lost.
        pytorch_error: the same of PyTorch in single precision, on this processor.
        speed: time of the single-precision file over time of this one, measured here; `None` without `int8`.
    """

    output: str
    num_bytes: int
    int8: bool
    checked: tuple[tuple[int, int], ...]
    max_difference: float
    relative_error: float
    pytorch_error: float
    speed: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        checked = ", ".join(f"{batch} × {samples / SAMPLING_RATE:.2f} s" for batch, samples in self.checked)
        lines = [
            f"{self.output}: {self.num_bytes / 1e6:.1f} MB, inputs {' and '.join(_INPUTS)}",
            f"compared with PyTorch on {checked}: largest difference {self.max_difference:.2g}, "
            f"relative error {self.relative_error:.2g} (PyTorch in single precision: {self.pytorch_error:.2g})",
        ]
        if self.speed is not None:
            lines.append(f"int8 on this machine: {self.speed:.2f} times as fast as the same model in single precision")
        return "\n".join(lines)


class _OneOutput(nn.Module):
    """The model as a function of two tensors."""

    def __init__(self, model: nn.Module, output: str):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(input_values, attention_mask), self.output)


def export_onnx(
    model_folder: str | Path,
    output: str | Path,
    *,
    int8: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> OnnxReport:
    """Export a static model, with batch size and length left open, and compare it with PyTorch at several of each.

    Args:
        model_folder: folder or Hub id of an extracted subnet, bare or with a CTC or classification head.
        output: the file to write; must not exist yet, unless `overwrite`.
        int8: quantise the weights of the matrix products, dynamically. What that costs and gains is measured.
        revision: branch, tag or commit, of a model on the Hub.
        overwrite: replace a file that is there.

    Raises:
        ImportError: without the `onnx` extra.
        FileNotFoundError, ConversionError: if there is no such model, or the file computes something else.
    """
    require("onnx", what="exporting to ONNX")
    folder, output = resolve(model_folder, revision), Path(output)
    model, name = _load(folder, str(model_folder))
    batches = _batches(model)
    with file_written_beside(output, folder, overwrite) as new, scratch_folder(output) as scratch:
        exact = scratch / "exact.onnx" if int8 else new
        _export(_OneOutput(model, name), batches[0], exact, name)
        references, usual = _references(model, name, batches)
        worst, relative = _compare(exact, batches, references)
        if not relative <= _FACTOR * usual + _APPROXIMATIONS:
            raise ConversionError(
                f"the exported {name} differs from PyTorch's by {worst:.2g} (relative error {relative:.2g}, PyTorch's "
                f"own {usual:.2g}); nothing was written"
            )
        speed = None
        if int8:
            _quantise(exact, new)
            worst, relative = _compare(new, batches, references)
            speed = _speed(exact, new, batches[0])
        size = new.stat().st_size
    return OnnxReport(
        output=str(output),
        num_bytes=size,
        int8=int8,
        checked=tuple(tuple(values.shape) for values, _ in batches),
        max_difference=worst,
        relative_error=relative,
        pytorch_error=usual,
        speed=speed,
    )


def _load(folder: Path, called: str) -> tuple[nn.Module, str]:
    """The model in `folder`, which the user called so, and the name of its output."""
    data = read_json(folder / "config.json")
    classes = {cls.__name__: cls for cls in _OUTPUTS}
    architecture = (data.get("architectures") or ["LightHubertModel"])[0]
    if data.get("search_space") is not None:
        raise ConversionError(
            f"{called} holds a supernet; extract a subnet first: lighthubert extract {called} SUBNET"
        )
    if data.get("model_type") != "lighthubert" or architecture not in classes:
        raise ConversionError(
            f"{called} holds a {data.get('model_type')!r} model, {architecture}; exported are {listed(classes)}"
        )
    cls = classes[architecture]
    return load(cls, folder, dtype=torch.float32).model, _OUTPUTS[cls]


def _batches(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Audio and masks of different batch sizes and lengths, with padding and without, down to a single frame."""
    batches = []
    for batch, samples in ((2, SAMPLING_RATE), (3, 23456), (1, 7000), (1, 400)):
        values = probe_waveform(samples / SAMPLING_RATE).roll(samples // 3, 1).repeat(batch, 1)
        values = values * torch.linspace(1, 0.5, batch)[:, None]
        mask = torch.ones(batch, samples, dtype=torch.long)
        mask[1:, samples // 2 :] = 0
        batches.append((values * mask, mask))
    return batches


def _export(model: nn.Module, example: tuple[torch.Tensor, torch.Tensor], path: Path, name: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    samples = torch.export.Dim("samples", min=_MIN_SAMPLES, max=_MAX_SAMPLES)
    try:
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")  # about the exporter's own insides
            # Captured here: the exporter would first try without `strict`, twice, in vain and for seconds.
            captured = torch.export.export(
                model,
                example,
                dynamic_shapes=[{0: batch, 1: samples}] * 2,
                strict=True,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            program = torch.onnx.export(
                captured,
                dynamo=True,
                input_names=list(_INPUTS),
                output_names=[name],
                verbose=False,
            )
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # stack traces, with paths of this machine, as large as a small model
            _name_axes(program.model.graph)
            _say_the_least(program.model, receptive_field(model.model.config))
            program.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # the exporter's errors have no common class
        raise ConversionError(f"the model cannot be exported: {first_line(error)}") from error


def _name_axes(graph) -> None:
    """Call the open axes what they are. The exporter calls them s77 and s27, and frames by a formula of these."""
    import onnx_ir

    axes = ["batch", "samples"]
    symbols = {str(symbol): name for symbol, name in zip(graph.inputs[0].shape, axes)}
    words = re.compile(rf"\b({'|'.join(map(re.escape, symbols))})\b")

    def named(size):
        if isinstance(size, int) or size.value is None:
            return size
        return words.sub(lambda match: symbols[match[0]], str(size))

    values = {id(value): value for node in graph.all_nodes() for value in (*node.inputs, *node.outputs) if value}
    for value in [*graph.inputs, *graph.outputs, *values.values()]:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([named(size) for size in value.shape])
    for value in graph.outputs:
        if len(value.shape) == 3 or not isinstance(value.shape[1], int):  # of classes there is a number
            value.shape = onnx_ir.Shape([value.shape[0], "frames", *list(value.shape)[2:]])


def _say_the_least(model, samples: int) -> None:
    """Let onnxruntime's error about shorter audio say so: it names the node that fails, which is a convolution."""
    model.metadata_props["minimum_samples"] = str(samples)
    for index, node in enumerate(node for node in model.graph.all_nodes() if node.op_type == "Conv"):
        node.name = f"conv_{index} (audio must have at least {samples} samples)"


@contextmanager
def _quiet(logger: str):
    logger = logging.getLogger(logger)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _quantise(exact: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet("root"):  # it advises a pre-processing that the exporter has done already
        quantize_dynamic(exact, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _session(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(session, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    feed = {name: tensor.numpy() for name, tensor in zip(_INPUTS, batch)}
    return torch.from_numpy(session.run(None, feed)[0])


class _Reference(NamedTuple):
    """What PyTorch computes in double precision of one batch, and its valid frames (`None`: an output per row)."""

    output: torch.Tensor
    valid: torch.Tensor | None

    def differences(self, found: torch.Tensor) -> torch.Tensor:
        difference = found.double() - self.output
        return difference if self.valid is None else difference[self.valid]

    def size(self) -> float:
        return (self.output if self.valid is None else self.output[self.valid]).square().sum().item()


@torch.inference_mode()
def _references(model: nn.Module, name: str, batches) -> tuple[list[_Reference], float]:
    """Exact results, and the relative error of PyTorch in single precision."""
    exact, references, single = copy.deepcopy(model).double(), [], []
    for values, mask in batches:
        output = getattr(exact(values, mask), name)
        valid = model._get_feature_vector_attention_mask(output.shape[1], mask) if output.ndim == 3 else None
        references.append(_Reference(output, valid))
        single.append(getattr(model(values, mask), name))
    return references, _errors(single, references)[1]


def _compare(path: Path, batches, references: list[_Reference]) -> tuple[float, float]:
    session = _session(path)
    return _errors([_run(session, batch) for batch in batches], references)


def _errors(outputs: list[torch.Tensor], references: list[_Reference]) -> tuple[float, float]:
    """Largest absolute difference from the exact results, and norm of all differences over that of the results."""
    differences = [reference.differences(found) for found, reference in zip(outputs, references)]
    error = sum(difference.square().sum().item() for difference in differences)
    worst = max(difference.abs().max().item() for difference in differences)
    return worst, (error / sum(reference.size() for reference in references)) ** 0.5


def _speed(exact: Path, int8: Path, batch: tuple[torch.Tensor, torch.Tensor], rounds: int = 7) -> float:
    """How many times as fast `int8` is: medians of alternating runs."""
    sessions, times = (_session(exact), _session(int8)), ([], [])
    for round_ in range(rounds + 1):
        for session, taken in zip(sessions, times):
            start = time.perf_counter()
            _run(session, batch)
            if round_:  # the first run of each warms up
                taken.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])

"""A static model with its codebook as ONNX: waveforms in, discrete units out, checked against PyTorch."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from lighthubert_hf import LightHubertModel
from lighthubert_hf.extras import require
from lighthubert_hf.files import scratch_folder
from lighthubert_hf.loading import is_static, load
from lighthubert_hf.model.codebook import CODEBOOKS_FILE, Codebook, choose_codebook, nearest, read_codebooks

from .checkpoints.errors import ConversionError
from .checkpoints.writing import file_written_beside
from .onnx import _APPROXIMATIONS, _FACTOR, _batches, _errors, _export, _quantise, _Reference, _run, _session
from .sources import resolve

OUTPUT = "units"
PADDING = -1


@dataclass(frozen=True)
class UnitsOnnxReport:
    """What an export of units did.

    Args:
        output: the file.
        num_bytes: its size.
        codebook: which one.
        int8: whether the weights of its matrix products are 8-bit integers.
        frames: compared with PyTorch in double precision.
        agreement: share of them with the same unit.
        ties: frames with another unit that is as near within the error of single precision; all others are an error
            without `int8`.
    """

    output: str
    num_bytes: int
    codebook: str
    int8: bool
    frames: int
    agreement: float
    ties: int

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        size = f"{self.num_bytes / 1e6:.1f} MB"
        return (
            f"{self.output}: {size}, units of {self.codebook}, {PADDING} where a row is padded\n"
            f"compared with PyTorch on {self.frames} frames: {100 * self.agreement:.2f} % the same unit, "
            f"{self.ties} others as near within rounding"
        )


class _Units(nn.Module):
    """The model and its codebook as a function of two tensors."""

    def __init__(self, model: LightHubertModel, codebook: Codebook):
        super().__init__()
        self.model, self.layer = model, codebook.layer
        self.register_buffer("directions", codebook.centroids.T.contiguous())
        self.register_buffer("offsets", codebook.centroids.square().sum(-1) / 2)

    def features(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.model(input_values, attention_mask, output_hidden_states=True).hidden_states
        return states[self.layer]

    def valid(self, frames: int, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model._get_feature_vector_attention_mask(frames, attention_mask)

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = self.features(input_values, attention_mask)
        units = nearest(features, self.directions, self.offsets)
        return torch.where(self.valid(features.shape[1], attention_mask), units, PADDING)


def export_units_onnx(
    model_folder: str | Path,
    output: str | Path,
    *,
    layer: int | None = None,
    clusters: int | None = None,
    int8: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> UnitsOnnxReport:
    """Export a static model with one of its codebooks: `input_values` and `attention_mask` in, `units` out, int64 of
    shape `(batch, frames)`, -1 where a row is padded. The batch size and the length are left open.

    Args:
        model_folder: folder or Hub id of an extracted subnet with codebooks; a head is left out.
        output: the file to write; must not exist yet, unless `overwrite`.
        layer, clusters: which codebook, if there are several.
        int8: quantise the weights of the matrix products, dynamically; the report says how many units that changes.
        revision: branch, tag or commit, of a model on the Hub.
        overwrite: replace a file that is there.

    Raises:
        ImportError: without the `onnx` extra.
        FileNotFoundError: there is no such model, or it has no codebooks.
        ValueError: no such codebook, a supernet, or a file that says other units.
    """
    require("onnx", what="exporting to ONNX")
    folder, output = resolve(model_folder, revision), Path(output)
    if not is_static(str(folder)):
        raise ConversionError(
            f"{model_folder} holds no static LightHuBERT; extract a subnet first: lighthubert extract"
        )
    if not (folder / CODEBOOKS_FILE).is_file():
        raise FileNotFoundError(f"{model_folder} has no codebook; make one with `lighthubert units fit`")
    codebook = choose_codebook(read_codebooks(folder / CODEBOOKS_FILE).values(), layer, clusters)
    module = _Units(load(LightHubertModel, folder, dtype=torch.float32).model, codebook).eval()
    codebook.check_width(module.model.config.hidden_size)
    batches = _batches(module.model)
    with file_written_beside(output, folder, overwrite) as new, scratch_folder(output) as scratch:
        exact = scratch / "exact.onnx" if int8 else new
        _export(module, batches[0], exact, OUTPUT)
        frames, same, ties = _compared(module, exact, batches)
        if same + ties < frames:
            raise ConversionError(
                f"the exported units differ from PyTorch's in {frames - same - ties} of {frames} frames; nothing was "
                "written"
            )
        if int8:
            _quantise(exact, new)
            frames, same, ties = _compared(module, new, batches)
        size = new.stat().st_size
    return UnitsOnnxReport(str(output), size, codebook.name, int8, frames, same / frames, ties)


@torch.inference_mode()
def _compared(module: _Units, path: Path, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, int, int]:
    """Valid frames, those with the same unit as in double precision, and those whose unit is as near but for rounding.

    Rounding moves a feature by what single precision of PyTorch does, times as much as for exported features. That
    moves the difference of two distances by that much times the difference of two centroids, at most.
    """
    session, exact = _session(path), copy.deepcopy(module).double()
    references, single, found = [], [], []
    for values, mask in batches:
        features = exact.features(values.double(), mask)
        references.append(_Reference(features, exact.valid(features.shape[1], mask)))
        single.append(module.features(values, mask))
        found.append(_run(session, (values, mask)))
    rounding = _FACTOR * _errors(single, references)[1] + _APPROXIMATIONS
    frames = same = ties = 0
    for reference, units in zip(references, found, strict=True):
        if bool((units[~reference.valid] != PADDING).any()):
            raise ConversionError("the exported file says units where a row is padded; nothing was written")
        features, said = reference.output[reference.valid], units[reference.valid]
        distances = exact.offsets - features @ exact.directions
        best = distances.argmin(-1)
        further = distances.gather(-1, said[:, None])[:, 0] - distances.gather(-1, best[:, None])[:, 0]
        apart = (exact.directions.T[said] - exact.directions.T[best]).norm(dim=-1)
        near = further <= rounding * features.norm(dim=-1) * apart
        frames, same = frames + len(said), same + int((said == best).sum())
        ties += int((near & (said != best)).sum())
    return frames, same, ties

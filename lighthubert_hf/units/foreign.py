"""Codebooks of other programs: arrays as numpy writes them, with nothing unpickled.

scikit-learn's models (textless, fairseq's `km.bin`) are pickles, which run code when they are loaded. They are refused
with the line that turns them into an array where they are trusted.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lighthubert_hf.model.codebook import Codebook

logger = logging.getLogger(__name__)

_PICKLES = (b"\x80", b"PK\x03\x04")  # a pickle; the archive that torch.save and numpy.savez make
_WAY_OUT = (
    'where you trust it, run: python -c "import joblib, numpy; '
    "numpy.save('centroids.npy', joblib.load('{name}').cluster_centers_)\" and give centroids.npy"
)


def read_foreign_codebook(path: str | Path, layer: int, width: int | None = None) -> Codebook:
    """A codebook out of an array in a file.

    Args:
        path: `.npy`, `.npz` with one matrix, or `.safetensors` with one. As `(clusters, width)`, or, as fairseq's
            `ApplyKmeans` keeps them, transposed: which one the width tells.
        layer: whose features were clustered; the file does not say.
        width: of the features that it is for.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a pickle, or holds no matrix that fits. One line, with the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    array = _matrix(path, _arrays(path))
    if width is not None and array.shape[1] != width and array.shape[0] == width:
        array = array.T
    if width is not None and array.shape[1] != width:
        raise ValueError(
            f"{path} holds a matrix {array.shape[0]} × {array.shape[1]}, the model's features have width {width}; "
            "it is another model's codebook, or another layer's"
        )
    centroids = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return Codebook(centroids, layer, {"made": f"read from {path.name}"})


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        start = file.read(6)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if start == b"\x93NUMPY":
            return {path.name: np.load(path, allow_pickle=False)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"{path} holds no array that is read without running code ({error}); save the centroids as a "
            "plain array of numbers with numpy.save"
        ) from None
    if start.startswith(_PICKLES) or path.suffix in (".bin", ".joblib", ".pkl", ".pickle", ".km", ".pt", ".model"):
        raise ValueError(
            f"{path} is a pickle, as scikit-learn and joblib write, and could run code when it is loaded; "
            + _WAY_OUT.format(name=path.name)
        )
    raise ValueError(f"{path} is no codebook that is known; give centroids as .npy, .npz or .safetensors")


def _matrix(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    found = [array for array in arrays.values() if array.ndim == 2 and array.dtype.kind == "f" and array.size]
    if len(found) != 1:
        shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items())
        raise ValueError(f"{path} must hold one matrix of floating point (clusters, width), it has {shapes}")
    return found[0]

"""What is asked of weights wherever they are read or written: whole files of floating-point numbers, all finite."""

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:  # imported when used: the command line starts without torch
    import torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# As safetensors call them, and torch.
_FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
# What a module counts, a batch norm for example, is a whole number.
_COUNTERS = ("num_batches_tracked",)


class WeightsError(ValueError):
    """Weights that cannot be what they are taken for. One line: the file, what is wrong, the first names."""


def some(names: Iterable[object], limit: int = 3) -> str:
    """The first few of the names, and how many more there are."""
    names = sorted(map(str, names))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def stored_tensors(file: Path, called: str | None = None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name, number format and shape of all that is in a weight file, from its header.

    Args:
        called: What messages call the file; by default its path.

    Raises:
        WeightsError: It cannot be read.
    """
    called = called or str(file)
    if file.suffix != ".safetensors":
        import torch

        try:
            tensors = torch.load(file, map_location="meta", weights_only=True)
            return {
                name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                for name, tensor in tensors.items()
            }
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
            raise WeightsError(f"{called} is not readable: {str(error).strip().splitlines()[0]}") from None
    try:
        with safe_open(file, framework="np") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (not a dict)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise WeightsError(f"{called} is truncated or damaged ({error}); fetch it or save the model again") from None


def check_floating(dtypes: Mapping[str, str], where: str) -> None:
    """Raise a `WeightsError` if there are integers among the weights, or anything else but plain floating point."""
    wrong = [name for name, dtype in dtypes.items() if dtype not in _FLOATS and not name.endswith(_COUNTERS)]
    if wrong:
        kinds = some({dtypes[name] for name in wrong})
        raise WeightsError(
            f"{where} holds {len(wrong)} weights that are no floating-point numbers but {kinds}: {some(wrong)}; save "
            "the model in float32, float16 or bfloat16"
        )


def check_finite(tensors: Mapping[str, "torch.Tensor"], where: str) -> None:
    """Raise a `WeightsError` if any of the weights is NaN or infinite."""
    wrong = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not all(x.isfinite() for x in tensor.aminmax())
    ]
    if wrong:
        raise WeightsError(
            f"{where} has NaN or infinite values in {len(wrong)} weights: {some(wrong)}; a training that failed "
            "leaves such, or a number format too small for the values"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: the one, or those that its index names. They may be missing.

    Raises:
        WeightsError: The index is damaged.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    try:
        names = {Path(name).name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{index} is damaged: it has no weight_map of names and files; fetch it again") from None
    return [folder / name for name in sorted(names)]

"""Writes checkpoints: beside their place first, tensor by tensor."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from lighthubert_hf.files import replacing_file
from lighthubert_hf.hub.output import check_not_source
from lighthubert_hf.locks import locked

from .errors import ConversionError

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def check_free(output: Path, source: str | Path | None = None, overwrite: bool = False) -> None:
    """Raise a ConversionError if something is in the way of `output`.

    Args:
        source: what it is made from, which is never replaced.
        overwrite: replace what is there: a file, or a model folder.
    """
    try:
        check_not_source(output, source)
    except ValueError as error:
        raise ConversionError(str(error)) from None
    if output.is_dir() and not any(output.iterdir()):
        return
    if (output.exists() or output.is_symlink()) and not overwrite:
        raise ConversionError(
            f"{output} exists; choose another place for the result, or insist with --overwrite (overwrite=True)"
        )


@contextmanager
def file_written_beside(path: Path, source: Path | None = None, overwrite: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to. It becomes `path` if the block succeeds and vanishes if it fails."""
    check_free(path, source, overwrite)
    if path.is_dir():
        raise ConversionError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    with locked(path), replacing_file(path) as new:
        yield new


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Write tensors as they come; `safetensors.torch.save_file` wants all of them at once.

    Args:
        shapes: name and shape of every tensor, in the order in which `tensors` will hand them out.
        dtype: of all of them.
        tensors: names and tensors.

    The format: eight bytes with the length of a JSON header, the header, the tensors' bytes
    (https://github.com/huggingface/safetensors#format).
    """
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of eight
    expected = iter(shapes.items())
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            if (name, tuple(tensor.shape), tensor.dtype) != (*next(expected), dtype):
                raise RuntimeError(f"{name} is not what the header promises")
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        if file.tell() != 8 + len(text) + start:
            raise RuntimeError(f"{path} has fewer tensors than its header promises")

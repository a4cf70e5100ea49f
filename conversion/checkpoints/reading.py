"""Reads checkpoints without running anything in them, and without holding more than a few of their tensors in memory.

A `.pt` is a zip archive with a checksum for every record; all of them are checked before the file is unpickled, and
it is unpickled with `weights_only=True`, once, for names, shapes and places in the file. Tensors come from a memory
map. Pages of a map count as the memory of the process once they are read, so `MappedWeights` maps the file anew
every 16 MB.
"""

import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lighthubert_hf.files import read_object

from .errors import ConversionError, first_line, listed
from .recognition import refuse_foreign

REMAP_BYTES = 16 * 2**20
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle that starts with torch's magic number


class Ignored:
    """Stands in for objects of fairseq that its checkpoints carry beside the weights. Whatever they hold is let go."""

    def __setstate__(self, state):
        pass


_STAND_INS = [(Ignored, "fairseq.data.dictionary.Dictionary"), (Ignored, "argparse.Namespace")]


class MappedWeights(Mapping[str, torch.Tensor]):
    """Named tensors of a file, read when they are asked for.

    Args:
        load: maps the file and returns its tensors. Called again after `REMAP_BYTES` bytes have been handed out, which
            frees the pages of those that the caller no longer holds.
        where: what to call the file in messages.
    """

    def __init__(self, load: Callable[[], Mapping[str, torch.Tensor]], where: str):
        self._load, self._tensors, self._handed_out = load, load(), 0
        bad = [str(name) for name, value in self._tensors.items() if not _is_plain(name, value)]
        if bad:
            raise ConversionError(f"{where}: these entries are not dense tensors: {listed(bad)}")
        self.where = where
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._handed_out > REMAP_BYTES:
            self._tensors, self._handed_out = self._load(), 0
        tensor = self._tensors[name].detach()
        self._handed_out += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _is_plain(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, its tensors without their values; `torch_weights` reads these.

    Raises:
        FileNotFoundError: if there is no such file.
        ConversionError: if it is truncated, damaged, not a checkpoint, or would run code when it is unpickled.
    """
    _check_archive(path)
    return _load_torch(path)


def _check_archive(path: Path) -> None:
    """Every record against its checksum: a flipped bit in a weight would otherwise go unnoticed."""
    with path.open("rb") as file:
        start = file.read(len(_OLD_FORMAT))
    if start == _OLD_FORMAT:
        refuse_foreign(path)
        raise ConversionError(
            f"{path} has the format of PyTorch before 1.6, which has no checksums; save it again: "
            f"torch.save(torch.load('{path}', weights_only=True), 'new.pt')"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            damaged = archive.testzip()
    except Exception as error:  # the bytes are arbitrary, and so is what the zip reader trips over
        refuse_foreign(path)
        raise ConversionError(
            f"{path} is truncated, damaged, or no PyTorch checkpoint ({first_line(error)}); fetch it again"
        ) from None
    if damaged is not None:
        raise ConversionError(f"{path} is damaged: the checksum of {damaged} is wrong; fetch it again")
    if packed:
        raise ConversionError(f"{path} has compressed records, which torch.save never writes: {listed(packed)}")


@functools.cache
def _meta_knows_offsets() -> bool:
    """Whether tensors loaded without values say where in the file these lie. In torch 2.9 they do not.

    Files are mapped there: the values are read when they are used, too, but their pages stay until the end.
    """
    file = io.BytesIO()
    torch.save(torch.zeros(1), file)
    file.seek(0)
    storage = torch.load(file, map_location="meta", weights_only=True).untyped_storage()
    return getattr(storage, "_checkpoint_offset", None) is not None


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            if _meta_knows_offsets():
                return torch.load(path, map_location="meta", weights_only=True)
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _unsafe_globals(path)
        refuse_foreign(path)
        if not wanted:
            raise ConversionError(f"{path} cannot be unpickled safely: {_reason(error)}") from None
        raise ConversionError(
            f"{path} was not loaded: loading it would run {listed(wanted)}, and weights need nothing of the kind; if "
            "you trust it, open it in the program it comes from and save only its tensors and plain settings"
        ) from None
    except Exception as error:  # a well-formed archive around an arbitrary pickle
        raise ConversionError(f"{path} is no checkpoint that can be read: {first_line(error)}") from None


def _unsafe_globals(path: Path) -> list[str]:
    """What the pickle asks for beyond tensors and plain data. Found by reading it, not by running it."""
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # its pickle cannot even be scanned; the caller has the first error to report
        return []


def _reason(error: Exception) -> str:
    """The part of torch's advice-laden message that says what is wrong."""
    text = " ".join(str(error).split())
    return text.rpartition("WeightsUnpickler error: ")[2][:200].partition(" Check the documentation")[0].strip()


def torch_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> MappedWeights:
    """The values of tensors that `read_torch_file` found in `path`."""
    return MappedWeights(lambda: _mapped(path, tensors), str(path))


def _mapped(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors without values filled from the file, which takes a tenth of the time of unpickling it again."""
    file = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    try:
        return {name: _filled(tensor, file) for name, tensor in tensors.items()}
    except Exception as error:  # sizes and offsets in a pickle are arbitrary
        raise ConversionError(f"{path} is no checkpoint that can be read: {first_line(error)}") from None


def _filled(tensor: Any, file: torch.UntypedStorage) -> Any:
    storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided else None
    start = getattr(storage, "_checkpoint_offset", None)  # set by torch.load(map_location="meta")
    if start is None:
        return tensor  # mapped already, or for MappedWeights to refuse
    values = file[start : start + storage.nbytes()]
    return torch.empty(0, dtype=tensor.dtype).set_(values, tensor.storage_offset(), tensor.shape, tensor.stride())


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        FileNotFoundError: if there is no such file.
        ConversionError: if it holds anything else.
    """
    try:
        return read_object(path, "give a folder that `save_pretrained` wrote")
    except ValueError as error:
        raise ConversionError(str(error)) from None


def folder_weights(folder: Path) -> MappedWeights:
    """The weights of a folder that `save_pretrained` wrote: safetensors or `.bin`, whole or in shards.

    Raises:
        FileNotFoundError: if there are none, or some of them are missing.
        ConversionError: if one is damaged.
    """
    for name, load in (("model.safetensors", _load_safetensors), ("pytorch_model.bin", None)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            paths = [folder / name]
        elif index.is_file():
            paths = _shards(index)
        else:
            continue
        if load is None:
            found = {path: _named(path, read_torch_file(path)) for path in paths}
            load = lambda path: _mapped(path, found[path])  # noqa: B023, E731 (returned at once)
        return MappedWeights(lambda: _merge(paths, load), str(folder))  # noqa: B023 (returned at once)
    raise FileNotFoundError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConversionError(f"{index} has no weight_map that says which file holds which weight")
    paths = [index.parent / Path(name).name for name in sorted(set(names.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{index.parent} lacks files that {index.name} names: {listed(missing)}")
    return paths


def _merge(paths: list[Path], load: Callable[[Path], Any]) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in paths:
        tensors |= load(path)
    return tensors


def _named(path: Path, data: Any) -> Mapping:
    if not isinstance(data, Mapping):
        raise ConversionError(f"{path} must hold named tensors, got {type(data).__name__}")
    return data


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConversionError(f"{path} is truncated or damaged: {first_line(error)}; fetch it again") from None

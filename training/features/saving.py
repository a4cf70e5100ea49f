"""`lighthubert features`: the features of a whole data set in files, a row for each recording."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from lighthubert_hf.extras import require
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.superb.feature_store import data_fingerprint
from lighthubert_hf.training.superb.upstream import Upstream

from .encoding import AudioWindows, Window, check_layers, encode
from .opening import EncoderOrName, as_source, open_encoder
from .shards import PROGRESS, Row, ShardedOutput, Written

NAME = "features"
FORMATS = {"safetensors": ".safetensors", "parquet": ".parquet"}
# Audio whose features are computed together.
_WINDOW_SECONDS = 100.0


def save_features(
    model: EncoderOrName,
    data: Any,
    output: str | Path,
    layers: int | Sequence[int],
    *,
    format: str = "safetensors",
    dtype: str = "float32",
    shard_megabytes: float = 256.0,
    max_seconds: float | None = None,
    max_broken_share: float = 0.05,
    source: dict[str, Any] | None = None,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Written:
    """Features of chosen layers of every recording of a data set, in shards; `read_features` reads them.

    Memory holds one shard, and the recording that is worked on. The same call again goes on after the last shard.

    Args:
        model: folder or Hub id, a live model, or an `Upstream`.
        data: folder, files, Hub id, `datasets.Dataset`, or an `AudioSource`.
        output: folder for `features-00000.safetensors …`.
        layers: of `hidden_states`: 0 is the input of the first layer, N the output of the Nth.
        format: `safetensors` (a tensor for each recording, by the name of its file: `(frames, width)`, of several
            layers `(layers, frames, width)`), or `parquet` (a row for each, with a column `layer_N` of
            `(frames, width)` for each layer), which `datasets` reads.
        dtype: `float32`, or `float16`, which keeps 11 bits of each number.
        shard_megabytes: size of a shard, about.
        max_seconds: leave longer recordings out, and count them.
        max_broken_share: a larger share of files that cannot be read is an error; up to there they are named in the
            log and counted.
        source: options of `AudioSource`.
        revision, subnet: of a model on the Hub, and of a supernet.
        overwrite: start over.

    Raises:
        FileNotFoundError: there is no such model or data set.
        ValueError: no such layer, features that overflow float16, an output of another run.
    """
    require("train", what="features of a data set")
    layers = (layers,) if isinstance(layers, int) else tuple(layers)
    if format not in FORMATS or dtype not in ("float16", "float32"):
        raise ValueError(
            f"features are written as {' or '.join(FORMATS)} in float32 or float16, not {format}, {dtype}"
        )
    if not 0 < shard_megabytes <= 100_000:
        raise ValueError(f"--shard-megabytes must be above 0 and at most 100,000, got {shard_megabytes}")
    speech = as_source(data, **(source or {}))
    upstream = open_encoder(model, revision=revision, subnet=subnet, device=device)
    layers = check_layers(upstream, layers)
    bytes_per_second = SAMPLING_RATE / upstream.stride * upstream.width * len(layers) * np.dtype(dtype).itemsize
    windows = AudioWindows(
        speech,
        min(_WINDOW_SECONDS, shard_megabytes * 1e6 / bytes_per_second),
        shuffle=False,
        repeat=False,
        max_seconds=max_seconds,
        max_broken_share=max_broken_share,
    )
    settings = {
        "encoder": upstream.fingerprint,
        "data": data_fingerprint(speech),
        "split": speech.split,
        "layers": list(layers),
        "dtype": dtype,
        "format": format,
        "text_column": speech.text_column,
        "max_seconds": max_seconds,
    }
    write = _Safetensors(layers) if format == "safetensors" else _Parquet(layers)
    shards = ShardedOutput(output, NAME, FORMATS[format], write, settings, shard_megabytes * 1e6 / bytes_per_second)
    rows = _Rows(upstream, layers, dtype, speech.text_column is not None)
    return shards.fill(windows, rows, overwrite=overwrite, progress=progress)


class _Rows:
    """A row for each recording of a window."""

    def __init__(self, upstream: Upstream, layers: tuple[int, ...], dtype: str, with_text: bool):
        self.upstream, self.layers, self.dtype, self.with_text = upstream, layers, dtype, with_text

    def __call__(self, window: Window) -> list[Row]:
        features = encode(self.upstream, window.waveforms, self.layers, self._convert)
        return [
            {**recording.facts(self.with_text), "features": array}
            for recording, array in zip(window.recordings, features, strict=True)
        ]

    def _convert(self, states: torch.Tensor) -> np.ndarray:
        array = states.to(getattr(torch, self.dtype)).cpu().numpy()
        if not np.isfinite(array).all():
            raise ValueError(
                f"features of up to {states.abs().max():.3g} cannot be kept in {self.dtype}; use float32, and check "
                "the model if that fails, too"
            )
        return array


@dataclass(frozen=True)
class _Safetensors:
    """A tensor for each recording, by the name of its file; with a `#id` behind names that a shard has twice."""

    layers: tuple[int, ...]

    def __call__(self, rows: list[Row], path: Path) -> None:
        tensors, said = {}, []
        for row in rows:
            key = row["file"] if row["file"] not in tensors else f"{row['file']}#{row['id']}"
            array = row["features"]
            tensors[key] = np.ascontiguousarray(array[:, 0] if len(self.layers) == 1 else array.swapaxes(0, 1))
            said.append({"key": key} | {name: value for name, value in row.items() if name != "features"})
        save_file(tensors, path, {NAME: json.dumps({"layers": self.layers, "rows": said})})


@dataclass(frozen=True)
class _Parquet:
    """A row for each recording, its features in a column for each layer."""

    layers: tuple[int, ...]

    def __call__(self, rows: list[Row], path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        frames = [len(row["features"]) for row in rows]
        columns = {
            "file": pa.array([row["file"] for row in rows]),
            "id": pa.array([row["id"] for row in rows]),
            "seconds": pa.array([row["seconds"] for row in rows]),
            "frames": pa.array(frames, pa.int32()),
        }
        if "text" in rows[0]:
            columns["text"] = pa.array([row["text"] for row in rows], pa.string())
        offsets = pa.array(np.concatenate([[0], np.cumsum(frames)]).astype(np.int32))
        for place, layer in enumerate(self.layers):
            values = np.concatenate([row["features"][:, place] for row in rows])
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            columns[f"layer_{layer}"] = pa.ListArray.from_arrays(offsets, vectors)
        pq.write_table(pa.table(columns), path, row_group_size=100)


def read_features(folder: str | Path) -> Iterator[Row]:
    """The rows that `save_features` wrote, one after the other.

    Yields:
        `file`, `id`, `seconds`, perhaps `text`, and in `layers` the features `(frames, width)` of each layer by its
        number.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = Path(folder)
    shards = sorted(path for suffix in FORMATS.values() for path in folder.glob(f"{NAME}-*{suffix}"))
    if not shards:
        raise FileNotFoundError(f"{folder} holds no features; `lighthubert features` writes them ({PROGRESS} beside)")
    for shard in shards:
        yield from _read_safetensors(shard) if shard.suffix == ".safetensors" else _read_parquet(shard)


def _read_safetensors(path: Path) -> Iterator[Row]:
    with safe_open(path, framework="np") as file:
        said = json.loads(file.metadata()[NAME])
        layers = said["layers"]
        for row in said["rows"]:
            array = file.get_tensor(row.pop("key"))
            arrays = [array] if len(layers) == 1 else list(array)
            yield row | {"layers": dict(zip(layers, arrays, strict=True))}


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(batch_size=16):
        names = [name for name in batch.schema.names if name.startswith("layer_")]
        for place in range(batch.num_rows):
            known = [name for name in ("file", "id", "seconds", "text") if name in batch.schema.names]
            plain, layers = {name: batch[name][place].as_py() for name in known}, {}
            for name in names:
                vectors = batch[name][place].values
                layers[int(name.removeprefix("layer_"))] = vectors.flatten().to_numpy().reshape(len(vectors), -1)
            yield plain | {"layers": layers}

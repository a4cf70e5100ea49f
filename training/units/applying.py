"""`lighthubert units apply`: the units of a whole data set in files that `datasets` reads."""

import json
from pathlib import Path
from typing import Any

import torch

from lighthubert_hf.extras import require
from lighthubert_hf.model.codebook import Codebook, without_repeats
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.training.features.encoding import AudioWindows, Window
from lighthubert_hf.training.features.opening import EncoderOrName, as_source, open_encoder
from lighthubert_hf.training.features.shards import Row, ShardedOutput, Written, write_jsonl
from lighthubert_hf.training.superb.feature_store import data_fingerprint
from lighthubert_hf.training.superb.upstream import Upstream

from .agreement import WINDOW_SECONDS, units_of
from .choosing import codebook_for

NAME = "units"
FORMATS = {"parquet": ".parquet", "jsonl": ".jsonl"}
_SHARD_SECONDS = 2 * 3600.0


def apply_units(
    model: EncoderOrName,
    data: Any,
    output: str | Path,
    *,
    codebook: Codebook | str | Path | None = None,
    layer: int | None = None,
    clusters: int | None = None,
    format: str = "parquet",
    repeats: bool = False,
    max_seconds: float | None = None,
    max_broken_share: float = 0.05,
    source: dict[str, Any] | None = None,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Written:
    """The units of every recording of a data set, in shards; `datasets.load_dataset(OUTPUT)` reads them.

    A row is `file`, `id`, `seconds`, `frames`, `units`, `durations` (frames that each unit lasts), and `text`, if the
    source names a column of it. The same call again goes on after the last shard, of two hours of audio each.

    Args:
        model: folder or Hub id, a live model, or an `Upstream`.
        data: folder, files, Hub id, `datasets.Dataset`, or an `AudioSource`.
        output: folder for `units-00000.parquet …`.
        codebook: the codebook, or a file of some; by default those beside the model. `layer` and `clusters` choose.
        format: `parquet` or `jsonl`.
        repeats: write a unit for each frame, and no durations.
        max_seconds, max_broken_share, source, revision, subnet, overwrite: as for `save_features`.

    Raises:
        FileNotFoundError: there is no such model or data set.
        ValueError: no such codebook, one that does not fit, an output of another run.
    """
    require("train", what="units of a data set")
    if format not in FORMATS:
        raise ValueError(f"units are written as {' or '.join(FORMATS)}, not {format}")
    speech = as_source(data, **(source or {}))
    upstream = open_encoder(model, revision=revision, subnet=subnet, device=device)
    chosen = codebook_for(upstream, codebook, layer=layer, clusters=clusters)
    windows = AudioWindows(
        speech,
        WINDOW_SECONDS,
        shuffle=False,
        repeat=False,
        max_seconds=max_seconds,
        max_broken_share=max_broken_share,
    )
    settings = {
        "encoder": upstream.fingerprint,
        "codebook": chosen.fingerprint,
        "data": data_fingerprint(speech),
        "split": speech.split,
        "format": format,
        "repeats": repeats,
        "text_column": speech.text_column,
        "max_seconds": max_seconds,
    }
    write = write_jsonl if format == "jsonl" else _Parquet(chosen)
    shards = ShardedOutput(output, NAME, FORMATS[format], write, settings, _SHARD_SECONDS)
    rows = _Rows(upstream, chosen, repeats, speech.text_column is not None)
    return shards.fill(windows, rows, overwrite=overwrite, progress=progress)


class _Rows:
    """A row for each recording of a window."""

    def __init__(self, upstream: Upstream, codebook: Codebook, repeats: bool, with_text: bool):
        self.upstream, self.codebook, self.repeats, self.with_text = upstream, codebook, repeats, with_text

    def __call__(self, window: Window) -> list[Row]:
        rows = []
        for recording, units in zip(
            window.recordings, units_of(self.upstream, self.codebook, window.waveforms), strict=True
        ):
            row = {**recording.facts(self.with_text), "frames": len(units)}
            if self.repeats:
                row["units"] = units.tolist()
            else:
                kept, lasting = without_repeats(torch.from_numpy(units))
                row |= {"units": kept.tolist(), "durations": lasting.tolist()}
            rows.append(row)
        return rows


class _Parquet:
    """Rows in a parquet file whose metadata say of which codebook they are."""

    def __init__(self, codebook: Codebook):
        self.facts = {"lighthubert_codebook": json.dumps(codebook.to_dict())}

    def __call__(self, rows: list[Row], path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {
            "file": pa.string(),
            "id": pa.string(),
            "seconds": pa.float64(),
            "frames": pa.int32(),
            "units": pa.list_(pa.int32()),
            "durations": pa.list_(pa.int32()),
            "text": pa.string(),
        }
        schema = pa.schema([(name, kind) for name, kind in kinds.items() if name in rows[0]], metadata=self.facts)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)

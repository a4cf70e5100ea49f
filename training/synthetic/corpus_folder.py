"""Folders of parquet shards that `datasets` and the Hub understand: written whole, reused if complete."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lighthubert_hf.files import read_object, replacing_folder
from lighthubert_hf.locks import locked
from lighthubert_hf.preprocessing import SAMPLING_RATE

MANIFEST = "corpus.json"


def write_corpus(
    folder: Path, parameters: dict[str, Any], write_splits: Callable[[Path], dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """A corpus made by `write_splits`, beside its place and then renamed; one made with the same parameters is reused.

    Args:
        folder: Where to write; anything else in the way is an error.
        parameters: All that the contents depend on, as JSON can say it.
        write_splits: Writes the corpus into the folder it is given and returns facts of every split.

    Returns:
        The manifest, as it is written to `corpus.json`: `{"parameters": {…}, "splits": {…}}`.
    """
    if (existing := _existing_manifest(folder, parameters)) is not None:
        return existing
    with locked(folder), replacing_folder(folder) as new:
        (new / "data").mkdir()
        manifest = {"parameters": parameters, "splits": write_splits(new)}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _existing_manifest(folder: Path, parameters: dict[str, Any]) -> dict[str, Any] | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} exists and is not a synthetic corpus (no {MANIFEST}); choose another folder")
    manifest = read_object(path, "delete the folder to make the corpus again")
    if not isinstance(manifest.get("parameters"), dict) or not isinstance(manifest.get("splits"), dict):
        raise ValueError(f"{path} is damaged: it has no parameters and splits; delete the folder to make it again")
    differing = sorted(key for key, value in parameters.items() if manifest["parameters"].get(key) != value)
    if differing:
        was, asked = ({key: source.get(key) for key in differing} for source in (manifest["parameters"], parameters))
        raise ValueError(
            f"{folder} holds a corpus made with {was}, asked for {asked}; delete it or choose another folder"
        )
    return manifest


def flac(name: str, waveform: np.ndarray) -> dict[str, Any]:
    """A waveform, `(num_samples,)` in [-1, 1] at 16 kHz, as the value of an `Audio` column."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {"bytes": encoded.getvalue(), "path": f"{name}.flac"}


def shard_path(folder: Path, split: str, shard: int, num_shards: int) -> Path:
    """Where `datasets` looks for a shard."""
    return folder / "data" / f"{split}-{shard:05d}-of-{num_shards:05d}.parquet"


def write_shard(path: Path, rows: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    """Write rows with an `id`, an `audio` and the given other columns (names to features of `datasets`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio, Features, Value

    features = Features({"id": Value("string"), "audio": Audio(sampling_rate=SAMPLING_RATE), **columns})
    # The schema carries the features, so `datasets` sees an Audio column; FLAC does not compress further.
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=100, compression="none")

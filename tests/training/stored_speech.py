"""Small stored speech-like data for the tests of the data path. Every row's text says which row it is."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Features, Value

ROWS_PER_SHARD = (13, 5, 21, 9, 17)


def encode(seconds: float, seed: int = 0, sampling_rate: int = 16_000, kind: str = "FLAC") -> bytes:
    waveform = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * sampling_rate))
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format=kind)
    return buffer.getvalue()


def write_parquet_shards(folder: Path, rows_per_shard=ROWS_PER_SHARD, seconds=(0.2, 0.5), features=True) -> list[str]:
    """Write shards of rows of random length, a few rows per row group; returns all texts."""
    (folder / "data").mkdir(parents=True)
    schema = Features({"audio": Audio(), "text": Value("string")}).arrow_schema
    if not features:
        schema = schema.remove_metadata()
    rng, texts = np.random.default_rng(0), []
    for shard, num_rows in enumerate(rows_per_shard):
        rows = []
        for row in range(num_rows):
            text = f"{shard}-{row}"
            data = encode(rng.uniform(*seconds), seed=len(texts))
            rows.append({"audio": {"bytes": data, "path": f"{text}.flac"}, "text": text})
            texts.append(text)
        name = f"train-{shard:05d}-of-{len(rows_per_shard):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data" / name, row_group_size=4)
    return texts

"""A tiny frozen model, and stored noise with a planted signal and every label that a task may ask for."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, Features, Value

from lighthubert_hf import LightHubertModel
from lighthubert_hf.training.superb.settings import TASKS, SuperbData
from lighthubert_hf.training.superb.upstream import Upstream

SPLITS = {"train": 12, "validation": 6, "test": 6, "documents": 6}
FEATURES = Features(
    {
        "audio": Audio(),
        **{
            name: Value("string")
            for name in ("id", "text", "phonemes", "slots", "label", "action", "object", "location")
        },
        "segments": [{"speaker": Value("string"), "start": Value("float64"), "end": Value("float64")}],
        "documents": [Value("string")],
    }
)


def tone(pitch: float, seconds: float, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    time = np.arange(round(16_000 * seconds)) / 16_000
    waveform = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.standard_normal(len(time))
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, 16_000, format="FLAC")
    return buffer.getvalue()


def row(split: str, index: int) -> dict:
    kind, seed = index % 3, index + 1000 * list(SPLITS).index(split)
    return {
        "audio": {"bytes": tone((200, 800, 3000)[kind], 0.3 + 0.02 * index, seed), "path": "a.flac"},
        "id": f"{split}-{index}",
        "text": ("a b", "b a", "ab")[kind],
        "phonemes": ("AH B", "B AH", "EY B")[kind],
        "slots": ("B-x a E-x b", "b B-y a E-y", "ab")[kind],
        "label": "pqr"[kind],
        "action": "uv"[kind % 2],
        "object": "wx"[kind // 2],
        "location": "here",
        "segments": [
            {"speaker": "first", "start": 0.0, "end": 0.2},
            {"speaker": "second", "start": 0.1, "end": 0.4},
        ],
        "documents": [f"documents-{index}"],
    }


@pytest.fixture(scope="session")
def superb_folder(tmp_path_factory) -> Path:
    """A folder with the splits and columns of all tasks; the pitch says which of three labels a row has."""
    folder = tmp_path_factory.mktemp("superb")
    (folder / "data").mkdir()
    for split, number in SPLITS.items():
        table = pa.Table.from_pylist([row(split, index) for index in range(number)], schema=FEATURES.arrow_schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def superb_data(superb_folder) -> SuperbData:
    return SuperbData(**{task: {"path": str(superb_folder), "name": "tones"} for task in TASKS})


@pytest.fixture
def tiny_static(make_model) -> LightHubertModel:
    return make_model(LightHubertModel, search_space=None)


@pytest.fixture
def upstream(tiny_static) -> Upstream:
    return Upstream(tiny_static)

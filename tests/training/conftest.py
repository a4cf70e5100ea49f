"""Data and servers that the tests of the training code share."""

from pathlib import Path

import pytest

from lighthubert_hf import LightHubertModel
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.training.units.fitting import FitResult, fit_codebooks

from .faulty_server import FaultyServer
from .stored_speech import write_parquet_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> tuple[str, list[str]]:
    """A folder of parquet shards of unequal size, and the texts in it."""
    folder = tmp_path_factory.mktemp("shards")
    return str(folder), write_parquet_shards(folder)


@pytest.fixture
def faulty_server(shards, monkeypatch):
    """A `FaultyServer` of `shards`. `datasets` itself hardly retries, so that faults reach our code."""
    import datasets

    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.0)
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_RETRY_INTERVAL", 0.0)
    server = FaultyServer(Path(shards[0]) / "data")
    yield server
    server.close()


@pytest.fixture(scope="session")
def unit_model(make_model, shards, tmp_path_factory) -> tuple[Path, FitResult]:
    """A model folder with codebooks of two layers, and what fitting them said. Not to be changed."""
    folder = tmp_path_factory.mktemp("units") / "model"
    save_model_folder(make_model(LightHubertModel, search_space=None), folder)
    result = fit_codebooks(folder, shards[0], (1, 3), 12, steps=2, progress=False)
    return folder, result

"""Data and servers that the tests of the training code share."""

from pathlib import Path

import pytest

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

"""Fixtures of the tests that push to and load from the Hub-compatible server."""

import os
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import Account, HubServer
from huggingface_hub import constants
from huggingface_hub.utils import _http

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf import publishing as publishing_module

# Alphanumeric like a real one, so that what looks for tokens finds it.
TOKEN = "hf_TestWriterToken0123456789"
ACCOUNTS = {
    TOKEN: Account("alice", orgs=("acme",)),
    "hf_TestReaderToken0123456789": Account("bob", role="read", orgs=("acme",)),
    "hf_TestOtherToken0123456789": Account("carol"),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server, with the client in this process turned to it and logged in as alice, who never has to wait."""
    with HubServer(ACCOUNTS) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for module in (_http, huggingface_hub.file_download, publishing_module):
            monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        yield server
        assert server.unexpected == []


@pytest.fixture(scope="session")
def config() -> LightHubertConfig:
    return LightHubertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        head_dim=8,
        intermediate_size=128,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        target_size=16,
        search_space=SearchSpace((16, 32), (2, 4), (2.0, 4.0), (2, 3)),
    )


@pytest.fixture(scope="session")
def supernet(config) -> LightHubertModel:
    torch.manual_seed(0)
    return LightHubertModel(config).eval()


@pytest.fixture(scope="session")
def model(supernet) -> LightHubertModel:
    """The smallest subnet; a plain HuBERT can load it as it is."""
    return supernet.extract_subnet(supernet.search_space.smallest())


@pytest.fixture
def run_python(hub, tmp_path):
    """Runs a program in a process of its own, against the server, with an empty cache.

    Without `package`, this package cannot be imported there: `-S` leaves out the `site` module and with it the `.pth`
    files by which an editable installation is found, and the working directory is elsewhere.
    """

    def run(program: str, *, package: bool = False, token: str | None = TOKEN) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": sysconfig.get_path("purelib"),
        }
        if token is not None:
            environment["HF_TOKEN"] = token
        if package:
            environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parents[2])
        found = "is not None" if package else "is None"
        check = f"import importlib.util\nassert importlib.util.find_spec('lighthubert_hf') {found}\n"
        done = subprocess.run(
            [sys.executable, "-S", "-P", "-c", check + program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run

"""Fixtures of the tests that push to and load from the Hub-compatible server."""

import json
import os
import subprocess
import sys
import sysconfig
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from transformers.utils import hub as transformers_hub

from lighthubert_hf import LightHubertConfig, LightHubertModel, SearchSpace
from lighthubert_hf.hub import upload

from .. import processes
from .accounts import ACCOUNTS, TOKEN
from .server import HubServer


@contextmanager
def serving(cache):
    """The server, with the client in this process turned to it and logged in as alice, who never has to wait."""
    with HubServer(ACCOUNTS) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(transformers_hub, "_hf_api", None)  # a client that it keeps, of an earlier server
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", TOKEN)
        for module in (_http, file_download, upload):
            patch.setattr(module, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        yield server
        assert server.unexpected == []


@pytest.fixture
def hub(tmp_path):
    with serving(tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory):
    """One server for all the tests of a module, for what only reads."""
    with serving(tmp_path_factory.mktemp("cache")) as server:
        yield server


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


WORKER = """
import contextlib, importlib.util, io, json, sys, traceback
answers = sys.stdout
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            exec(json.loads(line), {})
            error = None
        except Exception:
            error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)
"""


def _environment(endpoint: str, home: Path) -> dict[str, str]:
    """The client turned to the server and logged in as alice, with nothing in its caches."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    own |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    return {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | own


class Worker:
    """A Python process without this package that runs programs against the server, one after the other.

    (Importing torch takes seconds.) This package cannot be imported there: `-S` leaves out the `site` module and with
    it the `.pth` files by which an editable installation is found, `-P` the working directory, which is elsewhere.
    """

    def __init__(self, endpoint: str, home: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-c", WORKER],
            cwd=home,
            env=_environment(endpoint, home) | {"PYTHONPATH": sysconfig.get_path("purelib")},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.run("import importlib.util\nassert importlib.util.find_spec('lighthubert_hf') is None")

    def run(self, program: str) -> str:
        """What `program` prints; an AssertionError with its traceback if it fails."""
        self.process.stdin.write(json.dumps(program) + "\n")
        self.process.stdin.flush()
        printed, error = json.loads(self.process.stdout.readline())
        assert error is None, error
        return printed

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=200)


@pytest.fixture(scope="module")
def without_package(shared_hub, tmp_path_factory):
    worker = Worker(shared_hub.endpoint, tmp_path_factory.mktemp("without"))
    yield worker
    worker.close()


@pytest.fixture
def with_package(shared_hub, tmp_path):
    """`with_package(program)`: what the program prints in a process of its own that can import this package."""
    (tmp_path / "home").mkdir()
    environment = _environment(shared_hub.endpoint, tmp_path / "home")
    # The client has read the environment when it was imported, before the process was forked.
    again = "import importlib, huggingface_hub.constants\nimportlib.reload(huggingface_hub.constants)\n"

    def run(program: str) -> str:
        return processes.run("-c", again + program, env=environment, cwd=tmp_path / "home", check=True).stdout

    return run

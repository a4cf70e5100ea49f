"""How tests run: one thread each, a server of processes, and what they share."""

import argparse
import gc
import os
import sys

from . import examples  # noqa: F401  hypothesis' profiles, before they are asked for

# One thread: files run on every core already. `make test-portable` sets others, for what they do to rounding.
NUM_THREADS = int(os.environ.get("TEST_THREADS", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))  # processes that tests start


def _hands_out_tests() -> bool:
    """Whether this process has workers for the tests (`-n`): it needs no torch, and its workers wait for it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--numprocesses")
    numprocesses = parser.parse_known_args(sys.argv[1:])[0].numprocesses
    return "PYTEST_XDIST_WORKER" not in os.environ and numprocesses not in (None, "0")


# No test outlives a power cut, and waiting for the disk takes up to a tenth of the time. What is flushed, and when, is
# tested one level above, in test_files.py.
os.fsync = lambda descriptor: None

if not _hands_out_tests():
    gc.disable()  # until all is imported: collections on the way take a sixth of the time
    import torch
    from transformers import AutoModel, AutoProcessor  # noqa: F401
    from transformers.models.hubert import modeling_hubert  # noqa: F401

    from . import processes

    processes.start_server()
    torch.set_num_threads(NUM_THREADS)

    from .fixtures import (  # noqa: F401
        make_config,
        make_model,
        random_subnets,
        tiny_config,
        tiny_supernet,
        waveforms,
    )


def pytest_collection_finish():
    """What has been imported stays: without it, the full collections that trainers and compilers ask for are short."""
    gc.enable()
    gc.collect()
    gc.freeze()

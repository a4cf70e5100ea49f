"""What a run says when it begins, and what it notices of its launcher."""

import os
import subprocess
import sys

import pytest
import torch

from lighthubert_hf.training.runs.start import start_line, warn_if_alone

PROGRAM = """
import logging
from accelerate import Accelerator
from lighthubert_hf.training.runs.start import warn_if_alone
logging.basicConfig()
warn_if_alone(Accelerator(cpu=True).num_processes)
"""


def launched(tmp_path, *launcher: str) -> str:
    """What a program that a launcher starts writes on standard error."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    clean = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE", "RANK")}
    command = [sys.executable, "-m", *launcher, str(program)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("environment", "num_processes", "noticed"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, 1, True),  # accelerate, of 2 processes
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, False),  # accelerate, of 1
        ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "0"}, 2, False),  # torchrun
        ({}, 1, False),
    ],
)
def test_what_launchers_leave_in_the_environment(monkeypatch, caplog, environment, num_processes, noticed):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warn_if_alone(num_processes)
    assert ("was asked for several processes but started this one only" in caplog.text) is noticed


@pytest.mark.slow  # the launchers themselves: four programs that import torch
def test_a_launcher_that_starts_one_process_of_several_is_noticed(tmp_path):
    accelerate = ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_machines", "1")
    said = launched(tmp_path, *accelerate, "--num_processes", "2")
    assert "was asked for several processes but started this one only" in said
    assert "torchrun --nproc_per_node" in said
    assert "was asked for several" not in launched(tmp_path, *accelerate, "--num_processes", "1")
    assert "was asked for several" not in launched(tmp_path, "torch.distributed.run", "--nproc_per_node", "2")


def test_the_first_line():
    threads = torch.get_num_threads()
    many = f"{threads} thread{'s' if threads > 1 else ''} each"
    assert (
        start_line("mine", 1, torch.device("cpu"), 0, 9)
        == f"mine: 1 process on cpu, {many}; 9 steps from the beginning"
    )
    assert start_line("mine", 2, torch.device("cuda:1"), 4, 9).endswith("goes on after step 4 of 9")

"""The line that a run begins with, and what it says of the launcher."""

import logging
import os
from pathlib import Path

import torch

from lighthubert_hf.progress import write_line

logger = logging.getLogger(__name__)


def say(text: str, shown: bool = True) -> None:
    """A line on standard error that does not tear a progress bar; in the log only, if nothing is to be shown."""
    if shown:
        write_line(text)
    else:
        logger.info("%s", text)


def start_line(name: str, num_processes: int, device: torch.device, step: int, num_steps: int) -> str:
    """How a run begins: processes, device, threads, and the step it goes on from."""
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    threads = torch.get_num_threads()
    where = f"{processes} on {device.type}, {threads} thread{'s' if threads > 1 else ''} each"
    place = f"goes on after step {step} of {num_steps}" if step else f"{num_steps} steps from the beginning"
    return f"{name}: {where}; {place}"


def stopped_line(step: int, num_steps: int, checkpoint: Path) -> str:
    """Where a run that was asked to stop did, and how it goes on."""
    return f"stopped after step {step} of {num_steps}, saved in {checkpoint}; the same command goes on from there"


def warn_if_alone(num_processes: int) -> None:
    """Say so if a launcher was asked for several processes and started one, as `accelerate launch --cpu` does."""
    launched, ranked = "ACCELERATE_MIXED_PRECISION" in os.environ, "WORLD_SIZE" in os.environ
    # It names a meeting place for more than one process only, then leaves the others to mpirun.
    if num_processes == 1 and launched and not ranked and "MASTER_ADDR" in os.environ:
        logger.warning(
            "the launcher was asked for several processes but started this one only, as `accelerate launch --cpu` "
            "does; to train on several, use torchrun --nproc_per_node N -m lighthubert_hf.cli …"
        )


def leave_processes() -> None:
    """The end of a command on several processes: without it a process may abort at its exit, and the launcher then
    kills the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

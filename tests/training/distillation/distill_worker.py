"""Distillation in processes of their own, with faults on demand: what the tests kill, pre-empt and poison.

As a script (`distill_worker.py RECIPE.yaml [FAULTS]`) this is what `run` starts and what the tests hand to a launcher.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import yaml

from lighthubert_hf.training.distillation.recipe import DistillationRecipe


def run(recipe, world_size: int = 1, **fault) -> list[int]:
    """Distil `recipe` in `world_size` processes to their end and return their exit codes (negative: a signal)."""
    from ...processes import Started, start_world  # a script has no packages around it

    path = Path(recipe.output_dir).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command, preload = (__file__, path, json.dumps(fault)), ("accelerate", "datasets")
    if world_size == 1:
        started = [Started(*command, preload=preload)]
    else:
        started = start_world(world_size, *command, preload=preload)
    codes = [process.wait() for process in started]
    for process, code in zip(started, codes):
        print(*process.output(), f"exit code {code}", sep="\n")  # shown if the test fails
    return codes


def fingerprints(recipe, world_size: int = 1) -> list[dict]:
    """What each process of a finished run left: hashes of its weights and optimiser state, and its counters."""
    folder = Path(recipe.output_dir)
    return [json.loads((folder / f"fingerprint-{rank}.json").read_text()) for rank in range(world_size)]


def work(path: str, rank: int = 0, **fault) -> None:
    import torch

    from lighthubert_hf.training.distillation import run as module
    from lighthubert_hf.training.recipes.loading import load_recipe

    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
    recipe = load_recipe(DistillationRecipe, path)
    for name, value in fault.items():
        globals()[f"_{name}"](module, rank, value)

    class Run(module._Run):
        def finish(self, final):
            _leave_fingerprint(module, self, rank)
            return super().finish(final)

    module._Run = Run
    module.distill(recipe, show_progress=False)


def _leave_fingerprint(module, run, rank: int) -> None:
    tensors = {name: parameter.detach() for name, parameter in run.model.student.named_parameters()}
    tensors |= module.flatten_optimizer(run.optimizer.optimizer, run.parameter_names)
    hashes = {name: hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    path = Path(run.recipe.output_dir) / f"fingerprint-{rank}.json"
    path.write_text(json.dumps({"hashes": hashes, "step": run.state.step, "skipped": run.state.skipped_steps}))


def _before_step(module, action) -> None:
    original = module.TrainingStep.run

    def patched(self, step, batches, *args):
        action(step, batches)
        return original(self, step, batches, *args)

    module.TrainingStep.run = patched


def _device(module, rank, device) -> None:
    """Where to run, if not on whatever there is; on a GPU without the kernels that sum in any order."""
    import torch

    if device == "cpu":
        module.torch.accelerator.is_available = lambda: False
    else:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)


def _kill_at_step(module, rank, step) -> None:
    _before_step(module, lambda s, _: os.kill(os.getpid(), signal.SIGKILL) if s == step else None)


def _terminate_at_step(module, rank, value) -> None:
    bad_rank, step = value
    _before_step(module, lambda s, _: os.kill(os.getpid(), signal.SIGTERM) if (rank, s) == (bad_rank, step) else None)


def _poison(module, rank, value) -> None:
    """An infinite sample in one step of one process."""
    bad_rank, step = value

    def action(s, batches):
        if (rank, s) == (bad_rank, step):
            batches[0]["input_values"][0, 0] = float("inf")

    _before_step(module, action)


def _data_ends(module, rank, value) -> None:
    """Each process has only so many batches."""
    numbers, taken = value, []
    original = module._take

    def patched(batches, number, state):
        if len(taken) >= numbers[rank]:
            return [], state
        taken.append(1)
        return original(batches, number, state)

    module._take = patched


def _record_batches(module, rank, folder) -> None:
    import torch

    _before_step(module, lambda step, batches: torch.save(batches, f"{folder}/batches-{step}-{rank}.pt"))


def _replay_batches(module, rank, folder) -> None:
    """The batches that two processes recorded, instead of one's own."""
    import torch

    def action(step, batches):
        recorded = [torch.load(f"{folder}/batches-{step}-{r}.pt", weights_only=True) for r in range(2)]
        batches[:] = [batch for share in recorded for batch in share]

    _before_step(module, action)


def _kill_in_save(module, rank, event) -> None:
    """SIGKILL instead of the `event`-th thing that is done to the disk below `checkpoints/`."""
    _before_writing(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == event else None)


def _snapshots(module, rank, folder) -> None:
    """What is below `checkpoints/` before each thing that is done to it there: what SIGKILL would leave."""
    checkpoints = Path(folder).with_name("run") / "checkpoints"

    def copy(number: int) -> None:
        if checkpoints.is_dir():
            shutil.copytree(checkpoints, Path(folder, f"{number:03d}"))

    _before_writing(copy)


def _before_writing(action) -> None:
    """Call `action` with the number of each thing that is done to the disk below `checkpoints/`, before it is."""
    from lighthubert_hf.training.distillation import checkpoint

    happened = []

    def count() -> None:
        happened.append("this one")
        action(len(happened))

    def hook(name, arguments) -> None:
        if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            writes = name != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and "checkpoints" in str(arguments[0]):
                count()

    sys.addaudithook(hook)
    save = checkpoint.save_file  # written by Rust, unheard by Python's auditing
    checkpoint.save_file = lambda *args, **kwargs: (count(), save(*args, **kwargs))


if __name__ == "__main__":
    work(sys.argv[1], int(os.environ.get("RANK", 0)), **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))

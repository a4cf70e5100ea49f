"""Runs of recipes in one process of several, one run after another: `two_process_worker.py RUNS.json`.

`RUNS.json` lists runs as `[kind, recipe, overrides]`. After each the processes compare what they hold.
"""

import json
import sys
from pathlib import Path

import torch


def main(file: str) -> None:
    torch.set_num_threads(1)
    from accelerate.state import AcceleratorState

    from lighthubert_hf.training.distillation import run as distilling
    from lighthubert_hf.training.distillation.recipe import DistillationRecipe
    from lighthubert_hf.training.finetuning import run as finetuning
    from lighthubert_hf.training.finetuning.recipe import FineTuningRecipe
    from lighthubert_hf.training.recipes.loading import load_recipe
    from lighthubert_hf.training.runs.start import leave_processes

    held = {}  # the parameters of the latest run
    make_trainer, finish = finetuning._trainer, distilling._Run.finish

    def trainer(task, arguments, model, *rest):
        held["model"] = model
        return make_trainer(task, arguments, model, *rest)

    def finished(self, folder):
        held["model"] = self.model.student
        return finish(self, folder)

    finetuning._trainer, distilling._Run.finish = trainer, finished
    for kind, recipe, overrides in json.loads(Path(file).read_text(encoding="utf-8")):
        print(kind, recipe, *overrides, flush=True)
        AcceleratorState._reset_state()  # the precision may change
        if kind == "finetune":
            finetuning.finetune(load_recipe(FineTuningRecipe, recipe, overrides), quiet=True)
        else:
            distilling.distill(load_recipe(DistillationRecipe, recipe, overrides), show_progress=False)
        assert torch.distributed.get_world_size() == 2
        compare(held["model"])
    leave_processes()


def compare(model: torch.nn.Module) -> None:
    """Fail unless both processes hold the same parameters to the bit."""
    total = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    totals = [torch.empty_like(total) for _ in range(2)]
    torch.distributed.all_gather(totals, total)
    assert torch.equal(*totals)


if __name__ == "__main__":
    main(sys.argv[1])

"""A distillation step: seconds of audio per second for our student, the original's and transformers', in one loop.

    python benchmarks/training_step.py [--original CHECKOUT] [--json OUT] [--docs docs/performance.md]

The loop is ours (`TrainingStep`): HuBERT Base teaches the mean of its last 8 FFN outputs, the student predicts it from
masked features, L1, gradients summed over processes and clipped, fused AdamW over all weights, front end included.
Stage 1 trains the largest subnet of the `base` space, stage 2 another random one of the `small` space per step, the
same for all. transformers' HubertModel, which has no subnets, is the largest in stage 1 and the static 27M default in
stage 2. Dropout is off. Every contender has the teacher it would have: ours our form of it, the others
transformers'; times without the teacher stand beside. A share is the FLOP of the plain computation (`cost.py`)
per second over the rate of a matrix product in the same run.

With `--processes 1 2` the machine's cores are divided among the processes. On a GPU: bf16; raise --batch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from contenders import MATMUL, activate_original, add_outputs, machine, markdown, matmul_rate, original_model, publish
from torch import nn
from transformers import HubertConfig, HubertModel

from lighthubert_hf import SearchSpace
from lighthubert_hf.costs.measuring import matmul_contender, stopwatch, synchronize
from lighthubert_hf.training.distillation.cost import count_cost
from lighthubert_hf.training.distillation.objectives import make_objective
from lighthubert_hf.training.distillation.optimizer import make_optimizer
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.sampler import StepSubnets
from lighthubert_hf.training.distillation.step import DistillationModel, TrainingStep
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import Teacher
from lighthubert_hf.training.recipes.loading import load_recipe

SAMPLING_RATE = 16_000
OURS = "ours"
STAGES = {"stage 1, largest": "lighthubert-stage1", "stage 2, random": "lighthubert-small"}
NO_DROPOUT = {"hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0}


class Foreign(nn.Module):
    """A student of another implementation, as far as the loop needs to know it."""

    def __init__(self, model: nn.Module, config: HubertConfig):
        super().__init__()
        self.model, self.config, self.dtype = model, config, torch.float32
        self._get_feat_extract_output_lengths = HubertModel._get_feat_extract_output_lengths.__get__(self)


class Original(Foreign):
    def predict(self, audio: torch.Tensor, time_mask: torch.Tensor, subnet) -> torch.Tensor:
        activate_original(self.model, subnet)
        return self.model.forward(audio, mask=True)["layer_heads"][-1][0]  # draws masks of its own


class Transformers(Foreign):
    def __init__(self, config: HubertConfig, target_size: int):
        super().__init__(HubertModel(config), config)
        self.head = nn.Linear(config.hidden_size, target_size, bias=False)

    def predict(self, audio: torch.Tensor, time_mask: torch.Tensor, subnet) -> torch.Tensor:
        return self.head(self.model(audio, mask_time_indices=time_mask).last_hidden_state)


class ForeignModel(DistillationModel):
    """Runs a foreign student whole; the loop's share of it starts at the audio."""

    def __init__(self, teacher, student, objective, accelerator):
        self.teacher, self.student, self.objective, self.accelerator = teacher, student, objective, accelerator
        self.learnt = objective
        self.freeze_front_end = self.share_front_end = False

    def by_front_end(self, subnets):
        return [list(subnets)]

    def features(self, batch, subnet):
        return batch.input_values

    def predictions(self, features, batch, subnet):
        with self.accelerator.autocast():
            return [self.student.predict(features, batch.time_mask, subnet)[:, : batch.targets[0].shape[1]]]


class TimedTeacher:
    """Notes what its last call took."""

    def __init__(self, teacher: Teacher, device: torch.device):
        self._teacher, self._device, self.milliseconds = teacher, device, 0.0

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def __call__(self, *arguments):
        synchronize(self._device)
        start = time.perf_counter()
        output = self._teacher(*arguments)
        synchronize(self._device)
        self.milliseconds = 1e3 * (time.perf_counter() - start)
        return output


def recipe_of(stage: str, options) -> DistillationRecipe:
    changes = ["teacher.path=null", "teacher.random_config={}", "teacher.dtype=float32", "student.init=random"]
    changes += [f"student.config={json.dumps(NO_DROPOUT | {'layerdrop': 0.0, 'feat_extract_norm': 'layer'})}"]
    changes += [f"training.steps={options.rounds + 1}", f"data.batch_seconds={options.batch * options.seconds}"]
    changes += [f"data.crop_seconds={options.seconds}", f"training.mixed_precision={options.precision}"]
    return load_recipe(DistillationRecipe, STAGES[stage], [*changes, "training.accumulation=1", "validation=null"])


def students(stage: str, recipe: DistillationRecipe, encoder: HubertModel, options) -> dict[str, nn.Module]:
    found = {OURS: build_student(recipe.student, encoder, 0)}
    shape = {}
    if stage == "stage 2, random":
        default = SearchSpace.small().default()
        shape = {"hidden_size": default.hidden_size, "num_attention_heads": default.num_attention_heads[0]}
        shape |= {"intermediate_size": default.intermediate_size[0]}
    config = HubertConfig(feat_extract_norm="layer", layerdrop=0.0, **NO_DROPOUT, **shape)
    found["transformers"] = Transformers(config, encoder.config.hidden_size)
    if options.original:
        original = original_model(options.original, recipe.student.search_space)
        original.encoder.layerdrop = 0.0
        for module in original.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        found["original"] = Original(original, config)
    return found


def contender(
    name: str, student: nn.Module, encoder: HubertModel, recipe: DistillationRecipe, accelerator: Accelerator
):
    objective = make_objective(recipe.objective, encoder.config, student.config)
    # The others' bf16 is torch's autocast, and so is ours; the teacher, which is nobody's student, has its own dtype.
    teacher = TimedTeacher(Teacher(encoder, objective.request, as_it_is=name != OURS), accelerator.device)
    make = DistillationModel if name == OURS else ForeignModel
    model = make(teacher, student.to(accelerator.device).train(), objective.to(accelerator.device), accelerator)
    optimizer = accelerator.prepare(make_optimizer(model, recipe)[0])
    return SimpleNamespace(teacher=teacher, step=TrainingStep(model, optimizer, recipe))


def run_stage(stage: str, options) -> dict:
    """Times of one process's steps in milliseconds; what the stage costs."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=options.precision)
    device, recipe = accelerator.device, recipe_of(stage, options)
    encoder = HubertModel(HubertConfig())
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    pupils = students(stage, recipe, encoder, options)
    encoder.to(device, dtype)
    runs = {name: contender(name, student, encoder, recipe, accelerator) for name, student in pupils.items()}
    sampler = StepSubnets(pupils[OURS].search_space, recipe.sampler, 0)
    audio = torch.randn(options.batch, round(options.seconds * SAMPLING_RATE))
    batch = {"input_values": audio, "attention_mask": torch.ones_like(audio, dtype=torch.long)}
    batch["ids"] = [str(row) for row in range(options.batch)]
    matmul = matmul_contender(device, dtype)
    times = {name: {"step": [], "teacher": []} for name in runs} | {MATMUL: []}
    for step in range(options.rounds + 1):  # the first warms up
        accelerator.wait_for_everyone()
        times[MATMUL].append(stopwatch(matmul, device))
        for name, run in runs.items():
            subnets = sampler.subnets(step)
            took = stopwatch(lambda run=run, subnets=subnets: run.step.run(step, [batch], subnets), device)  # noqa: B023
            times[name]["step"].append(took)
            times[name]["teacher"].append(run.teacher.milliseconds)
    cost = count_cost(recipe)
    return {"times": times, "flop": {"all": cost.total, "student": cost.total - cost.teacher}}


def launch(stage: str, processes: int, options) -> dict:
    """`run_stage` in that many processes; the first one's answer."""
    threads = max((options.threads or os.cpu_count()) // processes, 1)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [__file__, "--worker", str(answer), "--stage", stage, *sys.argv[1:]]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
        return json.loads(answer.read_text())


def summarised(stage: str, processes: int, measured: dict, options) -> dict:
    audio, rows = options.batch * options.seconds, {}
    times = {name: values for name, values in measured["times"].items() if name != MATMUL}
    rate = matmul_rate({MATMUL: measured["times"][MATMUL][1:]})
    for name, values in times.items():
        whole = median(values["step"][1:])
        student = median(a - b for a, b in zip(values["step"][1:], values["teacher"][1:]))
        rows[name] = {
            "step_ms": round(whole, 1),
            "without_teacher_ms": round(student, 1),
            "audio_per_second": round(1e3 * audio * processes / whole, 2),
        }
        if name != "transformers" or stage.startswith("stage 1"):  # transformers' stage 2 is another subnet
            rows[name]["share"] = round(measured["flop"]["all"] * audio / whole / 1e6 / rate, 3)
    for row in rows.values():
        row["times_ours"] = round(row["step_ms"] / rows[OURS]["step_ms"], 2)
        row["times_ours_without_teacher"] = round(row["without_teacher_ms"] / rows[OURS]["without_teacher_ms"], 2)
    return {"stage": stage, "processes": processes, "matmul_gflops": round(rate, 1), "contenders": rows} | measured


def table(settings: list[dict]) -> str:
    header = ["", "audio s/s", "step ms", "× ours", "without teacher ms", "× ours", "share of matmul rate"]
    rows = []
    for setting in settings:
        for name, row in setting["contenders"].items():
            label = f"{setting['stage']}, {setting['processes']} process(es): {name}"
            cells = [f"{row['audio_per_second']:.1f}", f"{row['step_ms']:.0f}", f"{row['times_ours']:.2f}"]
            cells += [f"{row['without_teacher_ms']:.0f}", f"{row['times_ours_without_teacher']:.2f}"]
            rows.append([label, *cells, f"{row['share']:.0%}" if "share" in row else ""])
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", metavar="CHECKOUT", help="the original implementation (commit d53e545)")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each contender (default %(default)s)")
    parser.add_argument("--threads", type=int, help="cores to divide among the processes; all if not given")
    parser.add_argument("--batch", type=int, default=4, help="clips per process (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a clip (default %(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--worker", metavar="OUT", help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    add_outputs(parser)
    options = parser.parse_args()
    options.precision = "bf16" if torch.cuda.is_available() else "no"
    if options.worker:
        measured = run_stage(options.stage, options)
        if int(os.environ["RANK"]) == 0:
            Path(options.worker).write_text(json.dumps(measured), encoding="utf-8")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return
    stages = [options.stage] if options.stage else list(STAGES)
    settings = [
        summarised(stage, processes, launch(stage, processes, options), options)
        for stage in stages
        for processes in options.processes
    ]
    results = {"machine": machine(), "audio": f"{options.batch} x {options.seconds:g} s", "settings": settings}
    publish("training_step", results, table(settings), options)


if __name__ == "__main__":
    main()

"""What the studies of training share: parts in a row, a teacher that is asked once, a record of each run.

A study is a setting and its parts. Its runs are those of the package's own trainer (`distill`); what differs from one
to the next is a recipe's sections. Work is counted, not timed: of every step's subnets, in closed form.
"""

import argparse
import contextlib
import hashlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from distilling import Workshop
from parts import Part, Results, write_json
from safetensors.torch import load_file, save_file
from settings import Setting
from transformers import AutoConfig

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, SearchSpace, Subnet
from lighthubert_hf.costs.profiling import count_parameters, macs_by_part
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.distillation import run as trainer
from lighthubert_hf.training.distillation.objectives.base import TeacherOutput
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.sampler import StepSubnets
from lighthubert_hf.training.distillation.student import build_student, lighthubert_fields
from lighthubert_hf.training.distillation.teacher import Teacher, load_teacher
from lighthubert_hf.training.recipes.loading import parse_recipe

CLIP_SECONDS = 2.0  # in which multiply-accumulates are counted: about as long as the sentences
Does = Callable[[Workshop], Any]


@dataclass(frozen=True)
class Study:
    """Args:
    setting: its sizes.
    parts: in the order in which they are run, each after those that it needs.
    does: by a part's name, what computes its result.
    report: the collected results as Markdown.
    plot: draws them into a folder; the files and what they show.
    """

    setting: Setting
    parts: Sequence[Part]
    does: dict[str, Does]
    report: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any], Path], dict[Path, str]]


def run_study(study: Study, output: Path, wanted: Sequence[Part], minutes: float | None = None) -> bool:
    """Do what is not done yet of the parts `wanted`; whether all of them are done now.

    Raises:
        ValueError: `output` holds another setting's run, or a part needs one that is not done.
    """
    results, until = Results(output), time.monotonic() + 60 * (minutes or float("inf"))
    results.claim(study.setting)
    for part in wanted:
        if results.done(part):
            continue
        if time.monotonic() > until:
            print(f"stopped after {minutes:g} minutes; the same command goes on", flush=True)
            return False
        if missing := [need.key for need in part.needs if not results.done(need)]:
            raise ValueError(f"{part.key} needs {', '.join(missing)}, to be run before")
        start = time.perf_counter()
        result = study.does[part.name](Workshop(output, study.setting, part.seed))
        seconds = round(time.perf_counter() - start, 1)
        entry = {"part": part.name, "seed": part.seed, "wall_seconds": seconds, "result": result}
        write_json(results.path(part), entry)
        print(f"{part.key} done in {seconds:.0f} s", flush=True)
    return True


def study_arguments(description: str, settings: Sequence[str]) -> argparse.ArgumentParser:
    """The options that the studies' programs share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=settings, default="default")
    parser.add_argument("--output", type=Path, help="folder (default runs/miniature-STUDY-SETTING)")
    parser.add_argument("--part", action="append", help="only this part, several times for several; or 'report'")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--minutes", type=float, help="begin no part after so long; what is left is for the next call")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all results to this file")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="replace tables and plots of a Markdown file")
    return parser


def wanted_parts(parts: Sequence[Part], names: Sequence[str] | None, seed: int | None) -> list[Part]:
    """ValueError if a name is no part's."""
    known = {part.name for part in parts}
    if unknown := set(names or ()) - known - {"report"}:
        raise ValueError(f"no part {min(unknown)!r}; parts: report, {', '.join(sorted(known))}")
    return [
        part for part in parts if (names is None or part.name in names) and (seed is None or part.seed in (None, seed))
    ]


def study_main(program: str, studies: Callable[[str], Study], settings: Sequence[str], description: str) -> int:
    """A study's command line.

    Args:
        program: the study's name, of the default folder and of the place in `--docs`.
        studies: the study of a setting.
    """
    options = study_arguments(description, settings).parse_args()
    study = studies(options.setting)
    output = options.output or Path("runs") / f"miniature-{program}-{options.setting}"
    try:
        parts = wanted_parts(study.parts, options.part, options.seed)
        finished = run_study(study, output, parts, options.minutes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    from publishing import publish_study

    print(publish_study(program, study, output, options.json, options.docs))
    return 0 if finished else 1


# The teacher


class RememberingTeacher(Teacher):
    """Keeps in a folder what it said of a batch, for the next run of the same seed: all hear the same audio.

    Its answers are exact, and work is counted as if it had answered anew.
    """

    folder: Path

    def __call__(self, input_values, attention_mask=None, mask_time_indices=None) -> TeacherOutput:
        path = self.folder / f"{self._key(input_values, attention_mask, mask_time_indices)}.safetensors"
        if path.is_file():
            return _unpacked(load_file(path))
        output = super().__call__(input_values, attention_mask, mask_time_indices)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(_packed(output), partial)
        partial.replace(path)
        return output

    def _key(self, *tensors: torch.Tensor | None) -> str:
        shares = bool(self.model.feature_extractor._forward_hooks)
        digest = hashlib.sha256(f"{self.request} {shares}".encode())
        for tensor in tensors:
            digest.update(b"none" if tensor is None else str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:32]


def _packed(output: TeacherOutput) -> dict[str, torch.Tensor]:
    tensors = {f"layer.{index}": tensor for index, tensor in output.layer_results.items()}
    tensors |= {f"state.{index}": tensor for index, tensor in output.hidden_states.items()}
    tensors |= {"projected": output.projected, "front_end": output.front_end}
    return {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}


def _unpacked(tensors: dict[str, torch.Tensor]) -> TeacherOutput:
    def numbered(kind: str) -> dict[int, torch.Tensor]:
        return {int(name.split(".")[1]): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}

    return TeacherOutput(numbered("layer"), numbered("state"), tensors.get("projected"), tensors.get("front_end"))


@contextlib.contextmanager
def remembering(folder: Path) -> Iterator[None]:
    """Within it, `distill` asks the teacher only what nothing in `folder` answers."""
    kind = type("Remembering", (RememberingTeacher,), {"folder": folder})
    with mock.patch.object(trainer, "Teacher", kind):
        yield


# Runs


@dataclass(frozen=True)
class Run:
    """A distillation: what its recipe says that the study's plain one does not.

    Args:
        name: its folder.
        steps: of training.
        sections: sections of a recipe, over the plain ones.
    """

    name: str
    steps: int
    sections: dict[str, Any]

    def recipe(self, shop: Workshop) -> DistillationRecipe:
        setting, source = shop.setting, {"path": str(shop.corpus)}
        every = max(1, self.steps // setting.curve_points)
        audio = {"batch_seconds": setting.batch_seconds, "crop_seconds": setting.crop_seconds}
        plain: dict[str, Any] = {
            "teacher": {"path": str(shop.teacher)},
            "objective": {"name": "lighthubert", "num_target_layers": shop.architecture.num_target_layers},
            "sampler": {"kind": "random"},
            "data": {"sources": [source], "num_workers": 0, **audio},
            "validation": {
                "sources": [source | {"split": "validation"}],
                "every": every,
                "max_examples": setting.curve_utterances,
                "num_random": setting.curve_subnets,
                **audio,
            },
            "optimizer": {"lr": setting.learning_rate},
            "schedule": {"kind": "tri_stage", "warmup": 0.05, "hold": 0.7},
            "training": {"steps": self.steps},
            "checkpoint": {"every": self.steps, "keep": 1},
            "logging": {"every": every},
        }
        identity = {"name": self.name, "output_dir": str(shop.folder(self.name)), "seed": shop.seed}
        return parse_recipe(DistillationRecipe, identity | plain | self.sections)


def train(shop: Workshop, run: Run) -> dict[str, Any]:
    """Distil, or finish distilling; steps, counted work and the losses along the way."""
    recipe = run.recipe(shop)
    with remembering(shop.output / "teacher-said"):
        trainer.distill(recipe, show_progress=False)
    entries = read_log(Path(recipe.output_dir) / "log.jsonl")
    return {
        "steps": run.steps,
        "flop": run.steps * step_flop(shop, recipe),
        "audio_seconds": [entry["audio_seconds"] for entry in entries if "audio_seconds" in entry][-1],
        "curve": [entry for entry in entries if "validation" in entry],
    }


def step_flop(shop: Workshop, recipe: DistillationRecipe) -> float:
    """Counted FLOP of a mean step, were its batch full: the teacher, and every subnet forward and backward.

    A backward pass is twice a forward one; an elastic front end that is frozen runs forward only, one that is the
    teacher's not at all, and without a layer to run the work is that of the front ends. Batches are as full in one
    run as in another.
    """
    teacher = LightHubertConfig.from_dict(lighthubert_fields(AutoConfig.from_pretrained(shop.teacher)))
    student = build_student(recipe.student, load_teacher(recipe.teacher), recipe.seed).config
    space = None if student.search_space is None else SearchSpace.from_dict(student.search_space)
    sampler = None if space is None else StepSubnets(space, recipe.sampler, recipe.seed)
    passes = _front_end_passes(recipe, student)
    projected = recipe.objective.name == "front_end"
    macs = 0.0
    for step in range(recipe.training.steps):
        macs += forward_macs(teacher, None, projected)["all"]
        channels = None
        for subnet in sampler.subnets(step) if sampler else (None,):
            found = forward_macs(student, subnet, projected)
            macs += 3 * (found["all"] - found["front end"])
            if channels != (channels := subnet and student.conv_channels(subnet)) or subnet is None:
                macs += passes * found["front end"]  # subnets of the same channels in a row share it
    return 2 * macs / recipe.training.steps * recipe.data.batch_seconds


def _front_end_passes(recipe: DistillationRecipe, student: LightHubertConfig) -> int:
    """Of the student's front end, in a step: in units of a forward pass."""
    if not recipe.student.freeze_front_end:
        return 3
    return 1 if student.has_elastic_front_end else 0


def forward_macs(config: LightHubertConfig, subnet: Subnet | None, front_end_only: bool = False) -> dict[str, float]:
    """Multiply-accumulates for a second of audio, the prediction head left out."""
    parts = macs_by_part(config, subnet, round(CLIP_SECONDS * SAMPLING_RATE))
    found = {"front end": parts["front end"], "all": sum(parts.values())}
    if front_end_only:
        found["all"] = parts["front end"] + parts["other"]
    return {name: count / CLIP_SECONDS for name, count in found.items()}


def steps_for(shop: Workshop, run: Run, flop: float) -> Run:
    """`run` with as many steps as work of `flop` allows."""
    for _ in range(3):  # the mean step depends a little on how many there are
        steps = max(1, round(flop / step_flop(shop, run.recipe(shop))))
        run = replace(run, steps=steps)
    return run


# What came of it


def sizes_of(config: LightHubertConfig, subnet: Subnet) -> dict[str, float]:
    """Parameters, and multiply-accumulates a second."""
    return {"parameters": count_parameters(config, subnet), "macs": forward_macs(config, subnet)["all"]}


def model_of(shop: Workshop, name: str) -> LightHubertForPreTraining:
    return LightHubertForPreTraining.from_pretrained(shop.folder(name) / "model")


def drawn_subnets(space: SearchSpace, count: int, purpose: str) -> list[Subnet]:
    rng = random.Random(purpose)
    return [space.sample(rng) for _ in range(count)]

"""The parts that train: teacher, stages, students of their own, and stage 2 with one addition at a time.

Every run leaves the same record: the work it took, the losses of the same random subnets along the way, and the losses
of more subnets at the end, on sentences that nothing was chosen by.
"""

import random
from pathlib import Path
from typing import Any

from reading import train_on
from settings import Setting

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.conversion.layout.importance import rearrangements
from lighthubert_hf.costs.profiling import count_parameters
from lighthubert_hf.files import replacing_folder
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.demo.teacher import train_tiny_teacher
from lighthubert_hf.training.distillation.cost import count_cost
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection
from lighthubert_hf.training.distillation.progress import read_log
from lighthubert_hf.training.distillation.recipe import DistillationRecipe, StudentSection, TeacherSection
from lighthubert_hf.training.distillation.run import distill
from lighthubert_hf.training.distillation.scoring import DistillationScore, distillation_score
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import load_teacher
from lighthubert_hf.training.recipes.loading import parse_recipe
from lighthubert_hf.training.synthetic.speech import synthesise_corpus
from lighthubert_hf.training.synthetic.tasks import synthesise_task

CANNOT_READ = 0.3  # character error rate of a teacher whose training goes on
PLAIN = {"kind": "random"}
# Stage 2 with one thing changed. Progressive shrinking opens FFN, heads, width and depth a fifth of the steps apart.
ADDITIONS: dict[str, dict[str, Any]] = {
    "several": {"kind": "random", "num_random": 2},
    "sandwich": {"kind": "sandwich", "num_random": 1},
    "in-place": {"kind": "sandwich", "num_random": 1, "in_place_weight": 0.2},
    "shrinking": {"kind": "random", "phases": "progressive"},
    "sorting": PLAIN,
    "teacher-init": PLAIN,
    "teacher-init-in-place": {"kind": "sandwich", "num_random": 1, "in_place_weight": 0.2},
}
# These have no stage 1 and get its work as well.
FROM_TEACHER = ("teacher-init", "teacher-init-in-place")
_KNOBS = ("ffn_ratio", "num_attention_heads", "hidden_size", "num_hidden_layers")


class Workshop:
    """One run's folder, setting and seed, as the parts see them.

    OUTPUT/corpus, tasks/TASK, teacher      shared by all seeds
    OUTPUT/seed-N/PART/model                the models of seed N

    In all runs the convolutional front end is the teacher's and stays so: subnets share it anyway, and training it
    would take half of the time.
    """

    def __init__(self, output: Path, setting: Setting, seed: int | None):
        self.output, self.setting, self.seed = output, setting, seed
        self.architecture = setting.architecture
        self.corpus, self.teacher = output / "corpus", output / "teacher"

    def folder(self, part: str) -> Path:
        return self.output / f"seed-{self.seed}" / part

    def model(self, part: str) -> LightHubertForPreTraining:
        return LightHubertForPreTraining.from_pretrained(self.folder(part) / "model")

    def score(self, model: LightHubertForPreTraining, split: str, utterances: int) -> DistillationScore:
        objective = LightHubertObjectiveSection(num_target_layers=self.architecture.num_target_layers)
        source = AudioSource(str(self.corpus), split)
        return distillation_score(
            model, str(self.teacher), [source], max_examples=utterances, objective=objective, progress=False
        )

    def random_subnets(self, count: int, purpose: str) -> list[Subnet]:
        rng = random.Random(f"{purpose} of seed {self.seed}")
        return [self.architecture.search_space.sample(rng) for _ in range(count)]


def corpus(shop: Workshop) -> dict[str, Any]:
    """Speech to train on, and the labelled sets of the probes that need their own."""
    setting = shop.setting
    made = synthesise_corpus(
        shop.corpus,
        minutes=setting.corpus_minutes,
        held_out_minutes=setting.held_out_minutes,
        voices=setting.voices,
        unheard_voices=setting.unheard_voices,
    )
    tasks = {}
    for task, (examples, held_out) in setting.probe_examples.items():
        folder = shop.output / "tasks" / task
        tasks[task] = synthesise_task(task, folder, examples=examples, held_out_examples=held_out)["splits"]
    return {"splits": made["splits"], "tasks": tasks, "voices": len(setting.voices)}


def teacher(shop: Workshop) -> dict[str, Any]:
    """Trained on characters until it reads: CTC leaves its plateau when it pleases, sometimes after all steps."""
    setting, rounds = shop.setting, 0
    error_rates = train_tiny_teacher(
        shop.corpus,
        shop.teacher,
        pretrain_steps=setting.teacher_pretrain_steps,
        ctc_steps=setting.teacher_ctc_steps,
        batch_seconds=setting.teacher_batch_seconds,
        config=shop.architecture.config,
    )
    while error_rates["test_sentences"] > CANNOT_READ and rounds < setting.teacher_rounds:
        rounds += 1
        error_rates = train_on(shop.corpus, shop.teacher, setting.teacher_ctc_steps // 2, rounds)
    return {"cer": error_rates, "rounds": rounds}


def stage1(shop: Workshop) -> dict[str, Any]:
    """The largest subnet alone; its losses are those of subnets cut from a supernet that never trained them."""
    student = _new(shop, "stage1", _supernet(shop))
    return _run(shop, "stage1", student, {"kind": "largest"}, shop.setting.stage1_steps)


def stage2(shop: Workshop) -> dict[str, Any]:
    return _run(shop, "stage2", _from(shop, "stage1"), PLAIN, shop.setting.stage2_steps)


def stage2_alone(shop: Workshop) -> dict[str, Any]:
    """Random subnets from the first step on, for the steps of both stages."""
    return _run(shop, "stage2-alone", _new(shop, "stage2-alone", _supernet(shop)), PLAIN, shop.setting.total_steps)


def alone(shop: Workshop, name: str) -> dict[str, Any]:
    """The shape of a named subnet, with weights of its own: a space of one subnet."""
    part, subnet = f"alone-{name}", shop.architecture.named_subnets()[name]
    like = _one_subnet(shop, subnet)
    student = _new(shop, part, like)
    return _run(shop, part, student, {"kind": "largest"}, shop.setting.total_steps, like)


def _one_subnet(shop: Workshop, subnet: Subnet) -> dict[str, Any]:
    """A student that holds a subnet of uniform layers and nothing else."""
    width, heads, units = subnet.hidden_size, subnet.num_attention_heads[0], subnet.intermediate_size[0]
    layers = subnet.num_hidden_layers
    space = {"hidden_size": [width], "num_attention_heads": [heads], "ffn_ratio": [units / width]}
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": units}
    head_dim = shop.architecture.hidden_size // shop.architecture.num_attention_heads
    return _supernet(shop) | {
        "search_space": space | {"num_hidden_layers": [layers]},
        "config": sizes | {"num_hidden_layers": layers, "head_dim": head_dim},
    }


def addition(shop: Workshop, name: str, plain: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Stage 2 with an addition, for as many steps as the work of the plain recipe allows.

    Args:
        plain, before: the records of stages 2 and 1.
    """
    sampler, student, budget = dict(ADDITIONS[name]), _from(shop, "stage1"), plain["flop"]
    if name == "sorting":
        student["init"] = str(_sorted_stage1(shop))
    if name in FROM_TEACHER:
        student = _supernet(shop)
        budget += before["flop"]
    steps = shop.setting.stage2_steps
    for _ in range(2 if name == "shrinking" else 1):  # what it costs depends a little on where its phases fall
        rate = _flop_per_second(shop, _recipe(shop, name, student, _with_phases(sampler, steps), steps))
        steps = max(1, round(budget / (rate * shop.setting.batch_seconds * plain["fill"])))
    return _run(shop, name, student, _with_phases(sampler, steps), steps)


def _with_phases(sampler: dict[str, Any], steps: int) -> dict[str, Any]:
    if sampler.get("phases") != "progressive":
        return sampler
    starts = sorted({round(steps * index / 5) for index in range(len(_KNOBS))})
    phases = [{"from_step": start, "open": list(_KNOBS[: index + 1])} for index, start in enumerate(starts)]
    return sampler | {"phases": phases}


def _sorted_stage1(shop: Workshop) -> Path:
    """The supernet of stage 1 with the important heads and FFN units first."""
    folder = shop.folder("stage1-sorted")
    if not folder.exists():
        model = shop.model("stage1")
        state = model.lighthubert.state_dict()
        moved = rearrangements(model.config, state.__getitem__)
        model.lighthubert.load_state_dict(state | {name: move(state[name]) for name, move in moved.items()})
        _save(model, folder)
    return folder


def _supernet(shop: Workshop) -> dict[str, Any]:
    """What a recipe says of a student with the teacher's weights."""
    return {
        "init": "teacher",
        "search_space": shop.architecture.search_space.to_dict(),
        "freeze_front_end": True,
    }


def _new(shop: Workshop, part: str, like: dict[str, Any]) -> dict[str, Any]:
    """A student of the shape `like` with the teacher's front end and random weights otherwise, saved as a folder."""
    folder = shop.folder(f"{part}-start")
    if not folder.exists():
        encoder = load_teacher(TeacherSection(path=str(shop.teacher)))
        random_start = StudentSection(**like | {"init": "random", "freeze_front_end": False})
        student = build_student(random_start, encoder, shop.seed)
        student.lighthubert.feature_extractor.load_state_dict(encoder.feature_extractor.state_dict())
        _save(student, folder)
    return {"init": str(folder), "freeze_front_end": True}


def _from(shop: Workshop, part: str) -> dict[str, Any]:
    return {"init": str(shop.folder(part) / "model"), "freeze_front_end": True}


def _save(model: LightHubertForPreTraining, folder: Path) -> None:
    with replacing_folder(folder) as new:
        model.save_pretrained(new)


def _recipe(shop: Workshop, name: str, student: dict, sampler: dict, steps: int) -> DistillationRecipe:
    setting = shop.setting
    every = max(1, steps // setting.curve_points)
    return parse_recipe(
        DistillationRecipe,
        {
            "name": name,
            "output_dir": str(shop.folder(name)),
            "seed": shop.seed,
            "teacher": {"path": str(shop.teacher)},
            "student": student,
            "objective": {"name": "lighthubert", "num_target_layers": shop.architecture.num_target_layers},
            "sampler": sampler,
            "data": {
                "sources": [{"path": str(shop.corpus)}],
                "batch_seconds": setting.batch_seconds,
                "crop_seconds": setting.crop_seconds,
                "num_workers": 0,
            },
            "validation": {
                "sources": [{"path": str(shop.corpus), "split": "validation"}],
                "every": every,
                "batch_seconds": setting.batch_seconds,
                "crop_seconds": setting.crop_seconds,
                "max_examples": setting.curve_utterances,
                "num_random": setting.curve_subnets,
            },
            "optimizer": {"lr": setting.learning_rate},
            "schedule": {"kind": "tri_stage", "warmup": 0.05, "hold": 0.7},
            "training": {"steps": steps},
            "checkpoint": {"every": max(1, steps // 3), "keep": 1},
            "logging": {"every": every},
        },
    )


def _run(
    shop: Workshop, name: str, student: dict, sampler: dict, steps: int, like: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Distil (or finish distilling) and write down what it took and what came of it.

    Args:
        like: a student of the same shape with the teacher's weights, whose work is counted; by default the supernet.
    """
    recipe = _recipe(shop, name, student, sampler, steps)
    distill(recipe)
    rate = _flop_per_second(shop, recipe, like)
    curve = _curve(read_log(Path(recipe.output_dir) / "log.jsonl"), rate)
    audio = curve[-1]["audio_seconds"]
    return {
        "steps": steps,
        "audio_seconds": audio,
        "fill": audio / (steps * shop.setting.batch_seconds),
        "flop": rate * audio,
        "seconds": curve[-1]["seconds"],
        "curve": curve,
        **_final_losses(shop, name),
    }


def _flop_per_second(shop: Workshop, recipe: DistillationRecipe, like: dict[str, Any] | None = None) -> float:
    """Counted FLOP per second of audio. The weights do not matter, so a student that goes on from a folder is counted
    as a new one of its shape."""
    student = StudentSection(**(like or _supernet(shop)))
    return count_cost(recipe.model_copy(update={"student": student})).total


def _curve(log: list[dict[str, Any]], rate: float) -> list[dict[str, float]]:
    """Work done and losses at every validation: mean over the random subnets, and of the named ones."""
    points, seconds, audio = [], 0.0, 0.0
    for entry in log:
        if "audio_seconds" in entry:
            seconds += (entry["audio_seconds"] - audio) / entry["audio_per_second"]
            audio = entry["audio_seconds"]
        else:
            losses = entry["validation"]
            drawn = [loss for name, loss in losses.items() if name.startswith("random-")]
            points.append(
                {
                    "step": entry["step"],
                    "audio_seconds": audio,
                    "flop": rate * audio,
                    "seconds": seconds,
                    "random": sum(drawn) / len(drawn),
                    "largest": losses["largest"],
                    "smallest": losses["smallest"],
                }
            )
    return points


def _final_losses(shop: Workshop, name: str) -> dict[str, Any]:
    """On new sentences: the losses of the named subnets (a student trained alone has one), and of random ones."""
    model = shop.model(name)
    score = shop.score(model, "test_sentences", shop.setting.scored_utterances)
    if name.startswith("alone-"):
        subnets = {name.removeprefix("alone-"): model.search_space.largest()}
        drawn = []
    else:
        subnets = shop.architecture.named_subnets()
        drawn = shop.random_subnets(shop.setting.scored_subnets, "scored subnets")
    return {
        "losses": {key: score(subnet) for key, subnet in subnets.items()},
        "parameters": {key: count_parameters(model.config, subnet) for key, subnet in subnets.items()},
        "random": [[count_parameters(model.config, subnet), score(subnet)] for subnet in drawn],
        "predicting_the_mean": score.predicting_the_mean,
    }

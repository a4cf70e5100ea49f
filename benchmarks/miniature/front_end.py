"""What an elastic front end is worth: subnets with narrow front ends, the first stage, and the Pareto fronts.

    python benchmarks/miniature/front_end.py                 all of it, or what is left of it; then the report
    python benchmarks/miniature/front_end.py --seed 0 --part elastic
    python benchmarks/miniature/front_end.py --setting tiny --output runs/tiny-front-end

All runs start as the teacher, with a prediction head fitted to it and whole groups of its positional convolution, and
get the same counted work: that of the two stages of `elastic`. A part that is finished is not done again, so a run may
be stopped and called again.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for what all benchmarks share

import distilling
from distilling import Workshop
from front_end_setting import FRONT_END_SETTINGS, FULL, with_front_end
from parts import Part
from probing import probe
from studies import Run, Study, drawn_subnets, model_of, sizes_of, steps_for, study_main, train

from lighthubert_hf import SearchSpace, Subnet
from lighthubert_hf.search.pareto import pareto_front
from lighthubert_hf.training.distillation.scoring import DistillationScore

WHOLE_GROUPS = {"whole_position_groups": True}
OWN_NORMS = {"config": WHOLE_GROUPS | {"conv_norm_per_width": True}}
SPLIT_GROUPS = {"config": {}}
# How the elastic supernet's runs differ from `elastic`: shares of the steps of the first stage, and sections.
VARIANTS: dict[str, dict[str, Any]] = {
    "elastic": {},
    "no first stage": {"first": 0.0},
    "no order": {"student": {"order_channels_on": None}},
    # Tried, in the seeds of `screened_seeds`:
    "own norms": {"student": OWN_NORMS},
    "long first stage": {"first": 2.5},
    "split groups": {"student": SPLIT_GROUPS},
    "split groups and random head": {"student": SPLIT_GROUPS, "joint_student": {"fit_head_on": None}},
    "frozen after it": {"first": 2.5, "joint_student": {"freeze_front_end": True}},
}
CONFIRMED = ("elastic", "no first stage", "no order")


def elastic(shop: Workshop, name: str) -> dict[str, Any]:
    """A supernet with an elastic front end: the first stage, if the variant has one, then all together."""
    setting, variant = shop.setting, VARIANTS[name]
    student = _student(shop) | variant.get("student", {})
    first, budget = _first(shop, name, student), work_of_elastic(shop)
    head = {"fit_head_on": setting.order_seconds} | variant.get("joint_student", {})
    stages = []
    steps = round(setting.first_steps * variant.get("first", 1.0))
    if steps:
        first = Run(first.name, steps, first.sections)
        stages.append(train(shop, first))
        budget -= stages[0]["flop"]
        student = {"init": str(shop.folder(first.name) / "model")}
    joint = _joint(shop, name, student | head, setting.joint_steps)
    if name != "elastic":
        joint = steps_for(shop, joint, budget)
    stages.append(train(shop, joint))
    return {"stages": stages, "flop": sum(stage["flop"] for stage in stages), **_judged(shop, joint.name)}


def fixed(shop: Workshop, name: str = "fixed", config: dict[str, Any] = WHOLE_GROUPS) -> dict[str, Any]:
    """A supernet with the teacher's front end, frozen: its features cost nothing besides the teacher."""
    student = {"init": "teacher", "search_space": shop.setting.architecture.space, "freeze_front_end": True}
    student |= {"fit_head_on": shop.setting.order_seconds, "config": config}
    run = steps_for(shop, Run(name, shop.setting.joint_steps, {"student": student}), work_of_elastic(shop))
    stage = train(shop, run)
    return {"stages": [stage], "flop": stage["flop"], **_judged(shop, run.name)}


def work_of_elastic(shop: Workshop) -> float:
    """Counted FLOP of the two stages of `elastic`, which every run gets."""
    from studies import step_flop

    student = _student(shop)
    runs = _first(shop, "elastic", student), _joint(shop, "elastic", student, shop.setting.joint_steps)
    return sum(run.steps * step_flop(shop, run.recipe(shop)) for run in runs)


def _student(shop: Workshop) -> dict[str, Any]:
    space = {name: list(choices) for name, choices in shop.setting.elastic_space.items()}
    order = {"order_channels_on": shop.setting.order_seconds}
    return {"init": "teacher", "search_space": space, "config": WHOLE_GROUPS} | order


def _first(shop: Workshop, name: str, student: dict[str, Any]) -> Run:
    """The front end's own stage: sandwiches of widths learn the teacher's projected features."""
    sections = {
        "student": student,
        "objective": {"name": "front_end"},
        "masking": None,
        "sampler": {"kind": "sandwich"},
        "optimizer": {"lr": shop.setting.first_learning_rate},
        "schedule": {"kind": "linear", "warmup": 0.05, "final_scale": 0.0},
    }
    return Run(f"{_folder(name)}-first", shop.setting.first_steps, sections)


def _joint(shop: Workshop, name: str, student: dict[str, Any], steps: int) -> Run:
    return Run(_folder(name), steps, {"student": student})


def _folder(name: str) -> str:
    return name.replace(" ", "-")


def _judged(shop: Workshop, run: str) -> dict[str, Any]:
    """Losses of the named encoders with each front end, and the losses of the Pareto front's subnets.

    The front is chosen on validation speech and its losses are of new sentences.
    """
    model, setting = model_of(shop, run), shop.setting
    has_choice = model.config.has_elastic_front_end
    front_ends = setting.front_ends if has_choice else {FULL: None}
    score = shop.score(model, "test_sentences", setting.scored_utterances)
    named = {
        f"{encoder}, {front_end}": with_front_end(subnet, channels)
        for encoder, subnet in shop.architecture.named_subnets().items()
        for front_end, channels in front_ends.items()
    }
    candidates = [
        with_front_end(encoder, channels) for encoder in setting.uniform_encoders() for channels in front_ends.values()
    ]
    space = SearchSpace.from_dict(model.config.search_space)
    candidates += drawn_subnets(space, setting.front_candidates, f"candidates of seed {shop.seed}")
    chosen = _front(model, shop.score(model, "validation", setting.search_utterances), candidates)
    return {
        "losses": {name: score(subnet) for name, subnet in named.items()},
        "sizes": {name: sizes_of(model.config, subnet) for name, subnet in named.items()},
        "front": [
            {"loss": score(subnet), **sizes_of(model.config, subnet), "subnet": str(subnet)} for subnet in chosen
        ],
        "predicting_the_mean": score.predicting_the_mean,
    }


def _front(model, score: DistillationScore, candidates: list[Subnet]) -> list[Subnet]:
    """Of loss on validation speech against multiply-accumulates."""
    candidates = list(dict.fromkeys(candidates))
    points = [(sizes_of(model.config, subnet)["macs"], score(subnet)) for subnet in candidates]
    return [candidates[index] for index in pareto_front(points)]


def probes(shop: Workshop) -> dict[str, Any]:
    """Probes of the 71 % encoder with each front end, and of the fixed supernet's."""
    elastic, fixed = model_of(shop, "elastic"), model_of(shop, "fixed")
    subnet = shop.architecture.named_subnets()["71"]
    models = {"teacher": str(shop.teacher), "fixed": fixed.lighthubert.extract_subnet(subnet)}
    for name in ("whole", "half", "third"):
        cut = with_front_end(subnet, shop.setting.front_ends[name])
        models[f"elastic, {name}"] = elastic.lighthubert.extract_subnet(cut)
    return {name: probe(shop, name, model) for name, model in models.items()}


def study(setting_name: str) -> Study:
    setting = FRONT_END_SETTINGS[setting_name]
    corpus = Part("corpus", None)
    teacher = Part("teacher", None, (corpus,))
    parts, does = [corpus, teacher], {"corpus": distilling.corpus, "teacher": distilling.teacher, "fixed": fixed}
    for name in VARIANTS:
        does[_folder(name)] = lambda shop, name=name: elastic(shop, name)
    does["probes"] = probes
    split = "fixed-with-split-groups"
    does[split] = lambda shop: fixed(shop, split, {})
    for seed in setting.seeds:
        whole = [Part("fixed", seed, (teacher,)), *(Part(_folder(name), seed, (teacher,)) for name in CONFIRMED)]
        parts += [*whole, Part("probes", seed, (whole[0], whole[1]))]
    tried = [name for name in VARIANTS if name not in CONFIRMED]
    for seed in setting.screened_seeds:
        parts += [Part(name, seed, (teacher,)) for name in (*map(_folder, tried), split)]
    from front_end_report import plot, report

    return Study(setting, parts, does, report, plot)


if __name__ == "__main__":
    sys.exit(study_main("front_end", study, list(FRONT_END_SETTINGS), __doc__))

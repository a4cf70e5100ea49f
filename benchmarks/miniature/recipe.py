"""A recipe that pays: which start, sampler, schedule and norms make cut subnets as good as students trained alone.

    python benchmarks/miniature/recipe.py                    all of it, or what is left of it; then the report
    python benchmarks/miniature/recipe.py --seed 0 --part screen-plain
    python benchmarks/miniature/recipe.py --setting tiny --output runs/tiny-recipe

Everything starts as the teacher, students trained alone as the subnet cut from it. Ideas are screened in one seed at
half the length; the winner is run in all seeds beside the plain recipe. A part that is finished is not done again.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for what all benchmarks share

import distilling
import probing
from distilling import Workshop
from label_free import SCORES, embed
from parts import Part
from recipe_setting import ALONE, HEAD, IDEAS, RECIPE_SETTINGS, WINNER
from studies import Run, Study, model_of, sizes_of, study_main, train

from lighthubert_hf.conversion.layout.importance import rearrangements
from lighthubert_hf.files import replacing_folder
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.distillation.recipe import StudentSection, TeacherSection
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import load_teacher

SIZES = ("71", "29")
_NOT_OF_SUBNETS = ("schedule", "optimizer", "averaging", "deep_targets")  # what a student trained alone can take over


def supernet(shop: Workshop, idea: str, steps: int, folder: str, like: str | None = None) -> dict[str, Any]:
    """A supernet trained as `idea` says.

    Args:
        like: a finished supernet to begin from, instead of the teacher.
    """
    sections = _sections(shop, idea)
    if like is not None:
        sections["student"] = {"init": str(shop.folder(like) / "model"), "freeze_front_end": True}
    return train(shop, Run(folder, steps, sections)) | _judged(shop, folder)


def two_stages(shop: Workshop) -> dict[str, Any]:
    """The winner after a stage 1 of the largest subnet alone, half of the steps each."""
    first, half = "two-stages-first", shop.setting.steps // 2
    sections = _sections(shop, WINNER) | {"sampler": {"kind": "largest"}}
    before = train(shop, Run(first, half, sections)) | _judged(shop, first)
    after = supernet(shop, WINNER, half, "two-stages", like=first)
    cut = model_of(shop, "two-stages").lighthubert.extract_subnet(shop.architecture.named_subnets()["71"])
    probed = probing.probe(shop, "two stages, 71", cut)
    return {"first": before, "second": after, "flop": before["flop"] + after["flop"], "probes": probed}


def alone(shop: Workshop, size: str, idea: str, steps: int, folder: str) -> dict[str, Any]:
    """A student cut from the start of `idea`'s supernet, trained with what it can use of the idea."""
    sections = _sections(shop, idea)
    kept = {name: section for name, section in sections.items() if name in _NOT_OF_SUBNETS}
    run = Run(folder, steps, kept | {"student": sections["student"] | {"subnet": _named(shop, size)}})
    return train(shop, run) | _judged(shop, folder, size)


def retrained(shop: Workshop, size: str, folder: str) -> dict[str, Any]:
    """A subnet cut from the winner after a few more steps of its own, at a rate that falls to nothing."""
    student = {"init": str(shop.folder("winner") / "model"), "subnet": _named(shop, size), "freeze_front_end": True}
    student |= HEAD  # its own now
    sections = {"student": student, "schedule": {"kind": "linear", "warmup": 0.1, "final_scale": 0.0}}
    run = Run(folder, shop.setting.retraining_steps, sections)
    return train(shop, run) | _judged(shop, folder, size)


def probes(shop: Workshop) -> dict[str, Any]:
    """The teacher, subnets of the winner, and the students trained alone."""
    named = shop.architecture.named_subnets()
    models: dict[str, Any] = {"teacher": str(shop.teacher)}
    for name in ("largest", *SIZES):
        models[f"winner, {name}"] = model_of(shop, "winner").lighthubert.extract_subnet(named[name])
    models |= {f"alone, {size}": model_of(shop, f"alone-{size}").lighthubert for size in SIZES}
    return {name: probing.probe(shop, name, model) for name, model in models.items()}


def ranking(shop: Workshop) -> list[dict[str, Any]]:
    """Loss, label-free scores and probes of random and of named subnets of the winner."""
    model = model_of(shop, "winner")
    source = AudioSource(str(shop.corpus), "validation")
    score = shop.score(model, "validation", shop.setting.search_utterances)
    count = shop.setting.embedded_utterances
    teacher = embed(load_teacher(TeacherSection(path=str(shop.teacher))).eval(), source, count)
    subnets = {subnet: f"winner, {name}" for name, subnet in shop.architecture.named_subnets().items()}
    for subnet in shop.random_subnets(shop.setting.ranked_subnets, "ranked subnets"):
        subnets.setdefault(subnet, f"subnet {subnet.key}")
    rows = []
    for subnet, name in subnets.items():
        cut = model.lighthubert.extract_subnet(subnet).eval()
        probed = probing.probe(shop, name, cut)
        own = embed(cut, source, count)
        found = {title: function(own, teacher) for title, function in SCORES.items()}
        rows.append(
            {"subnet": subnet.to_dict(), "loss": score(subnet), "scores": probed["scores"], "label_free": found}
        )
    return rows


def _sections(shop: Workshop, idea: str) -> dict[str, Any]:
    """Of a supernet's recipe."""
    sections = dict(IDEAS[idea])
    order, widths = sections.pop("start", None), sections.pop("widths", None)
    space = shop.architecture.space | ({"hidden_size": widths} if widths else {})
    init = "teacher" if order is None else str(_ordered_by_weights(shop))
    student = {"init": init, "search_space": space, "freeze_front_end": True}
    return sections | {"student": student | sections.get("student", {})}


def _ordered_by_weights(shop: Workshop) -> Path:
    """A folder with the teacher's weights, heads and FFN units ordered by the size of their weights."""
    folder = shop.folder("ordered-by-weights")
    if not folder.exists():
        settings = StudentSection(init="teacher", search_space=shop.architecture.space)
        model = build_student(settings, load_teacher(TeacherSection(path=str(shop.teacher))), shop.seed)
        state = model.lighthubert.state_dict()
        moved = rearrangements(model.config, state.__getitem__)
        model.lighthubert.load_state_dict(state | {name: move(state[name]) for name, move in moved.items()})
        with replacing_folder(folder) as new:
            model.save_pretrained(new)
    return folder


def _named(shop: Workshop, size: str) -> dict[str, Any]:
    return shop.architecture.named_subnets()[size].to_dict()


def _judged(shop: Workshop, folder: str, size: str | None = None) -> dict[str, Any]:
    """Losses on new sentences: of the named subnets and of random ones, or of a student of one size."""
    model = model_of(shop, folder)
    score = shop.score(model, "test_sentences", shop.setting.scored_utterances)
    if size is not None:
        return {"losses": {size: score(None)}, "predicting_the_mean": score.predicting_the_mean}
    named = shop.architecture.named_subnets().items()
    named = {name: subnet for name, subnet in named if subnet in model.search_space}
    drawn = shop.random_subnets(shop.setting.scored_subnets, "scored subnets")
    drawn = [subnet for subnet in drawn if subnet in model.search_space]
    return {
        "losses": {name: score(subnet) for name, subnet in named.items()},
        "sizes": {name: sizes_of(model.config, subnet) for name, subnet in named.items()},
        "random": [[sizes_of(model.config, subnet)["parameters"], score(subnet)] for subnet in drawn],
        "predicting_the_mean": score.predicting_the_mean,
    }


def _folder(idea: str) -> str:
    return idea.replace(",", "").replace(" ", "-")


def study(setting_name: str) -> Study:
    setting = RECIPE_SETTINGS[setting_name]
    corpus = Part("corpus", None)
    teacher = Part("teacher", None, (corpus,))
    parts, does = [corpus, teacher], {"corpus": distilling.corpus, "teacher": distilling.teacher}

    def add(name: str, seed: int, does_it, *needs: Part) -> Part:
        does[name] = does_it
        parts.append(Part(name, seed, (teacher, *needs)))
        return parts[-1]

    seed, steps = setting.screened_seed, setting.screened_steps
    for idea in IDEAS:
        name = f"screen-{_folder(idea)}"
        add(name, seed, lambda shop, a=(idea, steps, name): supernet(shop, *a))
    for idea in ALONE:
        for size in SIZES:
            name = f"screen-alone-{size}-{_folder(idea)}"
            add(name, seed, lambda shop, a=(size, idea, steps, name): alone(shop, *a))
    for seed in setting.seeds:
        winner = add("winner", seed, lambda shop: supernet(shop, WINNER, setting.steps, "winner"))
        students = []
        for size in SIZES:
            name = f"alone-{size}"
            students.append(add(name, seed, lambda shop, a=(size, WINNER, setting.steps, name): alone(shop, *a)))
        for size in SIZES:
            name = f"retrained-{size}"
            add(name, seed, lambda shop, a=(size, name): retrained(shop, *a), winner)
        add("plain", seed, lambda shop: supernet(shop, "plain", setting.steps, "plain"))
        probed = add("probes", seed, probes, winner, *students)
        add("ranking", seed, ranking, winner, probed)
        add("two-stages", seed, two_stages)
        add("evolution", seed, lambda shop: probing.evolution(shop, "winner"), winner)
    from recipe_report import plot, report

    return Study(setting, parts, does, report, plot)


if __name__ == "__main__":
    sys.exit(study_main("recipe", study, list(RECIPE_SETTINGS), __doc__))

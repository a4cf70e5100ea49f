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
from distilling import Workshop
from parts import Part
from recipe_setting import IDEAS, RECIPE_SETTINGS
from studies import Run, Study, model_of, sizes_of, study_main, train

from lighthubert_hf.conversion.layout.importance import rearrangements
from lighthubert_hf.files import replacing_folder
from lighthubert_hf.training.distillation.recipe import StudentSection, TeacherSection
from lighthubert_hf.training.distillation.student import build_student
from lighthubert_hf.training.distillation.teacher import load_teacher

SIZES = ("71", "29")
_ALONE = ("schedule", "optimizer", "averaging", "training")  # sections that say nothing of subnets


def supernet(shop: Workshop, idea: str, steps: int, folder: str) -> dict[str, Any]:
    """A supernet trained as `idea` says."""
    run = Run(folder, steps, _sections(shop, idea))
    return train(shop, run) | _judged(shop, folder)


def alone(shop: Workshop, size: str, idea: str, steps: int, folder: str) -> dict[str, Any]:
    """A student cut from the start of `idea`'s supernet, trained with what it can use of the idea."""
    sections = _sections(shop, idea)
    kept = {name: section for name, section in sections.items() if name in _ALONE}
    student = {"init": str(start(shop, idea)), "subnet": _named(shop, size), "freeze_front_end": True}
    run = Run(folder, steps, kept | {"student": student})
    return train(shop, run) | _judged(shop, folder, size)


def retrained(shop: Workshop, size: str, supernet_folder: str, idea: str, folder: str) -> dict[str, Any]:
    """A cut subnet after a few more steps of its own, at a rate that falls from a tenth part's to nothing."""
    student = {
        "init": str(shop.folder(supernet_folder) / "model"),
        "subnet": _named(shop, size),
        "freeze_front_end": True,
    }
    sections = {"student": student, "schedule": {"kind": "linear", "warmup": 0.1, "final_scale": 0.0}}
    run = Run(folder, shop.setting.retraining_steps, sections)
    return train(shop, run) | _judged(shop, folder, size)


def start(shop: Workshop, idea: str) -> Path:
    """A folder with the supernet that `idea` starts from: the teacher's weights, ordered or not."""
    order = IDEAS[idea].get("start", "none")
    folder = shop.folder(f"start-{order}")
    if not folder.exists():
        settings = StudentSection(init="teacher", search_space=shop.architecture.space)
        model = build_student(settings, load_teacher(TeacherSection(path=str(shop.teacher))), shop.seed)
        if order == "weights":
            state = model.lighthubert.state_dict()
            moved = rearrangements(model.config, state.__getitem__)
            model.lighthubert.load_state_dict(state | {name: move(state[name]) for name, move in moved.items()})
        with replacing_folder(folder) as new:
            model.save_pretrained(new)
    return folder


def _sections(shop: Workshop, idea: str) -> dict[str, Any]:
    sections = dict(IDEAS[idea])
    sections.pop("start", None)
    space = shop.architecture.space
    if widths := sections.pop("widths", None):
        space = space | {"hidden_size": widths}
    student = {"init": str(start(shop, idea)), "search_space": space, "freeze_front_end": True}
    return sections | {"student": student | sections.get("student", {})}


def _named(shop: Workshop, size: str) -> dict[str, Any]:
    return shop.architecture.named_subnets()[size].to_dict()


def _judged(shop: Workshop, folder: str, size: str | None = None) -> dict[str, Any]:
    """Losses on new sentences: of the named subnets and of random ones, or of a student of one size."""
    model = model_of(shop, folder)
    score = shop.score(model, "test_sentences", shop.setting.scored_utterances)
    if size is not None:
        return {"losses": {size: score(model.config.architecture)}, "predicting_the_mean": score.predicting_the_mean}
    named = {
        name: subnet for name, subnet in shop.architecture.named_subnets().items() if subnet in model.search_space
    }
    drawn = shop.random_subnets(shop.setting.scored_subnets, "scored subnets")
    drawn = [subnet for subnet in drawn if subnet in model.search_space]
    return {
        "losses": {name: score(subnet) for name, subnet in named.items()},
        "sizes": {name: sizes_of(model.config, subnet) for name, subnet in named.items()},
        "random": [[sizes_of(model.config, subnet)["parameters"], score(subnet)] for subnet in drawn],
        "predicting_the_mean": score.predicting_the_mean,
    }


def _folder(idea: str) -> str:
    return idea.replace(" ", "-")


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
        add(name, seed, lambda shop, idea=idea, name=name: supernet(shop, idea, steps, name))
    for idea in ("plain", "order by weights", "schedule that ends at zero"):
        for size in SIZES:
            name = f"screen-alone-{size}-{_folder(idea)}"
            add(name, seed, lambda shop, a=(size, idea, steps, name): alone(shop, *a))
    from recipe_report import plot, report

    return Study(setting, parts, does, report, plot)


if __name__ == "__main__":
    sys.exit(study_main("recipe", study, list(RECIPE_SETTINGS), __doc__))

"""Does evolution find better subnets than random search with the same number of them?

    lighthubert distill RECIPE output_dir=RUN
    python benchmarks/search_algorithms.py RUN [--trials 100] [--seeds 0 1 2] [--population-size 20]

RUN is a finished distillation of a supernet, such as demo/supernet; its own teacher and validation audio score the
subnets. For every seed both algorithms search for the trade-off of loss and parameters; what counts is the hypervolume
at the end, in one box.
"""

import argparse
import tempfile
from pathlib import Path

import yaml
from contenders import markdown

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.search.run import EVOLUTIONARY, RANDOM, search
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.distillation.scoring import DistillationScore, distillation_score
from lighthubert_hf.training.distillation.teacher import load_teacher
from lighthubert_hf.training.recipes.loading import parse_recipe


def score_of(run: Path, recipe: DistillationRecipe, max_examples: int) -> DistillationScore:
    """The distillation loss on the run's validation audio, by its own teacher."""
    model = LightHubertForPreTraining.from_pretrained(run / "model")
    teacher = load_teacher(recipe.teacher, recipe.seed)
    return distillation_score(
        model, teacher, _validation(run, recipe), max_examples=max_examples, objective=recipe.objective
    )


def _validation(run: Path, recipe: DistillationRecipe) -> list[AudioSource]:
    """What the run was validated on, else the validation split of what it was trained on."""
    if recipe.validation and recipe.validation.sources:
        return [AudioSource(**source.model_dump()) for source in recipe.validation.sources]
    trained = [source.path for source in recipe.data.sources] or [str(run / "corpus")]
    return [AudioSource(path, split="validation") for path in trained]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--population-size", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-examples", type=int, default=50)
    options = parser.parse_args()
    recipe = parse_recipe(
        DistillationRecipe, yaml.safe_load((options.run / "recipe.yaml").read_text(encoding="utf-8"))
    )
    score = score_of(options.run, recipe, options.max_examples)
    print(f"{score.fingerprint}; the largest subnet scores {score(score.model.search_space.largest()):.4g}")
    rows = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"trials": options.trials, "population_size": options.population_size, "seed": seed}
            found = search(score.model, score.as_score(), folder, **settings).hypervolume
        evolved, drawn = found[EVOLUTIONARY], found[RANDOM]
        sooner = next((index + 1 for index, volume in enumerate(evolved) if volume >= drawn[-1]), None)
        rows.append([str(seed), f"{evolved[-1]:.4f}", f"{drawn[-1]:.4f}", str(sooner or "not reached")])
    print(markdown(["seed", EVOLUTIONARY, RANDOM, "subnets until evolution had random's final value"], rows))


if __name__ == "__main__":
    main()

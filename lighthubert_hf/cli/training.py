"""Commands that train and judge models."""

import math
from pathlib import Path
from typing import Annotated

import typer

from lighthubert_hf.extras import require

from .app import Json, Overwrite, answer, app
from .audio import AllowPath, AudioColumn, Channel, ConfigName, reading


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of a teacher instead of training one.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id or folder of speech instead of synthesising it.")] = None,
    text_column: Annotated[str, typer.Option(help="Transcripts of --dataset; empty if it has none.")] = "text",
    tiny: Annotated[bool, typer.Option(help="A few steps of everything: shows that the parts meet, no more.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole job, small and offline: speech, teacher, supernet, search, models, table. Continues if interrupted."""
    require("train", "search", "demo", what="the demo")
    from lighthubert_hf.locks import locked
    from lighthubert_hf.training.demo.run import run_demo
    from lighthubert_hf.training.demo.settings import DemoSettings

    make = DemoSettings.tiny if tiny else DemoSettings
    settings = make(teacher=teacher, dataset=dataset, text_column=text_column or None)
    with locked(output):
        results = run_demo(output, settings, overwrite=overwrite, say=typer.echo)
    if as_json:
        answer(results, as_json, "")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to copy and change it.")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with the package, or print one: `lighthubert recipes NAME > my.yaml`."""
    from lighthubert_hf.training.recipes.listing import describe_recipes, list_recipes
    from lighthubert_hf.training.recipes.loading import recipe_text

    if name is not None:
        text = recipe_text(name)
        answer({"name": name, "recipe": text}, as_json, text.removesuffix("\n"))
    else:
        listed = list_recipes()
        answer(listed, as_json, describe_recipes(listed))


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example optimizer.lr=1e-4")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """One stage of distillation, or several in a row. Again, it goes on from its latest checkpoint. Use `accelerate
    launch -m lighthubert_hf distill …` for several processes or nodes."""
    from lighthubert_hf.training.distillation.stages import distill_stages, load_stages
    from lighthubert_hf.training.runs.start import leave_processes

    final = distill_stages(load_stages(recipe, overrides or []), overwrite=overwrite)
    leave_processes()
    answer({"model": str(final)}, as_json, str(final))


@app.command()
def retrain(
    source: Annotated[Path, typer.Argument(help="Folder of a finished distillation, or of a search.")],
    output: Annotated[Path, typer.Argument(help="Folder for the retrained subnet's run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example optimizer.lr=1e-4")] = None,
    subnet: Annotated[
        str | None,
        typer.Option(help="default, smallest, largest or a JSON file; of a search the subnet's name in pareto.json."),
    ] = None,
    share: Annotated[float, typer.Option(help="Of the supernet's steps.")] = 0.1,
    recipe: Annotated[str | None, typer.Option(help="The supernet's, if none lies beside it.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train one subnet of a supernet further, alone, as its supernet was trained. Again, it goes on from its latest
    checkpoint."""
    from lighthubert_hf.training.distillation.retraining import retraining_recipe
    from lighthubert_hf.training.distillation.stages import distill_stages
    from lighthubert_hf.training.runs.start import leave_processes

    options = {"subnet": subnet, "recipe": recipe, "share": share, "overrides": overrides or []}
    final = distill_stages([retraining_recipe(source, output, **options)], overwrite=overwrite)
    leave_processes()
    answer({"model": str(final)}, as_json, str(final))


@app.command()
def finetune(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example training.steps=500")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a recogniser, classifier, speaker verifier or diariser (the recipe's `task`) on a subnet, a supernet's
    subnet or a plain HuBERT. Again, it goes on from its latest checkpoint."""
    from lighthubert_hf.training.finetuning.recipe import FineTuningRecipe
    from lighthubert_hf.training.finetuning.results import describe_finetuning
    from lighthubert_hf.training.finetuning.run import finetune
    from lighthubert_hf.training.recipes.loading import load_recipe
    from lighthubert_hf.training.runs.start import leave_processes

    result = finetune(load_recipe(FineTuningRecipe, recipe, overrides or []), overwrite=overwrite)
    leave_processes()
    answer(result, as_json, describe_finetuning(result))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a LightHuBERT, HuBERT, wav2vec 2.0 or WavLM.")],
    tasks: Annotated[str, typer.Option(help="pr, asr, ks, ic, er, sid, asv, sd, sf, qbe, or all.")] = "all",
    data: Annotated[list[str] | None, typer.Option(help="ks=FOLDER_OR_HUB_ID, or ks.KEY=VALUE; repeatable.")] = None,
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
    output: Annotated[Path, typer.Option(help="Folder for results; finished tasks are kept.")] = Path("evaluation"),
    subnet: Annotated[str | None, typer.Option(help="Of a supernet: default, smallest, largest, a JSON file.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of MODEL on the Hub.")] = None,
    preset: Annotated[
        str, typer.Option(help="superb, lighthubert-small, lighthubert-base, lighthubert-stage1, tiny.")
    ] = "superb",
    synthetic: Annotated[
        bool, typer.Option("--tiny", help="Small heads, few steps, on synthetic speech: shows that it works.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Training steps of every head.")] = None,
    scale: Annotated[float, typer.Option(help="Share of the steps to train.")] = 1.0,
    learning_rate: Annotated[float | None, typer.Option(help="Of every head.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Utterances in a step.")] = None,
    max_train_examples: Annotated[int | None, typer.Option(help="Utterances to train on.")] = None,
    max_eval_examples: Annotated[int | None, typer.Option(help="Utterances of other splits.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Leave longer utterances out.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for features, to share between evaluations.")] = None,
    cache_gigabytes: Annotated[float, typer.Option(help="Features to keep at most; 0 keeps none.")] = 20.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; by default a GPU if there is one.")] = None,
    seed: int = 0,
    overwrite: Overwrite = False,
    update_card: Annotated[bool, typer.Option(help="Put the scores on the card of the folder MODEL.")] = False,
    as_json: Json = False,
) -> None:
    """Judge a frozen model on the tasks of SUPERB, by a small head each. Again, it goes on where it was."""
    from lighthubert_hf.devices import choose_device
    from lighthubert_hf.locks import locked
    from lighthubert_hf.training.recipes.loading import parse_recipe
    from lighthubert_hf.training.superb import report, tiny
    from lighthubert_hf.training.superb.harness import evaluate_model
    from lighthubert_hf.training.superb.registry import parse_tasks
    from lighthubert_hf.training.superb.settings import EvaluationSettings, load_data
    from lighthubert_hf.training.superb.upstream import load_upstream

    if synthetic:
        require("demo", what="synthetic speech")
    if synthetic and data:
        raise ValueError("--tiny brings its own data; leave out --data, or use --preset tiny")
    settings = {
        "preset": "tiny" if synthetic else preset,
        "steps": steps,
        "scale": scale,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_train_examples": max_train_examples,
        "max_eval_examples": max_eval_examples,
        "max_seconds": max_seconds,
        "cache_gigabytes": cache_gigabytes,
        "seed": seed,
    }
    settings, chosen = parse_recipe(EvaluationSettings, settings), parse_tasks(tasks)
    device = str(choose_device(device))
    options = reading(None, config_name, audio_column, None, channel, allow_path)
    table = None if synthetic else load_data(data or [], options)
    upstream = load_upstream(model, revision=revision, subnet=subnet)
    if update_card:
        report.check_card(model, upstream.subnet is not None)
    with locked(output):
        table = table or tiny.synthetic_data(output / "data", chosen)
        results = evaluate_model(
            upstream, chosen, table, output, settings, cache=cache, device=device, overwrite=overwrite
        )
    if update_card:
        report.update_card(model, results)
    answer(results, as_json, f"{report.describe_evaluation(results)}\n{output / 'results.md'}")


@app.command()
def cost(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe, of a distillation.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example student.init=random")] = None,
    processes: Annotated[int, typer.Option(help="Processes that take part.")] = 8,
    tflops: Annotated[float | None, typer.Option(help="Sustained TFLOP/s per process, to estimate its hours.")] = None,
    as_json: Json = False,
) -> None:
    """What a distillation costs, before it is run: hours of audio, and floating-point operations, counted."""
    from lighthubert_hf.training.distillation.cost import plan
    from lighthubert_hf.training.distillation.recipe import DistillationRecipe
    from lighthubert_hf.training.recipes.loading import load_recipe

    if tflops is not None and not 0 < tflops < math.inf:
        raise ValueError(f"--tflops must be above 0 and finite, got {tflops}")
    planned = plan(load_recipe(DistillationRecipe, recipe, overrides or []), processes)
    answer(planned.to_dict(), as_json, planned.describe(tflops))

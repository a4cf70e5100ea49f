"""`lighthubert …`: parses, then calls. Each command's code is imported when it runs, so `--help` needs no torch."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="lighthubert",
    help="Compress, choose and publish HuBERT-style speech models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where a run of this command is.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def main() -> None:
    """Run the command line.

    What a user can mend is one line on standard error and exit status 2; `LIGHTHUBERT_TRACEBACK=1` shows where it
    came from.
    """
    try:
        app()
    except KeyboardInterrupt as interrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            where = str(interrupt) or "interrupted; the same command goes on where it can"
            typer.echo(f"lighthubert: {where}", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("LIGHTHUBERT_TRACEBACK") or not isinstance(error, _user_errors()):
            raise
        typer.echo(f"lighthubert: {_one_line(error)}", err=True)
        sys.exit(2)


def _user_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

    return ValueError, OSError, ImportError, StrictDataclassError, HfHubHTTPError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _answer(result: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(result, indent=2) if as_json else text)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of a teacher instead of training one.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id or folder of speech instead of synthesising it.")] = None,
    text_column: Annotated[str, typer.Option(help="Transcripts of --dataset; empty if it has none.")] = "text",
    tiny: Annotated[bool, typer.Option(help="A few steps of everything: shows that the parts meet, no more.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """The whole job, small and offline: speech, teacher, supernet, search, models, table. Continues if interrupted."""
    from .training.demo.run import run_demo
    from .training.demo.settings import DemoSettings

    make = DemoSettings.tiny if tiny else DemoSettings
    settings = make(teacher=teacher, dataset=dataset, text_column=text_column or None)
    run_demo(output, settings, overwrite=overwrite, say=typer.echo)


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example optimizer.lr=1e-4")] = None,
    overwrite: Overwrite = False,
) -> None:
    """One stage of distillation. Again, it goes on from its latest checkpoint. Use `accelerate launch -m
    lighthubert_hf.cli distill …` for several processes or nodes."""
    from .training.distillation.recipe import DistillationRecipe
    from .training.distillation.run import distill
    from .training.recipes.loading import load_recipe

    final = distill(load_recipe(DistillationRecipe, recipe, overrides or []), overwrite=overwrite)
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(str(final))


@app.command()
def finetune(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example training.steps=500")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a recogniser, classifier, speaker verifier or diariser (the recipe's `task`) on a subnet, a supernet's
    subnet or a plain HuBERT. Again, it goes on from its latest checkpoint."""
    from .training.finetuning.recipe import FineTuningRecipe
    from .training.finetuning.results import describe_finetuning
    from .training.finetuning.run import finetune
    from .training.recipes.loading import load_recipe

    result = finetune(load_recipe(FineTuningRecipe, recipe, overrides or []), overwrite=overwrite)
    _answer(result, as_json, describe_finetuning(result))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a LightHuBERT, HuBERT, wav2vec 2.0 or WavLM.")],
    tasks: Annotated[str, typer.Option(help="pr, asr, ks, ic, er, sid, asv, sd, sf, qbe, or all.")] = "all",
    data: Annotated[list[str] | None, typer.Option(help="ks=FOLDER_OR_HUB_ID, or ks.KEY=VALUE; repeatable.")] = None,
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
    update_card: Annotated[bool, typer.Option(help="Put the scores on the card of the folder MODEL.")] = False,
    as_json: Json = False,
) -> None:
    """Judge a frozen model on the tasks of SUPERB, by a small head each. Interrupted, it goes on where it was."""
    from .training.recipes.loading import parse_recipe
    from .training.superb import report, tiny
    from .training.superb.harness import evaluate_model
    from .training.superb.registry import parse_tasks
    from .training.superb.settings import EvaluationSettings, load_data
    from .training.superb.upstream import load_upstream

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
    table = None if synthetic else load_data(data or [])
    upstream = load_upstream(model, revision=revision, subnet=subnet)
    if update_card:
        report.check_card(model, upstream.subnet is not None)
    table = table or tiny.synthetic_data(output / "data", chosen)
    results = evaluate_model(upstream, chosen, table, output, settings, cache=cache, device=device)
    if update_card:
        report.update_card(model, results)
    _answer(results, as_json, f"{report.describe_evaluation(results)}\n{output / 'results.md'}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A .pt file, a model folder, or OWNER/NAME[:FILE] on the Hub.")],
    output: Annotated[Path, typer.Argument(help="Supernet folder to write; with --to-original a .pt file.")],
    search_space: Annotated[Path | None, typer.Option(help="JSON file of a SearchSpace.")] = None,
    to_original: Annotated[bool, typer.Option(help="From a supernet to the original's checkpoint.")] = False,
    importance_sorting: Annotated[bool, typer.Option(help="Most important heads and FFN units first.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare the outputs of both sides on audio.")] = True,
    revision: Annotated[str | None, typer.Option(help="Revision of SOURCE on the Hub.")] = None,
    as_json: Json = False,
) -> None:
    """An original LightHuBERT, HuBERT or wav2vec 2.0 checkpoint to a supernet folder, or back."""
    from .conversion import convert

    report = convert(
        source,
        output,
        search_space=search_space,
        to_original=to_original,
        importance_sorting=importance_sorting,
        verify=verify,
        revision=revision,
    )
    _answer(report.to_dict(), as_json, str(report))


@app.command()
def extract(
    supernet: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder for the static model.")],
    subnet: Annotated[str, typer.Option(help="default, smallest, largest, or a JSON file of a Subnet.")] = "default",
    plain_hubert: Annotated[bool, typer.Option(help="Save a transformers HubertModel.")] = False,
    revision: Annotated[str | None, typer.Option(help="Revision of SUPERNET on the Hub.")] = None,
) -> None:
    """Cut a subnet out of a supernet and save it as a model of its own."""
    from .hub.publishing import extract_to_folder

    typer.echo(str(extract_to_folder(supernet, output, subnet=subnet, plain_hubert=plain_hubert, revision=revision)))


@app.command("export-onnx")
def export_onnx(
    model: Annotated[Path, typer.Argument(help="Folder of a static model.")],
    output: Annotated[Path, typer.Argument(help="File to write.")],
    int8: Annotated[bool, typer.Option(help="8-bit weights; prints what that costs and gains here.")] = False,
    as_json: Json = False,
) -> None:
    """A static model as an ONNX file for any batch size and length, compared with PyTorch."""
    from .conversion import export_onnx

    report = export_onnx(model, output, int8=int8)
    _answer(report.to_dict(), as_json, str(report))


@app.command()
def search(
    supernet: Annotated[str, typer.Argument(help="Folder or Hub id, with its distillation head.")],
    output: Annotated[Path, typer.Argument(help="Folder for the study and its reports; continued if it holds one.")],
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the teacher to compare with.")] = None,
    data: Annotated[str | None, typer.Option(help="Validation audio: Hub id, folder, glob or URL.")] = None,
    split: Annotated[str, typer.Option(help="Split of --data.")] = "validation",
    max_examples: Annotated[int, typer.Option(help="Clips of --data to score on.")] = 200,
    score: Annotated[
        str | None, typer.Option(help="module:function or file.py:function, instead of a teacher.")
    ] = None,
    maximize: Annotated[bool, typer.Option(help="More of --score is better.")] = False,
    objective: Annotated[list[str] | None, typer.Option(help="parameters, macs, latency@10s, memory@10s.")] = None,
    max_params: Annotated[str | None, typer.Option(help="For example 30M.")] = None,
    max_macs: Annotated[str | None, typer.Option(help="Per second of audio, for example 2.5G.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="On this machine, for example 60ms@10s.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="For example 400MB@10s.")] = None,
    trials: Annotated[int, typer.Option(help="Subnets per algorithm.")] = 200,
    population_size: Annotated[int, typer.Option(help="Subnets per generation.")] = 20,
    seed: int = 0,
    extract: Annotated[int, typer.Option(help="Save this many subnets of the front as model folders.")] = 0,
    push: Annotated[
        str | None,
        typer.Option(help="OWNER/NAME: publish these at the end, or the front; see `push --all`."),
    ] = None,
    private: Annotated[bool | None, typer.Option(help="Visibility of new repositories of --push.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of SUPERNET on the Hub.")] = None,
    as_json: Json = False,
) -> None:
    """Find the subnets that trade quality against cost best. Ctrl-C loses nothing."""
    from .hub.family import check_push, push_family
    from .loading import load_lighthubert
    from .search.costs import Cost, Limit
    from .search.run import search
    from .search.score import Score

    limits = {"parameters": max_params, "macs": max_macs, "latency": max_latency, "memory": max_memory}
    limits = [Limit.parse(name, text) for name, text in limits.items() if text is not None]
    objectives = [Cost.parse(text) for text in objective or ["parameters"]]
    if push:
        check_push(push)
    model = load_lighthubert(supernet, revision)
    result = search(
        model,
        Score.load(score, maximize) if score else _distillation_score(model, teacher, data, split, max_examples),
        output,
        objectives=objectives,
        limits=limits,
        trials=trials,
        population_size=population_size,
        seed=seed,
        supernet=supernet,
        revision=revision,
        extract=extract,
    )
    front = [{"name": found.name, "score": found.score, **found.costs} for found in result.front]
    lines = [f"{found.name}: {found.score:.4g}, {found.subnet}" for found in result.front]
    _answer(front, as_json, "\n".join([*lines, str(output / "pareto.json")]))
    if push:
        typer.echo(str(push_family(output / "pareto.json", push, private=private)), err=as_json)


def _distillation_score(model: Any, teacher: str | None, data: str | None, split: str, max_examples: int) -> Any:
    if teacher is None or data is None:
        raise ValueError("say what to score subnets by: --teacher and --data, or --score module:function")
    if not hasattr(model, "prediction_head"):
        raise ValueError(
            "the distillation score needs a supernet saved with its distillation head; use --score instead"
        )
    from .training.audio.sources import AudioSource
    from .training.distillation.scoring import distillation_score

    return distillation_score(model, teacher, [AudioSource(data, split=split)], max_examples=max_examples).as_score()


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a LightHuBERT, HuBERT or wav2vec 2.0.")],
    seconds: Annotated[list[float] | None, typer.Option(help="Audio length; repeat for several.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for several.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of which the median counts.")] = 7,
    update_card: Annotated[bool, typer.Option(help="Put the time of the longest audio on the card of MODEL.")] = False,
    as_json: Json = False,
) -> None:
    """Parameters, MACs, and time measured on this machine, part by part."""
    from .costs.profiling import profile
    from .hub.publishing import record_latency
    from .loading import load_encoder

    result = profile(load_encoder(model), seconds or (1.0, 10.0), batch or (1,), repeats=repeats, progress=not as_json)
    if update_card:
        record_latency(model, result)
    _answer(result.to_dict(), as_json, result.table())


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A model folder; with --all the pareto.json of a search.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME; with --all what the subnets' names begin with.")],
    family: Annotated[bool, typer.Option("--all", help="Publish every chosen subnet of a pareto.json.")] = False,
    private: Annotated[bool | None, typer.Option(help="Visibility of new repositories.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    collection: Annotated[str | None, typer.Option(help="Title of the collection, with --all.")] = None,
    dry_run: Annotated[Path | None, typer.Option(help="Write what would be uploaded to this folder instead.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead of committing.")] = False,
) -> None:
    """Publish a model, or the subnets of a search, on the Hub, with the token of `hf auth login`. One commit each."""
    if family:
        if revision or create_pr:
            raise ValueError(
                "--all pushes to the main branches of its repositories; leave out --revision and --create-pr"
            )
        from .hub.family import push_family

        options = {"private": private, "commit_message": message, "collection": collection, "dry_run": dry_run}
        typer.echo(str(push_family(folder, repo_id, **options)))
        return
    if collection:
        raise ValueError("--collection goes with --all")
    from .hub.publishing import push_folder

    options = {"private": private, "revision": revision, "commit_message": message, "create_pr": create_pr}
    typer.echo(str(push_folder(folder, repo_id, dry_run=dry_run, **options)))


if __name__ == "__main__":
    main()

"""The command that chooses subnets."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lighthubert_hf.extras import require

from .app import Json, Overwrite, answer, app
from .audio import AllowPath, AudioColumn, Channel, ConfigName, reading


@app.command()
def search(
    supernet: Annotated[str, typer.Argument(help="Folder or Hub id, with its distillation head.")],
    output: Annotated[Path, typer.Argument(help="Folder for the study and its reports; continued if it holds one.")],
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the teacher to compare with.")] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="Revision of the teacher on the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Validation audio: Hub id, folder, glob or URL.")] = None,
    split: Annotated[str, typer.Option(help="Split of --data.")] = "validation",
    config_name: ConfigName = None,
    audio_column: AudioColumn = None,
    channel: Channel = None,
    allow_path: AllowPath = None,
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
    plot: Annotated[str | None, typer.Option(help="Cost on the picture's axis; the first objective.")] = None,
    device: Annotated[str | None, typer.Option(help="To score and measure on: cpu (the default), cuda, …")] = None,
    push: Annotated[
        str | None,
        typer.Option(help="OWNER/NAME: publish these at the end, or the front; see `push-family`."),
    ] = None,
    private: Annotated[bool | None, typer.Option(help="Visibility of new repositories of --push.")] = None,
    overwrite: Overwrite = False,
    revision: Annotated[str | None, typer.Option(help="Revision of SUPERNET on the Hub.")] = None,
    as_json: Json = False,
) -> None:
    """Find the subnets that trade quality against cost best. Ctrl-C loses nothing."""
    require("search", *(() if score else ("train",)), what="the search")
    from lighthubert_hf.explore import write_page
    from lighthubert_hf.hub.family import check_push, push_family
    from lighthubert_hf.loading import load_lighthubert, on_device
    from lighthubert_hf.search.costs import Cost, Limit
    from lighthubert_hf.search.report import describe_search
    from lighthubert_hf.search.run import check_search_folder, check_settings, search
    from lighthubert_hf.search.score import Score

    limits = {"parameters": max_params, "macs": max_macs, "latency": max_latency, "memory": max_memory}
    limits = [Limit.parse(name, text) for name, text in limits.items() if text is not None]
    objectives = [Cost.parse(text) for text in objective or ["parameters"]]
    check_settings(trials, population_size, extract=extract, seed=seed)
    if max_examples < 1:
        raise ValueError(f"--max-examples must be at least 1, got {max_examples}")
    if push:
        check_push(push)
    axis = plot and Cost.parse(plot)
    options = reading(split, config_name, audio_column, None, channel, allow_path)
    model = on_device(load_lighthubert(supernet, revision), device)
    known = {"limits": limits, "population_size": population_size, "seed": seed}
    known |= {"supernet": supernet, "revision": revision}
    if not overwrite:
        check_search_folder(model, output, **known)
    own = Score.load(score, maximize) if score else None
    result = search(
        model,
        own or _distillation_score(model, teacher, teacher_revision, data, options, max_examples),
        output,
        objectives=objectives,
        trials=trials,
        **known,
        extract=extract,
        plot=axis,
        overwrite=overwrite,
    )
    shown = write_page(output)
    front = [{"name": found.name, "score": found.score, **found.costs} for found in result.front]
    answer(front, as_json, f"{describe_search(result)}\n{output / 'pareto.json'}\n{shown}")
    if push:
        typer.echo(str(push_family(output / "pareto.json", push, private=private)), err=as_json)


def _distillation_score(
    model: Any,
    teacher: str | None,
    revision: str | None,
    data: str | None,
    options: dict[str, Any],
    max_examples: int,
) -> Any:
    if teacher is None or data is None:
        raise ValueError("say what to score subnets by: --teacher and --data, or --score module:function")
    if not hasattr(model, "prediction_head"):
        raise ValueError(
            "the distillation score needs a supernet saved with its distillation head; use --score instead"
        )
    from lighthubert_hf.training.audio.sources import AudioSource
    from lighthubert_hf.training.distillation.scoring import distillation_score

    source = AudioSource(data, **options)
    return distillation_score(model, teacher, [source], max_examples=max_examples, revision=revision).as_score()

"""`lighthubert …`: parses, then calls. Each command's code is imported when it runs, so `--help` needs no torch."""

import json
import os
import sys
from enum import StrEnum
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

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


class Objective(StrEnum):
    parameters = "parameters"
    macs = "macs"
    latency = "latency"
    memory = "memory"


def main() -> None:
    """Run the command line.

    What a user can mend is one line on standard error and exit status 2; `LIGHTHUBERT_TRACEBACK=1` shows where it
    came from.
    """
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("lighthubert: interrupted; the same command continues where it can", err=True)
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
    fresh: Annotated[bool, typer.Option(help="Delete an earlier demo in OUTPUT and start over.")] = False,
) -> None:
    """The whole job, small and offline: speech, teacher, supernet, search, models, table. Continues if interrupted."""
    from .training.demo import DemoSettings, run_demo

    make = DemoSettings.tiny if tiny else DemoSettings
    settings = make(teacher=teacher, dataset=dataset, text_column=text_column or None)
    run_demo(output, settings, fresh=fresh, say=typer.echo)


@app.command()
def distill(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example optimizer.lr=1e-4")] = None,
) -> None:
    """One stage of distillation; goes on from its latest checkpoint. Use `accelerate launch -m lighthubert_hf.cli
    distill …` for several processes or nodes."""
    from .training.distill import distill
    from .training.recipe import load_recipe

    typer.echo(str(distill(load_recipe(recipe, overrides or []))))


@app.command()
def finetune(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example training.steps=500")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a speech recogniser (CTC) on a subnet, a supernet's subnet or a plain HuBERT."""
    from .training.ctc_recipe import load_ctc_recipe
    from .training.finetuning import finetune_ctc

    result = finetune_ctc(load_ctc_recipe(recipe, overrides or []), resume=resume)
    lines = [
        f"{name}: CER {scores['cer']:.1%}, WER {scores['wer']:.1%}" for name, scores in result["evaluation"].items()
    ]
    _answer(result, as_json, "\n".join([*lines, result["model"]]))


@app.command()
def extract(
    supernet: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder for the static model.")],
    subnet: Annotated[str, typer.Option(help="default, smallest, largest, or a JSON file of a Subnet.")] = "default",
    plain_hubert: Annotated[bool, typer.Option(help="Save a transformers HubertModel.")] = False,
    revision: Annotated[str | None, typer.Option(help="Revision of the supernet on the Hub.")] = None,
) -> None:
    """Cut a subnet out of a supernet and save it as a model of its own."""
    from .publishing import extract_to_folder

    typer.echo(str(extract_to_folder(supernet, output, subnet=subnet, plain_hubert=plain_hubert, revision=revision)))


if __name__ == "__main__":
    main()

"""The command's frame: its options, how it ends, how a result is printed."""

import json
import os
import sys
from typing import Annotated, Any

import typer

from lighthubert_hf import __version__
from lighthubert_hf.extras import missing_package

app = typer.Typer(
    name="lighthubert",
    help="Compress, choose and publish HuBERT-style speech models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Replace = Annotated[bool, typer.Option("--overwrite", help="Replace another model there; never the source.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over where a run of this command is.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lighthubert_hf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    What a user can mend is one line on standard error and exit status 2; `LIGHTHUBERT_TRACEBACK=1` shows where it
    came from.
    """
    try:
        app()
    except KeyboardInterrupt as interrupt:
        _end_progress_bars()
        if int(os.environ.get("RANK", "0")) == 0:
            where = str(interrupt) or "interrupted; the same command goes on where it can"
            typer.echo(f"lighthubert: {where}", err=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if os.environ.get("LIGHTHUBERT_TRACEBACK") or not (remedy := missing_package(error)):
            raise
        typer.echo(f"lighthubert: {remedy}", err=True)
        sys.exit(2)
    except Exception as error:
        if os.environ.get("LIGHTHUBERT_TRACEBACK"):
            raise
        _end_progress_bars()
        if isinstance(error, _user_errors()):
            typer.echo(f"lighthubert: {_one_line(error)}", err=True)
            sys.exit(2)
        typer.echo(
            f"lighthubert: unexpected {type(error).__name__}: {_one_line(error)[:300]}; LIGHTHUBERT_TRACEBACK=1 shows "
            "where it came from, which a report should say",
            err=True,
        )
        sys.exit(1)


def _end_progress_bars() -> None:
    """Or what is said next stands behind one, on its line."""
    if "tqdm" in sys.modules:
        from tqdm.auto import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def _user_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

    return ValueError, OSError, ImportError, StrictDataclassError, HfHubHTTPError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def answer(result: Any, as_json: bool, text: str) -> None:
    """Print a result, for a person or for a machine."""
    typer.echo(json.dumps(result, indent=2) if as_json else text)

"""The command's frame: its options, how it ends, how a result is printed."""

import codecs
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand

from lighthubert_hf import __version__
from lighthubert_hf.extras import missing_package
from lighthubert_hf.progress import end_bars, quiet_libraries


class Command(TyperCommand):
    """A command that prints, with `--json`, nothing but its answer on standard output.

    Whatever else is printed meanwhile, by whichever library, goes to standard error.
    """

    answers_go_to: TextIO | None = None

    def invoke(self, ctx: typer.Context) -> Any:
        ctx.params = {name: _at_home(value) for name, value in ctx.params.items()}
        if not ctx.params.get("as_json"):
            return super().invoke(ctx)
        Command.answers_go_to = sys.stdout
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return super().invoke(ctx)
        finally:
            Command.answers_go_to = None


def _at_home(value: Any) -> Any:
    """`~` is the home folder, also where the shell leaves it, as in `--output=~/x`."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_at_home, value))
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


class Commands(typer.Typer):
    """An app, or a group of it, of such commands."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any) -> Any:
        return super().command(name, cls=cls or Command, **options)


app = Commands(
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
    _accept_any_text()
    quiet_libraries()
    try:
        app()
    except KeyboardInterrupt as interrupt:
        end_bars()
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
        end_bars()
        if isinstance(error, _user_errors()):
            typer.echo(f"lighthubert: {_one_line(error)}", err=True)
            sys.exit(2)
        if _is_out_of_memory(error):
            typer.echo(
                f"lighthubert: out of memory ({_one_line(error)[:200]}); use smaller sizes or batches", err=True
            )
            sys.exit(2)
        typer.echo(
            f"lighthubert: unexpected {type(error).__name__}: {_one_line(error)[:300]}; LIGHTHUBERT_TRACEBACK=1 shows "
            "where it came from, which a report should say",
            err=True,
        )
        sys.exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    """Also as torch says it: by a class of its own on GPUs, by words on CPUs."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def _accept_any_text() -> None:
    """Where the locale is plain ASCII, as under `LC_ALL=C`, UTF-8 is written all the same; of what another encoding
    has not stands a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and (name := codecs.lookup(stream.encoding).name) != "utf-8":
            stream.reconfigure(**({"encoding": "utf-8"} if name == "ascii" else {}), errors="replace")


def _user_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

    return ValueError, OSError, ImportError, StrictDataclassError, HfHubHTTPError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def answer(result: Any, as_json: bool, text: str) -> None:
    """Print a result, for a person or for a machine; of several processes the first does."""
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(json.dumps(result, indent=2) if as_json else text, file=Command.answers_go_to)

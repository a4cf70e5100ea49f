"""The command that shows a run."""

from pathlib import Path
from typing import Annotated

import typer

from lighthubert_hf.extras import require

from .app import Json, answer, app


@app.command()
def explore(
    run: Annotated[Path, typer.Argument(help="Output folder of a search or of a distillation.")],
    output: Annotated[Path | None, typer.Option(help="The page; RUN/explore.html if not given.")] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show it at 127.0.0.1 until Ctrl-C, with newer data while a run goes on.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0 is any that is free.")] = 0,
    supernet: Annotated[
        str | None, typer.Option(help="Folder or Hub id to extract subnets from, if not the search's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A page of a run for any browser, in one file that needs no network."""
    require("search", what="the page")
    from lighthubert_hf.explore import serve as serve_page
    from lighthubert_hf.explore import write_page

    if serve and (output or as_json):
        raise ValueError("--serve goes on until Ctrl-C and writes no file; leave it out, or --output and --json")
    if serve:
        serve_page(run, port, supernet=supernet)
    else:
        page = write_page(run, output, supernet=supernet)
        answer({"page": str(page)}, as_json, str(page))

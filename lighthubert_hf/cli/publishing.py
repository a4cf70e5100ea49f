"""Commands that publish models on the Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .app import Json, Replace, answer, app

Private = Annotated[bool | None, typer.Option(help="Visibility of new repositories.")]
Message = Annotated[str | None, typer.Option(help="Commit message.")]
DryRun = Annotated[Path | None, typer.Option(help="Write what would be uploaded to this folder instead.")]


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A model folder.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME.")],
    private: Private = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    message: Message = None,
    dry_run: DryRun = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead of committing.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="Publish these files, too: a name or a pattern; repeatable.")
    ] = None,
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """Publish a model on the Hub, with the token of `hf auth login`, in one commit."""
    from lighthubert_hf.hub.publishing import push_folder

    options = {"private": private, "revision": revision, "commit_message": message, "create_pr": create_pr}
    options |= {"include": include or (), "overwrite": overwrite}
    result = push_folder(folder, repo_id, dry_run=dry_run, **options)
    answer(result.to_dict(), as_json, str(result))


@app.command("push-family")
def push_family(
    pareto: Annotated[Path, typer.Argument(help="The pareto.json of a search.")],
    prefix: Annotated[str, typer.Argument(help="OWNER/NAME, what the subnets' names begin with.")],
    private: Private = None,
    message: Message = None,
    collection: Annotated[str | None, typer.Option(help="Title of the collection.")] = None,
    explorer: Annotated[
        bool,
        typer.Option("--explorer", help="Publish the page of `explore`, too, as the static Space PREFIX-explorer."),
    ] = False,
    dry_run: DryRun = None,
    overwrite: Replace = False,
    as_json: Json = False,
) -> None:
    """Publish the chosen subnets of a search, each in its repository with one commit, and link them."""
    from lighthubert_hf.hub.family import published_supernet, push_family, read_pareto

    options = {"private": private, "commit_message": message, "collection": collection}
    options |= {"dry_run": dry_run, "overwrite": overwrite}
    with tempfile.TemporaryDirectory() as folder:
        if explorer:
            from lighthubert_hf.explore import write_space

            supernet = published_supernet(read_pareto(pareto).supernet, prefix)
            options["space"] = write_space(pareto, folder, supernet=supernet)
        result = push_family(pareto, prefix, **options)
    answer(result.to_dict(), as_json, str(result))

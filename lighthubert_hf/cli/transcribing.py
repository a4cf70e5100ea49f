"""The command that writes down speech."""

from pathlib import Path
from typing import Annotated

import typer

from lighthubert_hf.extras import require

from .app import Json, answer, app


@app.command()
def transcribe(
    model: Annotated[
        str, typer.Argument(help="Folder or Hub id of a LightHuBERT, HuBERT or wav2vec 2.0 with a CTC head.")
    ],
    files: Annotated[list[str], typer.Argument(help="Recordings; or -: raw mono samples on standard input.")],
    kind: Annotated[str, typer.Option("--format", help="txt, srt, vtt, or json (one line of JSON a line).")] = "txt",
    output: Annotated[Path | None, typer.Option(help="Folder for one transcript a file; what is there stays.")] = None,
    chunk: Annotated[float | None, typer.Option(help="Seconds at a time: 20; of standard input 0.5.")] = None,
    left: Annotated[float | None, typer.Option(help="Seconds of context before; 5, or as many as are exact.")] = None,
    right: Annotated[
        float | None, typer.Option(help="Seconds of look-ahead; 5, of standard input 1, or as many as are exact.")
    ] = None,
    rate: Annotated[int | None, typer.Option(help="Hz of standard input; 16000.")] = None,
    encoding: Annotated[str, typer.Option(help="Of standard input: s16le or f32le.")] = "s16le",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; by default a GPU if there is one.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of MODEL on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write transcripts anew that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Speech to text with times, of files of any length, or of a stream as it comes. Broken files are named."""
    require("train", what="transcribing")
    from lighthubert_hf.training.transcription import run
    from lighthubert_hf.training.transcription.captions import SUFFIXES
    from lighthubert_hf.training.transcription.recogniser import load_recogniser

    _check_choice("--format", kind, SUFFIXES)
    _check_choice("--encoding", encoding, run.ENCODINGS)
    live = files == ["-"]
    _check_inputs(files, live, kind, output, rate, as_json)
    source = run.standard_input() if live else None
    recogniser, processor = load_recogniser(model, revision, device)
    default = run.LIVE if live else run.FILES
    context = run.Context(default.chunk if chunk is None else chunk, left, right)
    write = _print if not as_json else lambda text: None
    if source is not None:
        raw = {"kind": kind, "rate": rate or run.SAMPLING_RATE, "encoding": encoding, "context": context}
        say = lambda text: typer.echo(text, err=True)  # noqa: E731
        result = run.transcribe_raw(recogniser, processor, source, write=write, announce=say, **raw)
        if as_json:
            answer(result, as_json, "")
        return
    found = run.transcribe_files(
        recogniser,
        processor,
        files,
        kind=kind,
        output=output,
        context=context,
        overwrite=overwrite,
        write=write if len(files) == 1 else None,
        progress=not as_json,
    )
    if as_json:
        answer(found.to_dict(), as_json, "")
    elif output is not None:
        _print(f"{len(found.done)} transcripts written to {output}, {len(found.kept)} were there\n")
    elif len(files) > 1:
        _print("".join(f"{one['file']}\t{one['text']}\n" for one in found.done))
    if complaint := found.complaint(len(files)):
        raise ValueError(complaint)


def _print(text: str) -> None:
    typer.echo(text, nl=False)


def _check_choice(option: str, value: str, allowed: object) -> None:
    if value not in list(allowed):  # pyrefly: ignore[bad-argument-type]
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")  # pyrefly: ignore


def _check_inputs(
    files: list[str], live: bool, kind: str, output: Path | None, rate: int | None, as_json: bool
) -> None:
    if "-" in files and not live:
        raise ValueError("standard input (-) stands alone; transcribe files with a command of their own")
    if live and output is not None:
        raise ValueError("what comes on standard input goes to standard output; leave out --output, or redirect it")
    if not live and rate is not None:
        raise ValueError("--rate is of raw samples on standard input; files say their own, leave it out")
    if len(files) > 1 and output is None and kind != "txt" and not as_json:
        raise ValueError(f"several transcripts in {kind} need files of their own; name a folder with --output")

"""How a data set of audio is read: the options of every command that takes one, named as recipes name them."""

from typing import Annotated, Any

import typer

Split = Annotated[str | None, typer.Option(help="Of the data set; by default train.")]
ConfigName = Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")]
AudioColumn = Annotated[str | None, typer.Option(help="By default the only one of audio.")]
TextColumn = Annotated[str | None, typer.Option(help="Transcripts to write beside; by default none.")]
Channel = Annotated[str | None, typer.Option(help="Of recordings with several: mean (the default), split, a number.")]
AllowPath = Annotated[
    list[str] | None, typer.Option(help="Folder or URL that rows may name files of, too; repeatable.")
]


def reading(
    split: str | None = None,
    config_name: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    channel: str | None = None,
    allow_path: list[str] | None = None,
) -> dict[str, Any]:
    """The options that were given, as arguments of an `AudioSource`."""
    number = int(channel) if channel is not None and channel.isdecimal() else channel
    given = {
        "split": split,
        "config_name": config_name,
        "audio_column": audio_column,
        "text_column": text_column,
        "channel": number,
        "allow_paths": tuple(allow_path) if allow_path else None,
    }
    return {name: value for name, value in given.items() if value is not None}

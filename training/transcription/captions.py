"""How transcripts are written: plain text, the caption formats SubRip and WebVTT, JSON lines."""

import html
import json
from collections.abc import Callable
from typing import Literal

from .words import Line

Format = Literal["txt", "srt", "vtt", "json"]
SUFFIXES: dict[Format, str] = {"txt": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".jsonl"}
HEADERS: dict[Format, str] = {"txt": "", "srt": "", "vtt": "WEBVTT\n\n", "json": ""}


def formatted(line: Line, number: int, kind: Format) -> str:
    """The `number`-th line (from 1) of a transcript, as it stands in a file of that format."""
    return _WRITERS[kind](line, number)


def _srt(line: Line, number: int) -> str:
    return f"{number}\n{_time(line.start, ',')} --> {_time(line.end, ',')}\n{line.text}\n\n"


def _vtt(line: Line, number: int) -> str:
    text = html.escape(line.text, quote=False)  # WebVTT has markup
    return f"{_time(line.start, '.')} --> {_time(line.end, '.')}\n{text}\n\n"


_WRITERS: dict[Format, Callable[[Line, int], str]] = {
    "txt": lambda line, number: f"{line.text}\n",
    "srt": _srt,
    "vtt": _vtt,
    "json": lambda line, number: f"{json.dumps(line.to_dict(), ensure_ascii=False)}\n",
}


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"

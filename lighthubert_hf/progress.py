"""Progress of long work, in one style and on standard error: a bar on a terminal, in a log now and then a line."""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

# Into a file or a pipe goes a line of a bar after this long, and none of one that ends before.
SECONDS_BETWEEN_LINES = 60.0
_COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n:,.0f} of {total:,.0f} {unit} [{elapsed}, {remaining} left{postfix}]"
_LINE = _COUNTED.replace("{percentage:3.0f}%|{bar}| ", "")
_ENDLESS = "{desc}: {n:,.0f} {unit} [{elapsed}{postfix}]"


def progress_bar(
    iterable: Iterable[Any] | None = None,
    description: str = "",
    *,
    unit: str,
    total: float | None = None,
    done: float = 0,
    shown: bool = True,
    layout: str | None = None,
) -> tqdm:
    """tqdm's bar over `iterable`, or one that its `update` moves.

    Args:
        description: What is being done.
        unit: What is counted, in the plural.
        total: How many there are; by default the length of `iterable`, if it has one.
        done: How many are done already.
        shown: `False` shows nothing.
        layout: tqdm's `bar_format`, where a count is not what says most.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        iterable,
        description,
        total,
        initial=done,
        unit=unit,
        disable=not shown,
        dynamic_ncols=live,
        file=sys.stderr if live else _Log(),
        bar_format=layout or (_ENDLESS if total is None else _COUNTED if live else _LINE),
    )


def write_line(text: str) -> None:
    """A line on standard error that does not tear a bar."""
    tqdm.write(text, file=sys.stderr)


def end_bars() -> None:
    """Or what is said next stands behind one, on its line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def quiet_libraries() -> None:
    """Where nobody watches, the bars of Hugging Face's libraries stay away."""
    if sys.stderr.isatty():
        return
    for library in ("HF_HUB", "HF_DATASETS"):  # before they are imported
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()  # and that of huggingface_hub


class _Log:
    """Standard error that is no terminal, as the file of a bar."""

    def __init__(self):
        self._last = time.monotonic()

    def write(self, text: str) -> None:
        if (line := text.strip()) and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            sys.stderr.write(f"{line}\n")
            self._last = time.monotonic()

    def flush(self) -> None:
        sys.stderr.flush()

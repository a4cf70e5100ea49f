"""Text that others wrote, in Markdown: it shows as it is and is never a heading, a link, HTML or a new table cell."""

import re

_LONGEST = 300
# What Markdown as on the Hub (GitHub's, with formulas) takes for more than a character, and what shows the character.
_SIGNS = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"} | {sign: f"\\{sign}" for sign in "\\`*[]|~!#"}
)
_EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
# What at the beginning of a line makes it a list, or the line before a heading.
_START = re.compile(r"^(\d*)([-+=.)])")
# Addresses, and names of people, become links by themselves.
_ADDRESS = re.compile(r"(?i)(?<=\bwww)\.|(?<=\bhttp):|(?<=\bhttps):|(?<=\bftp):|(?<=\bmailto):|@(?=\w)")


def one_line(text: object) -> str:
    """Without characters that do not print, and without more than one blank in a row; the end of a long one cut."""
    plain = "".join(sign if sign.isprintable() or sign.isspace() else "" for sign in str(text))
    plain = " ".join(plain.split())
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


def inline(text: object) -> str:
    """Part of a paragraph or a table cell."""
    escaped = one_line(text).translate(_SIGNS) or "–"
    escaped = _EMPHASIS.sub(r"\\_", escaped)
    escaped = _START.sub(r"\1\\\2", escaped)
    return _ADDRESS.sub(lambda match: f"&#{ord(match[0])};", escaped)


def code(text: object) -> str:
    """A code span, also inside a table cell."""
    plain = one_line(text).replace("|", "\\|") or "–"
    runs = {len(run) for run in re.findall(r"`+", plain)}
    if not runs:
        return f"`{plain}`"
    fence = "`" * next(length for length in range(1, len(runs) + 2) if length not in runs)
    return f"{fence} {plain} {fence}"

"""What the guides hold beside prose: their code blocks and the shell commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
GUIDES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
)
GUIDES = [path for path in GUIDES if path.exists()]

_BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n(?P<source>.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block. `why` says why it is not run, where a comment above it does."""

    language: str
    source: str
    line: int
    why: str | None


def blocks(path: Path, *languages: str) -> list[Block]:
    """The blocks of a guide in `languages`, or all."""
    text = path.read_text(encoding="utf-8")
    found = [
        Block(match["language"], match["source"], text[: match.start("source")].count("\n"), match["why"])
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def shell_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and words of every command in a guide's shell blocks, comments and what follows a pipe left out."""
    found = []
    for block in blocks(path, "bash", ""):
        number = block.line
        for line in block.source.replace("\\\n", " ").splitlines():
            number += 1
            if re.match(r"(\$ )?(lighthubert|make|python|pip|accelerate|torchrun|time|/usr/bin/time)\b", line):
                found.append((number, shlex.split(line.removeprefix("$ "), comments=True)))
    return found


def inline_code(path: Path) -> list[str]:
    """The code within a guide's sentences and tables."""
    return _INLINE.findall(_BLOCK.sub("", path.read_text(encoding="utf-8")))

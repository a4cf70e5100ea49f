"""The Python in the guides: all of it names what exists; the guides in RUNNABLE run from top to bottom.

A block that starts with ```python no-run (it needs the network, say) is not run. Guides that need more than a folder
to run in are run by the tests of their subject.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
RUNNABLE = ("model.md",)
BLOCK = re.compile(r"^```python( no-run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[str, bool]]:
    """Source and whether it is to be run, with line numbers as in the file."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start(2)].count("\n")
        found.append(("\n" * line + match[2], not match[1]))
    return found


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_python_names_what_exists(path):
    for source, _ in blocks(path):
        for node in ast.walk(ast.parse(source, path.name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lighthubert_hf"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{path.name}:{node.lineno}: {node.module} has no {name.name}"


@pytest.mark.parametrize("name", RUNNABLE)
def test_guide_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": name}
    for source, run in blocks(ROOT / "docs" / name):
        if run:
            exec(compile(source, name, "exec"), namespace)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"

"""The plan of the house: arrows point down only, and what travels with a model needs nothing else."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where each part of the package lies in the checkout.
ROOTS = {
    "lighthubert_hf": ROOT / "lighthubert_hf",
    "lighthubert_hf.conversion": ROOT / "conversion",
    "lighthubert_hf.training": ROOT / "training",
}
# A room may import from rooms further down only. Rooms that share a line are neighbours and do not know each other.
FLOORS = [
    {"lighthubert_hf.cli"},
    {"lighthubert_hf.training", "lighthubert_hf.conversion"},
    {"lighthubert_hf.explore"},
    {"lighthubert_hf.search", "lighthubert_hf.hub"},
    {"lighthubert_hf.costs", "lighthubert_hf.streaming", "lighthubert_hf.units"},
    {"lighthubert_hf.model"},
]
TRAVELS_WITH = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}


def modules() -> dict[str, Path]:
    """All modules of the package by name; a package's own is its `__init__`."""
    found = {}
    for package, folder in ROOTS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(module: str) -> Iterator[str]:
    """What a module imports, anywhere in it: full names of modules."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


def arrows() -> dict[str, set[str]]:
    """Module to the package's modules it imports. That the package's own names stand for the model's is left out:
    `from lighthubert_hf import SearchSpace` is an arrow to the model."""
    facade = "lighthubert_hf"
    found = {}
    for module in MODULES.keys() - {facade}:
        targets = {"lighthubert_hf.model" if name == facade else name for name in imported(module)}
        found[module] = targets & MODULES.keys() - {module}
    return found


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for target in graph.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    reach = {node: reached(node) for node in graph}
    return {
        frozenset(other for other in reach[node] if node in reach.get(other, ())) | {node}
        for node in graph
        if node in reach[node]
    }


def folder(module: str) -> str:
    """The room a module lies in. What lies directly in the package stands at the floor it is used from, each alone."""
    if module.rpartition(".")[0] == "lighthubert_hf":
        return module
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


# Circles that are still there. The list only shrinks.
KNOWN_FILE_CIRCLES: set[frozenset[str]] = set()
KNOWN_FOLDER_CIRCLES: set[frozenset[str]] = set()
KNOWN_UPWARD: set[tuple[str, str]] = set()


def test_no_circles_between_files():
    assert circles(arrows()) == KNOWN_FILE_CIRCLES


def test_no_circles_between_folders():
    graph: dict[str, set[str]] = {}
    for module, targets in arrows().items():
        graph.setdefault(folder(module), set()).update({folder(target) for target in targets} - {folder(module)})
    assert circles(graph) == KNOWN_FOLDER_CIRCLES


def floor(module: str) -> int | None:
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return number
    return None


def test_arrows_point_down():
    upward = {
        (module, target)
        for module, targets in arrows().items()
        for target in targets
        if None not in (floor(module), floor(target)) and floor(target) < floor(module)
    }
    assert upward == KNOWN_UPWARD


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("lighthubert_hf.model.")))
def test_what_travels_needs_only_torch_and_transformers(module):
    own = {f"lighthubert_hf.model.{path.stem}" for path in (ROOT / "lighthubert_hf" / "model").glob("*.py")}
    outside = {name for name in imported(module) if name not in own and name.split(".")[0] not in TRAVELS_WITH}
    assert not outside
    relative = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert all(node.level == 1 and node.module for node in relative)  # transformers follows no other form


# Names that are there twice still. The list only shrinks.
KNOWN_TWINS: set[str] = set()


def test_no_two_public_classes_or_functions_have_one_name():
    """One name, one thing. The commands of `cli` are called like what they call."""
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        if folder(module).startswith("lighthubert_hf.cli"):
            continue
        for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            alias = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id
            if named or (alias and alias[0].isupper() and not alias.isupper()):  # a type's alias is a type
                homes.setdefault(node.name if named else alias, []).append(module)
    assert {name for name, modules in homes.items() if len(modules) > 1} == KNOWN_TWINS


def test_one_file_draws_progress():
    imports = re.compile(r"^\s*(from|import) tqdm\b", re.MULTILINE)
    found = [module for module, path in MODULES.items() if imports.search(path.read_text(encoding="utf-8"))]
    assert found == ["lighthubert_hf.progress"]

"""The guides are true: their Python runs, or says why not; their commands, options, recipes and links exist."""

import ast
import importlib
import json
import re
import subprocess
import sys

import click
import pytest
import typer

import lighthubert_hf
from lighthubert_hf.cli import app
from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.finetuning.recipe import FineTuningRecipe
from lighthubert_hf.training.recipes.loading import load_recipe

from .guides import GUIDES, ROOT, blocks, inline_code, shell_lines

HERE = ("model.md",)  # run from top to bottom, in an empty folder
ELSEWHERE = {  # by the tests of their subject, which bring what they need
    "publishing.md": "hub/test_docs.py",
    "finetuning.md": "training/finetuning/test_run.py",
    "search.md": "training/distillation/test_search_docs.py",
    "streaming.md": "streaming/test_docs.py",
    "units.md": "training/units/test_docs.py",
    "features.md": "training/units/test_docs.py",
}
COMMANDS = typer.main.get_command(app).commands
guides = pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))


@guides
def test_python_names_what_exists(path):
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block.source, path.name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lighthubert_hf"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    where = f"{path.name}:{block.line + node.lineno}"
                    assert hasattr(module, name.name), f"{where}: {node.module} has no {name.name}"


@guides
def test_python_is_run_or_says_why_not(path):
    for block in blocks(path, "python"):
        assert block.why or path.name in (*HERE, *ELSEWHERE), f"{path.name}:{block.line}: nobody runs this"
    if path.name in ELSEWHERE:
        assert path.name in (ROOT / "tests" / ELSEWHERE[path.name]).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", HERE)
def test_guide_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": name}
    for block in blocks(ROOT / "docs" / name, "python"):
        if not block.why:
            exec(compile("\n" * block.line + block.source, name, "exec"), namespace)


@guides
def test_shell_lines_parse(path):
    for line, words in shell_lines(path):
        words = words[: words.index(">")] if ">" in words else words
        check_command([word for word in words if word != "…"], f"{path.name}:{line}")


def resolved(name: str, arguments: list[str]) -> tuple[click.Command | None, str, list[str]]:
    """The command that words name, which may be one of a group, what it is called, and the words behind."""
    command = COMMANDS.get(name)
    if command is not None and hasattr(command, "commands") and arguments:
        return command.commands.get(arguments[0]), f"{name} {arguments[0]}", arguments[1:]
    return command, name, arguments


def check_command(words: list[str], where: str) -> None:
    """Fail unless the command, its options, their values and a shipped recipe with its overrides exist."""
    for start in ("lighthubert", "lighthubert_hf"):
        if start in words:
            name, *arguments = words[words.index(start) + 1 :]
            command, name, arguments = resolved(name, arguments)
            assert command is not None, f"{where}: there is no command {name}"
            try:
                command.make_context(name, list(arguments))
            except click.exceptions.ClickException as error:
                pytest.fail(f"{where}: lighthubert {name}: {error.format_message()}")
            if name in ("distill", "finetune"):
                check_recipe(name, arguments, where)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), f"{where}: no target {words[1]}"
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        check_options(words[1], words, where)


def check_recipe(name: str, arguments: list[str], where: str) -> None:
    """A recipe given by name, not by file, is shipped and takes the overrides that stand there in full."""
    kind = {"distill": DistillationRecipe, "finetune": FineTuningRecipe}[name]
    recipe, *overrides = [argument for argument in arguments if not argument.startswith("-")]
    if re.fullmatch(r"[a-z0-9-]+", recipe):
        try:
            load_recipe(kind, recipe, [override for override in overrides if "…" not in override])
        except ValueError as error:
            pytest.fail(f"{where}: {error}")


def check_options(program: str, words: list[str], where: str) -> None:
    """Of a benchmark; what all of them take stands in contenders.py."""
    text = "".join((ROOT / path).read_text(encoding="utf-8") for path in (program, "benchmarks/contenders.py"))
    for word in words:
        if word.startswith("--"):
            assert f'"{word.split("=")[0]}"' in text, f"{where}: no option {word}"


@guides
def test_commands_in_sentences_exist(path):
    for code in inline_code(path):
        words = code.split()
        if words[0] == "make" and len(words) > 1:
            check_command(words[:2], path.name)
        elif words[0] == "python" and len(words) > 1 and words[1].startswith("benchmarks/"):
            check_options(words[1], words, path.name)
        elif words[0] == "lighthubert" and len(words) > 1 and words[1] not in ("…", "COMMAND", "--help"):
            command, name, _ = resolved(words[1], words[2:])
            assert command is not None, f"{path.name}: `{code}`: there is no command {name}"
            options = {option for parameter in command.params for option in parameter.opts}
            options |= {option for parameter in command.params for option in parameter.secondary_opts}
            wrong = {word for word in words if word.startswith("--")} - options - {"--help"}
            assert not wrong, f"{path.name}: `{code}`: there is no {', '.join(wrong)}"


@guides
def test_links_lead_somewhere(path):
    """Those of README and CONTRIBUTING; `make docs` checks those of the site, with their anchors."""
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_speeds_in_the_readme_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks/results/inference.json").read_text())["settings"]
    (contenders,) = (run["contenders"] for run in measured if run["batch"] == 1 and run["seconds"] == 10)
    rows = re.findall(r"\| (\d+) ms \| ([\d.]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"))
    names = ("ours, 27M default", "ours, 11M smallest", "transformers HubertModel, the 27M", "original, 27M default")
    chosen = [contenders[name] for name in (*names, "HuBERT Base, 95M")]
    assert rows == [(f"{row['median_ms']:.0f}", f"{row['times_ours']:.2f}") for row in chosen]
    first = (ROOT / "docs/performance.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.findall(r"(\d\.\d\d) times", first) == [rows[4][1], rows[2][1]]


def test_one_version():
    """pyproject.toml reads the package's; the citation repeats it."""
    assert f"\nversion: {lighthubert_hf.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert 'attr = "lighthubert_hf.__version__"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_site_builds():
    """A link or an anchor that leads nowhere, or a name that the reference has and the code has not, is an error."""
    pytest.importorskip("zensical")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr

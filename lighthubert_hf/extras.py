"""Optional packages: which extra brings which, and the command that installs them here.

Without torch: the command line asks before it imports anything heavy.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

DISTRIBUTION = "lighthubert-hf"
# Of every extra, what it installs, and under which name that is imported where that differs.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "accelerate",
        "datasets",
        "evaluate",
        "jiwer",
        "pydantic",
        "pyyaml",
        "scikit-learn",
        "scipy",
        "soundfile",
        "soxr",
    ),
    "search": ("filelock", "matplotlib", "optuna", "plotly", "scipy"),
    "demo": ("espeakng-loader",),  # beside `train` and `search`
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "peft": ("peft",),
    "lm": ("kenlm",),
}
_MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "espeakng-loader": "espeakng_loader"}
# Of what no extra brings.
TRACKERS = ("tensorboard", "wandb")


def require(*extras: str, what: str) -> None:
    """Raise an ImportError of one line, with the command that helps, unless all packages of the extras are there.

    Args:
        extras: Their names in pyproject.toml.
        what: Who needs them, as the beginning of a sentence.
    """
    absent = [name for name in dict.fromkeys(n for extra in extras for n in EXTRAS[extra]) if not _is_there(name)]
    if absent:
        needed = [extra for extra in extras if set(EXTRAS[extra]) & set(absent)]
        raise ImportError(f"{what} needs {', '.join(absent)}; install with: {install_command(needed)}")


@contextmanager
def importing(*extras: str, what: str) -> Iterator[None]:
    """Around imports of what an extra brings: `require`'s error, should they fail."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise ImportError(f"{what} needs {name}; install with: {install_command(extras)}") from None


def require_trackers(trackers: Iterable[str]) -> None:
    """Raise an ImportError unless all trackers that a recipe names are installed."""
    absent = [name for name in trackers if not _is_there(name)]
    if absent:
        named = " and ".join(absent)
        raise ImportError(
            f"logging.trackers names {named}, which is not installed: pip install {' '.join(absent)}, or leave it out "
            "with logging.trackers=[]"
        )


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to say of a package that could not be imported, if it is one of an extra's."""
    module = (error.name or "").partition(".")[0]
    for extra, names in EXTRAS.items():
        for name in names:
            if _MODULES.get(name, name) == module:
                return f"this needs {name}; install with: {install_command([extra])}"
    return None


def install_command(extras: Iterable[str]) -> str:
    """The `pip install` that brings the extras: from where this package was installed, a folder or PyPI."""
    source, option = _installed_from()
    return f"pip install {option}'{source}[{','.join(extras)}]'"


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(_MODULES.get(name, name)) is not None
    except (ImportError, ValueError):
        return False


def _installed_from() -> tuple[str, str]:
    """Folder or name to install from, and pip's option for a folder that is used where it lies."""
    if (checkout := Path(__file__).resolve().parents[1]).joinpath("pyproject.toml").is_file():
        return str(checkout), "-e "
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")  # PEP 610
    except importlib.metadata.PackageNotFoundError:
        text = None
    said = json.loads(text) if text else {}
    folder = Path(url2pathname(unquote(urlparse(said["url"]).path))) if "dir_info" in said else None
    if folder is not None and (folder / "pyproject.toml").is_file():
        return str(folder), ""
    return DISTRIBUTION, ""

"""One file that needs nothing else: the data, the plotting library and the program that shows them stand in it."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lighthubert_hf.extras import require
from lighthubert_hf.files import write_text

from .searches import FILE as REPORT
from .searches import search_data
from .trainings import FILE as LOG
from .trainings import training_data

PAGE = "explore.html"
STUDY = "study.db"
_TEMPLATES = Path(__file__).with_name("templates")


def page_data(run: str | Path, supernet: str | None = None) -> dict[str, Any]:
    """What the page of a run shows, as plain data with "kind" "search" or "training".

    Args:
        run: folder of `lighthubert search` or `lighthubert distill`, or the `pareto.json` of a search.
        supernet: see `search_data`.

    Raises:
        FileNotFoundError: if `run` is neither.
        ValueError: if its files cannot be shown.
    """
    folder = _folder_of(run)
    if (folder / REPORT).is_file() or (folder / STUDY).is_file():
        return search_data(folder, supernet)
    if (folder / LOG).is_file():
        return training_data(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the output folder of a search or a distillation")
    raise FileNotFoundError(
        f"{folder} holds neither a search ({REPORT}) nor a distillation ({LOG}); give the output folder of one"
    )


def _folder_of(run: str | Path) -> Path:
    path = Path(run).expanduser()
    return path.parent if path.name == REPORT else path


def page(data: dict[str, Any], live: bool = False) -> str:
    """The page as HTML.

    Args:
        data: see `page_data`.
        live: the page asks the server that it came from for newer data.
    """
    require("search", what="the page")
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
    texts = {path.name: Markup(path.read_text(encoding="utf-8")) for path in _TEMPLATES.iterdir()}
    return environment.get_template("page.html").render(
        title=data["title"],
        data=Markup(embedded(data)),
        live=json.dumps(live),
        plotly=Markup(get_plotlyjs()),
        style=texts["page.css"],
        scripts=[texts["plots.js"], texts[f"{data['kind']}.js"]],
    )


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end that."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def write_page(run: str | Path, output: str | Path | None = None, *, supernet: str | None = None) -> Path:
    """Write the page of a search or of a distillation run.

    Args:
        run, supernet: see `page_data`.
        output: the file; by default `explore.html` in the run's folder.

    Raises:
        FileNotFoundError, ValueError: if there is nothing to show.
    """
    data = page_data(run, supernet)
    path = Path(output) if output else _folder_of(run) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(data))
    return path


def write_space(run: str | Path, folder: str | Path, *, supernet: str | None = None) -> Path:
    """A folder that the Hub shows as a static Space: the page as its `index.html`, and the Space's card.

    Args:
        run, supernet: see `page_data`.
    """
    folder = Path(folder)
    data = page_data(run, supernet)
    front = {"title": data["title"], "sdk": "static", "app_file": "index.html", "pinned": False}
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.md", "\n".join(["---", *lines, "tags: [lighthubert]", "---", ""]))
    write_text(folder / "index.html", page(data))
    return folder

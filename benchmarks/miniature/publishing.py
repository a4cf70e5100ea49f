"""Tables, plots and JSON of a study."""

import shutil
from pathlib import Path
from typing import Any

from contenders import insert, machine  # in the folder above
from parts import Results, write_json
from report import rounded
from studies import Study


def publish_study(
    program: str, study: Study, output: Path, json_file: Path | None = None, docs: Path | None = None
) -> str:
    """Collect what is there, write results.json, report.md and plots into `output`, and return the text.

    Args:
        program: the study's, which its place in `docs` is named after: `<!-- miniature/PROGRAM: begin -->` and `end`.
        json_file: where to write the results besides.
        docs: a guide with that place; plots go to `images/` beside it.
    """
    found = Results(output).collect(study.setting, study.parts)
    results = {"setting": study.setting.to_dict(), "machine": machine(), **rounded(found)}
    text, plots = study.report(results), study.plot(results, output)
    write_json(output / "results.json", results)
    (output / "report.md").write_text(text + "\n", encoding="utf-8")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, results)
    if docs is not None:
        insert(docs, f"miniature/{program}", f"{_heading(program, results)}\n\n{_with_plots(text, plots, docs)}\n")
    return text


def _heading(program: str, results: dict[str, Any]) -> str:
    where, wall = results["machine"], results["wall_seconds"]
    setting = results["setting"]["name"]
    command = f"python benchmarks/miniature/{program}.py" + (f" --setting {setting}" if setting != "default" else "")
    return (
        f"{where['date']}, {where['device']}, torch {where['torch']}; `{command}`. {len(wall)} parts, "
        f"{sum(wall.values()) / 60:.0f} minutes in all."
    )


def _with_plots(text: str, plots: dict[Path, str], docs: Path) -> str:
    images = docs.parent / "images"
    images.mkdir(exist_ok=True)
    for path in plots:
        shutil.copy(path, images / path.name)
    return "\n\n".join([text, *(f"![{title}](images/{path.name})" for path, title in plots.items())])


def saved(figure: Any, path: Path) -> Path:
    """Save and close a figure."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path

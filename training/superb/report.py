"""The results as a table for people and as entries of a model card."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from lighthubert_hf.absent import absent
from lighthubert_hf.costs.figures import human
from lighthubert_hf.files import read_object, write_text
from lighthubert_hf.hub.card import CardFacts, read_config
from lighthubert_hf.hub.folder import CONFIG, README, is_rendered, load_facts, update_facts
from lighthubert_hf.hub.markdown import inline, one_line
from lighthubert_hf.locks import locked

from .published import COLUMNS, SCORES
from .registry import KINDS
from .settings import SUPERB_RATES
from .task import Metric


def rows_of(results: dict[str, Any]) -> Iterator[tuple[str, Metric, float, dict[str, Any]]]:
    """Task, metric, value in percent, and the task's results, for every number that counts."""
    for name, result in results["tasks"].items():
        for metric in KINDS[name].metrics:
            yield name, metric, 100 * result["metrics"][metric.name], result


def markdown(results: dict[str, Any]) -> str:
    """What was measured here and, apart from it, what is published."""
    model = Path(results["model"]).name if results["model"] else "a model"
    lines = [
        f"# Evaluation of {inline(model)}",
        "",
        f"{human(results['parameters'])} parameters, frozen. Heads on a learnt weighted sum of its "
        f"{results['hidden_states']} hidden states. Preset `{results['settings']['preset']}`, seed {results['seed']}.",
        "",
        "## Measured here",
        "",
        "| task | metric | value (%) | data | utterances trained on | steps | SUPERB's steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metric, value, result in rows_of(results):
        trained = result["data"]["splits"].get("train")
        arrow = "↑" if metric.higher_is_better else "↓"
        full = SUPERB_RATES[name].steps if name in SUPERB_RATES else 0
        lines.append(
            f"| {KINDS[name].title} | {metric.title} {arrow} | {value:.2f} | {inline(result['data']['name'])} "
            f"| {trained['examples'] if trained else '–'} | {result['steps'] or '–'} | {full or '–'} |"
        )
    lines += [
        "",
        "## Published",
        "",
        "On SUPERB's data, heads trained in full. Only comparable with the above where data and steps are the same.",
        "",
        "| model | M params | " + " | ".join(_title(*column) for column in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for model, (parameters, *scores) in SCORES.items():
        lines.append(f"| {model} | {parameters:g} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")
    return "\n".join(lines) + "\n"


def _title(task: str, metric: str) -> str:
    return f"{task.upper()} {next(found.title for found in KINDS[task].metrics if found.name == metric)}"


def describe_evaluation(results: dict[str, Any]) -> str:
    """The scores as lines of text."""
    return "\n".join(
        f"{KINDS[name].title}: {metric.title} {value:.2f} % on {result['data']['name']}"
        for name, metric, value, result in rows_of(results)
    )


def card_entries(results: dict[str, Any]) -> tuple[EvalResult, ...]:
    """The scores as a model card states them (`model-index`), in percent."""
    entries: list[EvalResult] = []
    sets: dict[tuple, str] = {}
    for name, metric, value, result in rows_of(results):
        data, kind = result["data"], KINDS[name]
        title, split = one_line(data["name"]), one_line(data["splits"]["test"]["name"])
        dataset = title.replace(" ", "-")
        # The Hub tells results apart by task, data set, configuration and split.
        config = one_line(data["config_name"] or name)
        if sets.setdefault((kind.hub_task, dataset, config), name) != name:
            config = f"{config}-{name}"
        entries.append(
            EvalResult(
                task_type=kind.hub_task,
                task_name=f"{kind.title}, frozen model",
                dataset_type=dataset,
                dataset_name=title,
                dataset_config=config,
                dataset_split=split,
                metric_type=metric.name,
                metric_name=f"{metric.title} (%)",
                metric_value=round(value, 2),
            )
        )
    return tuple(entries)


def check_card(folder: str | Path, of_subnet: bool) -> None:
    """Raise what `update_card` would raise: before hours of training rather than after."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"only a folder's card can be updated, and {absent('model folder', folder)}")
    if of_subnet:
        raise ValueError(f"the card of {folder} is the supernet's, the scores are a subnet's; extract it beforehand")
    read_config(read_object(folder / CONFIG))
    load_facts(folder)
    with locked(folder, patience=60):
        pass


def update_card(folder: str | Path, results: dict[str, Any]) -> None:
    """Put the scores on the card of a model folder; earlier ones of the same task and data are replaced.

    A card that was edited by hand keeps its text; only its metadata change.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the results are of a subnet, or the model is of a kind without cards.
    """
    folder = Path(folder)
    check_card(folder, results["subnet"] is not None)
    new = card_entries(results)
    replaced = {entry.unique_identifier for entry in new}

    def change(facts: CardFacts) -> CardFacts:
        kept = tuple(entry for entry in facts.evaluations if entry.unique_identifier not in replaced)
        return replace(facts, evaluations=(*kept, *new))

    with locked(folder, patience=60):
        facts = update_facts(folder, change)
        readme = folder / README
        text = readme.read_text(encoding="utf-8")
        if not is_rendered(text):
            card = ModelCard(text)
            card.data.model_name = card.data.model_name or folder.name
            card.data.eval_results = list(facts.evaluations)
            write_text(readme, str(card))

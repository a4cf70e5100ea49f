"""What fine-tuning leaves behind: the scores, and the model folder whose card states them."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers import PreTrainedModel

from lighthubert_hf.files import read_object, write_text
from lighthubert_hf.hub.card import CardFacts, is_hub_id
from lighthubert_hf.hub.derived import Parent, retrained_facts, subnet_facts
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.markdown import one_line
from lighthubert_hf.training.runs.run_folder import METRICS, MODEL

from .recipe import FineTuningRecipe, PretrainedSection
from .task import FineTuningTask

logger = logging.getLogger(__name__)


def save_results(task: FineTuningTask, model: PreTrainedModel, metrics: dict[str, Any], facts: CardFacts) -> None:
    """Write `metrics.json` and then, whole or not at all, the folder `model`. `facts` are `facts_of_encoder`'s."""
    output = Path(task.recipe.output_dir)
    write_text(output / METRICS, json.dumps(metrics, indent=2) + "\n")
    facts = replace(facts, evaluations=_evaluations(task, metrics["evaluation"]))
    save_model_folder(model, output / MODEL, card=facts, processor=task.processor())


def read_results(output: Path) -> dict[str, Any]:
    """The `metrics.json` of a finished run.

    Raises:
        FileNotFoundError, ValueError: It is not there, or damaged. One line.
    """
    remedy = "start over with --overwrite"
    metrics = read_object(output / METRICS, remedy)
    try:
        describe_finetuning(metrics)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{output / METRICS} is damaged ({type(error).__name__}: {error}); {remedy}") from None
    return metrics


def facts_of_encoder(settings: PretrainedSection) -> CardFacts:
    """What the encoder's card says about its origin, if it has one: teacher, data, licence, supernet.

    Its numbers are not the fine-tuned model's, and random weights come from nowhere.

    Raises:
        ValueError: The card is damaged.
    """
    if settings.path is None or settings.from_scratch:
        return CardFacts()
    parent = Parent.read(settings.path, settings.revision, required=False)
    return retrained_facts(parent) if settings.subnet is None else subnet_facts(parent)


def _evaluations(task: FineTuningTask, scores: dict[str, dict[str, float]]) -> tuple[EvalResult, ...]:
    """The scores as the card states them, in percent. The Hub tells sets by data set, configuration and split."""
    results, known = [], set()
    for name, values in scores.items():
        dataset, config, split = _described(name, task.recipe)
        if (dataset, config, split) in known:
            config = name
        known.add((dataset, config, split))
        dataset, config, split = (part and one_line(part) for part in (dataset, config, split))
        for metric, title in task.scores.items():
            results.append(
                EvalResult(
                    task_type=task.hub_task,
                    task_name=task.hub_task_name,
                    dataset_type=dataset,
                    dataset_name=one_line(name if name != split else dataset),
                    dataset_config=config,
                    dataset_split=split,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(100 * values[metric], 2),
                )
            )
    return tuple(results)


def _described(name: str, recipe: FineTuningRecipe) -> tuple[str, str | None, str]:
    """Data set, configuration and split of a held-out set; of the first source, where there are more."""
    if recipe.data.synthetic is not None:
        return "synthetic-speech", getattr(recipe.data, "synthetic_task", None), name
    first = recipe.data.evaluation.get(name, recipe.data.sources)[0]
    split = first.split if name in recipe.data.evaluation else name
    # A folder's last name says nothing about the machine it lies on.
    return first.path if is_hub_id(first.path) else Path(first.path).name, first.config_name, split


def describe_finetuning(metrics: dict[str, Any]) -> str:
    """What fine-tuning returned, as lines of text."""
    lines = [f"{metrics['model']}: {metrics['parameters'] / 1e6:.2f}M parameters, {metrics['steps']} steps"]
    for name, scores in metrics["evaluation"].items():
        rates = [f"{key} {value:.1%}" for key, value in scores.items() if key not in ("loss", "examples")]
        lines.append(f"{name}: {', '.join(rates)} ({scores['examples']} utterances)")
    if metrics["skipped_steps"]:
        lines.append(f"{metrics['skipped_steps']} steps changed nothing: their gradients were not finite")
    if metrics["dropped"]:
        lines.append(f"{metrics['dropped']} training utterances were left out: {metrics['dropped_because']}")
    return "\n".join(lines)

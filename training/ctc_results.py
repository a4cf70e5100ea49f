"""What fine-tuning leaves behind: the scores, and the model folder whose card states them."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers import PreTrainedModel, Wav2Vec2Processor
from transformers.utils import cached_file

from lighthubert_hf.model_card import FACTS_FILE, CardFacts, is_hub_id
from lighthubert_hf.model_folder import save_model_folder

from .ctc_recipe import CtcRecipe, PretrainedSection
from .recipe import SourceSection

logger = logging.getLogger(__name__)

METRICS = {"wer": "word error rate (%)", "cer": "character error rate (%)"}


def save_results(recipe: CtcRecipe, model: PreTrainedModel, processor: Wav2Vec2Processor, metrics: dict) -> None:
    """Write `metrics.json` and then, whole or not at all, the folder `model`."""
    output = Path(recipe.output_dir)
    write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    facts = replace(_facts_of_encoder(recipe.model), evaluations=_evaluations(recipe, metrics["evaluation"]))
    save_model_folder(model, output / "model", card=facts, processor=processor)


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _facts_of_encoder(settings: PretrainedSection) -> CardFacts:
    """What the encoder's card says about its origin, if it has one: teacher, data, licence, supernet.

    Its numbers are not the fine-tuned model's, and random weights come from nowhere.
    """
    if settings.path is None or settings.from_scratch:
        return CardFacts()
    file = cached_file(
        settings.path,
        FACTS_FILE,
        revision=settings.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return CardFacts()
    facts = CardFacts.load(file)
    facts = replace(facts, parameters=None, macs_per_second=None, latency=None, loss=None, loss_data=None, family=())
    return facts if settings.subnet is None else replace(facts, supernet=facts.supernet or settings.path)


def _evaluations(recipe: CtcRecipe, scores: dict[str, dict[str, float]]) -> tuple[EvalResult, ...]:
    """The scores as the card states them, in percent. The Hub tells sets by data set, configuration and split."""
    results, known = [], set()
    for name, values in scores.items():
        dataset, config, split = _described(name, recipe.data.evaluation.get(name))
        if (dataset, config, split) in known:
            config = name
        known.add((dataset, config, split))
        for metric, title in METRICS.items():
            results.append(
                EvalResult(
                    task_type="automatic-speech-recognition",
                    task_name="speech recognition",
                    dataset_type=dataset,
                    dataset_name=name if name != split else dataset,
                    dataset_config=config,
                    dataset_split=split,
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(100 * values[metric], 2),
                )
            )
    return tuple(results)


def _described(name: str, sources: list[SourceSection] | None) -> tuple[str, str | None, str]:
    """Data set, configuration and split of a held-out set; of the first source, where there are more."""
    if sources is None:
        return "synthetic-speech", None, name
    first = sources[0]
    # A folder's last name says nothing about the machine it lies on.
    return first.path if is_hub_id(first.path) else Path(first.path).name, first.config_name, first.split


def describe(metrics: dict[str, Any]) -> str:
    """The scores as lines of text."""
    lines = [f"{metrics['model']}: {metrics['parameters'] / 1e6:.2f}M parameters, {metrics['steps']} steps"]
    for name, scores in metrics["evaluation"].items():
        lines.append(f"{name}: CER {scores['cer']:.1%}, WER {scores['wer']:.1%} ({scores['examples']} utterances)")
    if metrics["dropped"]:
        lines.append(f"{metrics['dropped']} training utterances were left out: more text than frames")
    return "\n".join(lines)

"""`lighthubert evaluate`: a frozen model judged on the tasks of SUPERB.

OUTPUT/
  results.json      everything below in one file
  results.md        the table, beside what is published
  tasks/NAME.json   one finished task; not done again as long as model, data and settings are the same
  features/         the cache, unless it is elsewhere
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lighthubert_hf import __version__
from lighthubert_hf.costs.measuring import describe_machine
from lighthubert_hf.devices import choose_device
from lighthubert_hf.files import is_leftover, read_checked, with_checksum, write_text
from lighthubert_hf.locks import locked
from lighthubert_hf.model.search_space import Subnet

from .feature_store import FeatureStore, data_fingerprint
from .probing import train_head
from .query_task import QueryByExample
from .registry import PROBED, parse_tasks
from .report import markdown
from .settings import EvaluationSettings, SuperbData, TaskData, load_data
from .splits import Selection, Split
from .upstream import Upstream, load_upstream

logger = logging.getLogger(__name__)

# Raise it when the same settings lead to other scores: what was done before is done again.
HARNESS_VERSION = 1
_MADE_HERE = {"results.json", "results.md", "tasks", "features", "data"}
# What a result depends on, as a user calls it; all else is called as the settings are.
_PARTS = {"upstream": "model", "files": "state of the data's files", "data": "data", "trials": "list of trials"}


def evaluate_model(
    model: str | Path | PreTrainedModel | Upstream,
    tasks: str | Sequence[str],
    data: SuperbData | Sequence[str] = (),
    output: str | Path = "evaluation",
    settings: EvaluationSettings | None = None,
    *,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    cache: str | Path | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a head for each task on the frozen model's features and test it.

    Tasks that were finished earlier in `output`, with the same model, data and settings, are not done again.

    Args:
        model: Folder or Hub id, a live model, or an `Upstream`.
        tasks: Names, or "all".
        data: Where the tasks' data are: what `load_data` gives, or overrides for it such as `["ks=FOLDER"]`.
        output: Folder for the results.
        settings: How; by default SUPERB's rates and steps.
        revision: Of a model on the Hub.
        subnet: Which one of a supernet.
        cache: Folder for features, which several evaluations may share; by default `output/features`.
        device: By default a GPU if there is one.
        overwrite: Do tasks anew that `output` holds for another model, other data or settings.
        progress: Whether to show progress bars.

    Returns:
        What `results.json` holds: `{"model", "revision", "parameters", …, "tasks": {name: {"metrics": {…}, …}}}`.
        Metrics are fractions.

    Raises:
        FileNotFoundError: There is no such model or data set.
        ValueError: A task without data, data without the columns needed, a supernet's subnet that does not fit, an
            `output` that holds something else.
    """
    settings = settings or EvaluationSettings()
    data = data if isinstance(data, SuperbData) else load_data(data)
    names = parse_tasks(list(tasks) if not isinstance(tasks, str) else tasks)
    _check_data(names, data)
    place = choose_device(device)
    upstream = load_upstream(model, revision=revision, subnet=subnet)
    upstream.model.to(place)
    output = Path(output)
    store = FeatureStore(cache or output / "features", settings.cache_gigabytes, settings.cache_dtype)
    evaluation = _Evaluation(upstream, settings, store, progress)
    # Data that are not there are noticed before anything is written or trained.
    keys = {name: evaluation.key(name, getattr(data, name)) for name in names}
    with locked(output):
        _check_output(output, keys, overwrite)
        (output / "tasks").mkdir(parents=True, exist_ok=True)
        results = _describe(upstream, settings)
        for name, key in keys.items():
            results["tasks"][name] = _finished_or(output, key, evaluation, name, data)
            write_text(output / "results.json", json.dumps(results, indent=2) + "\n")
            write_text(output / "results.md", markdown(results))
    return results


def _check_output(output: Path, keys: dict[str, dict], overwrite: bool) -> None:
    """Raise a ValueError if something would be lost: results of another model, data or settings, or no results."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose another --output")
    entries = output.iterdir() if output.is_dir() else ()
    others = {entry.name for entry in entries if not is_leftover(entry)} - _MADE_HERE
    if others and not (output / "tasks").is_dir():
        raise ValueError(f"{output} holds something else (it has {min(others)!r}, no tasks/); choose another --output")
    for name, key in keys.items():
        stored = _stored(output, name)
        if not overwrite and stored is not None and stored["key"] != key:
            what = next(part for part in (*_PARTS, *key) if stored["key"].get(part) != key.get(part))
            raise ValueError(
                f"{output} holds {name} with another {_PARTS.get(what, what)}; choose another --output, or do it anew "
                "with --overwrite (overwrite=True)"
            )


def _stored(output: Path, name: str) -> dict[str, Any] | None:
    """What is kept of a finished task; `None` if there is nothing. ValueError if it is not what was written."""
    path = output / "tasks" / f"{name}.json"
    if not path.is_file():
        return None
    stored = read_checked(path, "delete it to do the task again")
    if not isinstance(stored.get("key"), dict) or not isinstance(stored.get("result"), dict):
        raise ValueError(f"{path} holds no result of a task; delete it to do the task again")
    return stored


def _check_data(names: list[str], data: SuperbData) -> None:
    for name in names:
        entry: TaskData = getattr(data, name)
        if entry.path is None:
            what = f" ({entry.note})" if entry.note else ""
            raise ValueError(f"no data for {name}{what}: say --data {name}=FOLDER_OR_HUB_ID, or leave the task out")
        if name == "qbe" and entry.validation is None:
            raise ValueError("qbe chooses its layer on validation queries; set --data qbe.validation=SPLIT")


def _describe(upstream: Upstream, settings: EvaluationSettings) -> dict[str, Any]:
    return {
        "model": upstream.name,
        "revision": upstream.revision,
        "subnet": upstream.subnet and upstream.subnet.to_dict(),
        "parameters": upstream.parameters,
        "hidden_states": upstream.num_states,
        "width": upstream.width,
        "fingerprint": upstream.fingerprint,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "machine": describe_machine(upstream.model.device),
        "package_version": __version__,
        "tasks": {},
    }


def _finished_or(output: Path, key: dict, evaluation: "_Evaluation", name: str, data: SuperbData) -> dict[str, Any]:
    """The stored result of a task if it is of the same model, data and settings; else it is done, and stored."""
    stored = _stored(output, name)
    if stored is not None and stored["key"] == key:
        logger.info("%s was done before", name)
        return stored["result"]
    task_data = getattr(data, name)
    result = evaluation.query(task_data) if name == QueryByExample.name else evaluation.probe(name, task_data)
    stored = json.loads(json.dumps({"key": key, "result": result}))
    write_text(output / "tasks" / f"{name}.json", json.dumps(with_checksum(stored), indent=2) + "\n")
    return stored["result"]  # the same, whether it was done now or before


class _Evaluation:
    """One model under one set of settings."""

    def __init__(self, upstream: Upstream, settings: EvaluationSettings, store: FeatureStore, progress: bool):
        self.upstream, self.settings, self.store, self.progress = upstream, settings, store, progress

    def key(self, name: str, data: TaskData) -> dict[str, Any]:
        """What a result depends on, as JSON."""
        settings, rates = self.settings, self.settings.rates_of(name)
        key = {
            "version": HARNESS_VERSION,
            "upstream": self.upstream.fingerprint,
            "data": data.model_dump(mode="json", exclude={"path", "name", "note"}),
            "files": data_fingerprint(data.source(data.test)),
            "trials": data.trials_file and data.trials_file.is_file() and data.trials_file.stat().st_mtime_ns,
            "rates": rates and rates.model_dump(mode="json"),
            "sizes": rates and settings.head_sizes().model_dump(),
        }
        fields = ("seed", "validations", "max_seconds", "max_train_examples", "max_eval_examples", "cache_dtype")
        return json.loads(json.dumps(key | {field: getattr(settings, field) for field in fields}))

    def split(self, data: TaskData, name: str, max_examples: int | None) -> Split:
        selection = Selection(data.source(name), self.settings.max_seconds, max_examples)
        return self.store.split(self.upstream, selection, progress=self.progress)

    def probe(self, name: str, data: TaskData) -> dict[str, Any]:
        """Train and test the head of a task."""
        start, settings, kind = time.perf_counter(), self.settings, PROBED[name]
        splits = {"train": self.split(data, data.train, settings.max_train_examples)}
        if data.validation is not None:
            splits["validation"] = self.split(data, data.validation, settings.max_eval_examples)
        splits["test"] = self.split(data, data.test, settings.max_eval_examples)
        if kind.pooled:
            splits = {split: utterances.reduced(_mean_over_frames) for split, utterances in splits.items()}
        frame = (self.upstream.stride, self.upstream.field)
        task = kind(data, splits["train"].rows, settings.head_sizes(), frame)
        rates = settings.rates_of(name)
        probe = train_head(
            task,
            splits["train"],
            splits.get("validation"),
            (self.upstream.num_states, self.upstream.width),
            rates,
            seed=settings.seed,
            validations=settings.validations,
            device=self.upstream.model.device,
            progress=self.progress,
        )
        return {
            "metrics": task.test(probe.head, task.labelled(splits["test"].once())),
            "validation": probe.validation,
            "kept_step": probe.kept_step,
            "loss": probe.loss,
            "refused": probe.refused,
            "skipped": probe.skipped,
            "layer_weights": probe.head.weighted_sum.shares(),
            **rates.model_dump(mode="json"),
            "head_parameters": sum(parameter.numel() for parameter in probe.head.parameters()),
            "seed": settings.seed,
            "data": _describe_data(data, splits),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def query(self, data: TaskData) -> dict[str, Any]:
        """Choose the layer on the validation queries and look for the test queries with it."""
        start, limit = time.perf_counter(), self.settings.max_eval_examples
        splits = {
            "documents": self.split(data, data.documents, None),
            "validation": self.split(data, data.validation, limit),
            "test": self.split(data, data.test, limit),
        }
        if not all(split.is_cached for split in splits.values()):
            raise ValueError("qbe compares all queries with all documents: their features must fit the cache")
        task = QueryByExample(data)
        validation, states = splits["validation"], range(self.upstream.num_states)
        values = task.layer_values(validation, splits["documents"], states, progress=self.progress)
        best = max(values, key=values.get)
        found = task.layer_values(splits["test"], splits["documents"], [best], progress=self.progress)
        return {
            "metrics": {"mtwv": found[best]},
            "validation": {str(state): {"mtwv": value} for state, value in values.items()},
            "layer": best,
            "steps": 0,
            "seed": self.settings.seed,
            "data": _describe_data(data, splits),
            "seconds": round(time.perf_counter() - start, 1),
        }


def _mean_over_frames(features: np.ndarray) -> np.ndarray:
    """`(frames, states, width)` to one frame, float32."""
    return features.mean(0, dtype=np.float32, keepdims=True)


def _describe_data(data: TaskData, splits: dict[str, Split]) -> dict[str, Any]:
    def facts(split: Split) -> dict[str, Any]:
        counts = split.counts
        dropped = {name: number for name, number in counts.items() if name != "used" and number}
        return {"examples": counts["used"], "dropped": dropped, "seconds": split.seconds, "cached": split.is_cached}

    names = {"train": data.train, "validation": data.validation, "test": data.test, "documents": data.documents}
    return {
        "name": data.title,
        "config_name": data.config_name,
        "splits": {split: {"name": names[split], **facts(utterances)} for split, utterances in splits.items()},
    }

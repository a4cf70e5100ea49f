"""What an evaluation is told: data, rates of the heads, their sizes, and how much of everything."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic import model_validator as checked

from lighthubert_hf.hub.card import is_hub_id
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.recipes.loading import parse_recipe, read_recipe, set_values
from lighthubert_hf.training.recipes.sections import (
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    ReadingSection,
    Seconds,
    Section,
    Seed,
    Size,
    Small,
)

TaskName = Literal["pr", "asr", "ks", "ic", "er", "sid", "asv", "sd", "sf", "qbe"]
TASKS: tuple[str, ...] = ("pr", "asr", "ks", "ic", "er", "sid", "asv", "sd", "sf", "qbe")


class TaskData(ReadingSection):
    """The data of one task. Splits that a task does not use are not read."""

    path: PathText | list[PathText] | None = Field(None, description="folder, glob, URL or Hub id")
    train: str = "train"
    validation: str | None = Field("validation", description="which head is kept is decided on it; null: the last one")
    test: str = "test"
    documents: str = Field("documents", description="what queries are looked for in ('qbe')")
    columns: dict[str, str] = Field({}, description="columns that are called otherwise: what it is to its name")
    trials: PathText | None = Field(
        None,
        description="file of lines '1 ID ID' or '0 ID ID' ('asv'); null: the folder's trials.txt, or all pairs",
    )
    name: str | None = Field(None, description="what results call the data; null: the path's last name or the Hub id")
    note: str = ""

    @property
    def title(self) -> str:
        """What results and model cards call the data. Folders by their last name: the rest is of one machine."""
        first = self.path if isinstance(self.path, str) else str(self.path and self.path[0])
        return self.name or (first if is_hub_id(first) and not Path(first).exists() else Path(first).name)

    @property
    def trials_file(self) -> Path | None:
        if self.trials is not None:
            return Path(self.trials)
        beside = Path(self.path) / "trials.txt" if isinstance(self.path, str) else None
        return beside if beside is not None and beside.is_file() else None

    def source(self, split: str) -> AudioSource:
        path = tuple(self.path) if isinstance(self.path, list) else self.path
        where = {"channel": self.channel, "allow_paths": self.allow_paths}
        return AudioSource(path, split, self.config_name, self.audio_column, all_columns=True, **where)


class SuperbData(Section):
    """The data of all tasks."""

    pr: TaskData = TaskData()
    asr: TaskData = TaskData()
    ks: TaskData = TaskData()
    ic: TaskData = TaskData()
    er: TaskData = TaskData()
    sid: TaskData = TaskData()
    asv: TaskData = TaskData()
    sd: TaskData = TaskData()
    sf: TaskData = TaskData()
    qbe: TaskData = TaskData()


class Rates(Section):
    """How a head is trained. `batch_size` is in utterances."""

    learning_rate: PositiveFloat
    steps: NonNegativeInt
    batch_size: Small = 32
    optimizer: Literal["adam", "adamw"] = "adam"
    max_grad_norm: PositiveFloat = 1.0


class HeadSizes(Section):
    """Widths of the heads' layers; the defaults are SUPERB's."""

    projection: Size = Field(256, description="of the linear heads")
    recurrent_projection: Size = Field(1024, description="in front of the LSTMs of 'asr' and 'sf'")
    recurrent: Size = Field(1024, description="of these LSTMs, each direction")
    xvector: Size = 512
    xvector_pooled: Size = 1500
    diarization: Size = 512


SUPERB_RATES = {
    "pr": Rates(learning_rate=1e-2, steps=100_000),
    "asr": Rates(learning_rate=1e-4, steps=200_000),
    "ks": Rates(learning_rate=1e-4, steps=200_000),
    "ic": Rates(learning_rate=1e-4, steps=200_000),
    "er": Rates(learning_rate=1e-4, steps=30_000),
    "sid": Rates(learning_rate=1e-4, steps=200_000),
    "asv": Rates(learning_rate=1e-4, steps=200_000, batch_size=50, optimizer="adamw", max_grad_norm=1e3),
    "sd": Rates(learning_rate=1e-4, steps=30_000),
    "sf": Rates(learning_rate=1e-4, steps=200_000),
}
# The rates LightHuBERT's authors found for their models (issue 2 of the original repository).
LIGHTHUBERT_LEARNING_RATES = {"pr": 5e-4, "sd": 5e-4, "asv": 5e-5}
SID_LEARNING_RATES = {"lighthubert-small": 5e-3, "lighthubert-base": 5e-2, "lighthubert-stage1": 1e-2}
# Small heads and high rates, for models and data of minutes on a CPU: nobody's benchmark.
TINY_RATES = {
    "pr": Rates(learning_rate=1e-2, steps=150, batch_size=16),
    "asr": Rates(learning_rate=3e-3, steps=150, batch_size=16),
    "ks": Rates(learning_rate=5e-3, steps=200),
    "ic": Rates(learning_rate=5e-3, steps=200),
    "er": Rates(learning_rate=5e-3, steps=200),
    "sid": Rates(learning_rate=5e-3, steps=200),
    "asv": Rates(learning_rate=2e-3, steps=150, optimizer="adamw", max_grad_norm=1e3),
    "sd": Rates(learning_rate=3e-3, steps=100, batch_size=16),
    "sf": Rates(learning_rate=3e-3, steps=150, batch_size=16),
}
TINY_SIZES = HeadSizes(
    projection=128, recurrent_projection=96, recurrent=96, xvector=96, xvector_pooled=192, diarization=96
)
Preset = Literal["superb", "lighthubert-small", "lighthubert-base", "lighthubert-stage1", "tiny"]


class EvaluationSettings(Section):
    """How to evaluate.

    `preset` sets rates and sizes of the heads; the fields below it change them, for all tasks or (`rates`) for one.
    """

    preset: Preset = "superb"
    rates: dict[TaskName, dict[str, Any]] = Field({}, description="fields of `Rates` to change, by task")
    sizes: dict[str, Size] = Field({}, description="fields of `HeadSizes` to change")
    steps: PositiveInt | None = Field(None, description="of every task")
    scale: PositiveFloat = Field(1.0, description="share of the steps to train")
    batch_size: Small | None = Field(None, description="of every task")
    learning_rate: PositiveFloat | None = Field(None, description="of every task")
    validations: Small = Field(5, description="how often heads are compared on the validation split")
    seed: Seed = 0
    max_seconds: Seconds | None = Field(None, description="longer utterances are left out")
    max_train_examples: PositiveInt | None = None
    max_eval_examples: PositiveInt | None = Field(None, description="of each split for validation and test")
    cache_gigabytes: NonNegativeFloat = 20.0
    cache_dtype: Literal["float16", "float32"] = "float16"

    @checked(mode="after")
    def _rates_and_sizes_exist(self):
        if "qbe" in self.rates:
            raise ValueError("'qbe' trains nothing and has no rates; remove it from rates")
        for task in self.rates:
            self.rates_of(task)
        self.head_sizes()
        return self

    def rates_of(self, task: str) -> Rates | None:
        """The rates of a task; `None` for the one that trains nothing."""
        if task == "qbe":
            return None
        rates = (TINY_RATES if self.preset == "tiny" else SUPERB_RATES)[task].model_dump()
        if self.preset.startswith("lighthubert"):
            known = LIGHTHUBERT_LEARNING_RATES | {"sid": SID_LEARNING_RATES[self.preset]}
            rates["learning_rate"] = known.get(task, rates["learning_rate"])
        asked = {name: getattr(self, name) for name in ("learning_rate", "steps", "batch_size")}
        rates |= {name: value for name, value in asked.items() if value is not None} | self.rates.get(task, {})
        rates["steps"] = max(1, round(rates["steps"] * self.scale))
        return parse_recipe(Rates, rates)

    def head_sizes(self) -> HeadSizes:
        sizes = TINY_SIZES if self.preset == "tiny" else HeadSizes()
        return parse_recipe(HeadSizes, sizes.model_dump() | self.sizes)


def load_data(overrides: Sequence[str] = (), reading: Mapping[str, Any] | None = None) -> SuperbData:
    """The table of datasets with changes.

    Args:
        overrides: `ks=FOLDER_OR_ID` (splits and columns called as in docs/evaluation.md), or `ks.KEY=VALUE` for one
            key of a `TaskData`, such as `ks.test=validation` or `ks.columns.label=keyword`.
        reading: Keys of a `TaskData` for all tasks, such as `{"channel": 0}`.

    Raises:
        ValueError: An unknown task or key, or a wrong value; the message is one line.
    """
    table = resources.files("lighthubert_hf.training.superb") / "datasets.yaml"
    with resources.as_file(table) as path:
        data = read_recipe(SuperbData, path)
        for task in TASKS if reading else ():
            data[task] = {**(data.get(task) or {}), **reading}
        return parse_recipe(SuperbData, set_values(data, [_whole(override) for override in overrides]))


def _whole(override: str) -> str:
    """`ks=FOLDER` as the override of the whole entry, which it means."""
    match = re.fullmatch(r"(\w+)=([^{].*)", override)
    return f"{match[1]}={json.dumps({'path': match[2]})}" if match else override

"""The recipe study's sizes, and the ideas it tries."""

from dataclasses import dataclass
from typing import Any

from settings import SETTINGS, STUDIES, Setting


@dataclass(frozen=True)
class RecipeSetting(Setting):
    """Args beyond `Setting`'s:
    steps: of a supernet, and of each student trained alone.
    screened_steps: of the ideas that are only screened, and of what they are compared with.
    screened_seed: in which they are.
    retraining_steps: of a cut subnet.
    order_seconds: audio that heads, units and channels are ordered on.
    embedded_utterances: that label-free scores are computed on.
    """

    steps: int = 400
    screened_steps: int = 200
    screened_seed: int = 0
    retraining_steps: int = 40
    order_seconds: float = 60.0
    embedded_utterances: int = 60


RECIPE_SETTINGS = {
    "default": RecipeSetting.of(STUDIES),
    "tiny": RecipeSetting.of(
        SETTINGS["tiny"], steps=4, screened_steps=2, retraining_steps=1, order_seconds=2.0, embedded_utterances=4
    ),
}

WHOLE_GROUPS = {"config": {"whole_position_groups": True}}
HEAD = {"fit_head_on": 60.0}
ORDER = {"order_on": {"seconds": 60.0}}
START = {"student": WHOLE_GROUPS | HEAD}
ORDERED = {"student": WHOLE_GROUPS | HEAD | ORDER}
WIDTH_ORDERED = {"student": WHOLE_GROUPS | HEAD | {"order_on": {"seconds": 60.0, "parts": ["heads", "ffn", "width"]}}}


def _with(**config) -> dict[str, Any]:
    """The ordered start with more of a config."""
    return {"student": ORDERED["student"] | {"config": WHOLE_GROUPS["config"] | config}}


SUBSPACES = [{"hidden_size": [48, 64]}, {"hidden_size": [96, 112, 128]}]
LOW_END = {"schedule": {"kind": "linear", "warmup": 0.05, "final_scale": 0.0}}
# What a supernet's recipe says beyond the plain one: the teacher's weights as they are, a random head, split groups, a
# random subnet a step. What a student trained alone can take over of it, it takes over: see `recipe.py`.
IDEAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fitted head": {"student": HEAD},
    "fitted head and low end": {"student": HEAD} | LOW_END,
    "whole groups": {"student": WHOLE_GROUPS},
    "start": START,
    "ordered start": ORDERED,
    "start ordered by weights": START | {"start": "weights"},
    "width ordered, too": WIDTH_ORDERED,
    "own heads": _with(head_per_width=True),
    "own norms and heads": _with(head_per_width=True, norm_per_width=True),
    "averaged weights": ORDERED | {"averaging": {"share": 0.2}},
    "half the learning rate": ORDERED | {"optimizer": {"lr": 5e-4}},
    "twice the learning rate": ORDERED | {"optimizer": {"lr": 2e-3}},
    "low end": ORDERED | LOW_END,
    "in proportion": ORDERED | {"sampler": {"spread": 0.15}},
    "in proportion, width ordered": WIDTH_ORDERED | {"sampler": {"spread": 0.15}},
    "narrow ones count less": ORDERED | {"sampler": {"width_exponent": 1.0}},
    "two sub-spaces": ORDERED
    | {"sampler": {"subspaces": [{"hidden_size": [48, 64]}, {"hidden_size": [96, 112, 128]}]}},
    "deep targets first": ORDERED | {"deep_targets": {"share": 0.3}},
    "two subnets a step": ORDERED | {"sampler": {"num_random": 2}},
    "sandwich": ORDERED | {"sampler": {"kind": "sandwich"}},
}
# Those that are screened for students trained alone as well, and the one that all seeds are run with.
ALONE = (
    "plain",
    "fitted head and low end",
    "start",
    "ordered start",
    "averaged weights",
    "half the learning rate",
    "low end",
)
WINNER = "in proportion, width ordered"

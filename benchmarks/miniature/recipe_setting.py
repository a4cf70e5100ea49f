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

LOW_END = {"schedule": {"kind": "linear", "warmup": 0.05, "final_scale": 0.0}}
# What a supernet's recipe says beyond the plain one (the teacher's weights as they are, a random subnet a step).
# What a student trained alone can take over of it, it takes over: see `recipe.py`.
IDEAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "order by weights": {"start": "weights"},
    "low end": LOW_END,
    "twice the learning rate": {"optimizer": {"lr": 2e-3}},
    "two subnets a step": {"sampler": {"kind": "random", "num_random": 2}},
    "sandwich": {"sampler": {"kind": "sandwich"}},
    "fitted head": {"student": {"fit_head_on": 60.0}},
    "fitted head and low end": {"student": {"fit_head_on": 60.0}} | LOW_END,
    "three widths": {"widths": (64, 112, 128)},
}

# Those that are screened for students trained alone as well, and the one that all seeds are run with.
ALONE = ("plain", "low end", "fitted head and low end")
WINNER = "fitted head and low end"

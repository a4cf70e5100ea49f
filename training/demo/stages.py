"""The demo's distillation: a supernet that starts as its teacher, front end first, then everything together."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.recipes.loading import parse_recipe
from lighthubert_hf.training.runs.run_folder import MODEL

from .settings import DemoSettings, num_target_layers, search_space

FRONT_END, SUPERNET = "front-end", "supernet"


def stages(
    folder: Path, settings: DemoSettings, source: dict[str, Any], teacher: str, config: PreTrainedConfig
) -> list[DistillationRecipe]:
    """Both recipes, in `folder/front-end` and `folder/supernet`.

    Args:
        source: The training speech, as recipes write it.
        teacher: Folder or Hub id.
        config: The teacher's.
    """
    first = {
        "student": {
            "init": "teacher",
            "search_space": search_space(config),
            "order_on": {"seconds": settings.measured_on_seconds},
            "config": {"whole_position_groups": True},
        },
        "objective": {"name": "front_end"},
        "sampler": {"kind": "random", "num_random": 2},
    }
    second = {
        "student": {"init": str(folder / FRONT_END / MODEL), "fit_head_on": settings.measured_on_seconds},
        "objective": {"name": "lighthubert", "num_target_layers": num_target_layers(config)},
        "sampler": {"kind": "random"},
    }
    steps = {FRONT_END: settings.front_end_steps, SUPERNET: settings.supernet_steps}
    return [
        parse_recipe(
            DistillationRecipe,
            {
                "name": name,
                "output_dir": str(folder / name),
                "seed": settings.seed,
                "teacher": {"path": teacher},
                "masking": None,
                "data": {
                    "sources": [source],
                    "batch_seconds": settings.batch_seconds,
                    "crop_seconds": min(10.0, settings.batch_seconds),
                    "window_size": settings.window_size,
                    "num_workers": 0,
                },
                "optimizer": {"lr": 2e-3},
                "schedule": {"kind": "linear", "warmup": 0.05, "final_scale": 0.0},
                "training": {"steps": steps[name]},
                "checkpoint": {"every": max(steps[name] // 4, 1), "keep": 1},
                "logging": {"every": 50},
            }
            | stage,
        )
        for name, stage in ((FRONT_END, first), (SUPERNET, second))
    ]

"""The picked subnets as recognisers: each is trained on the labels that its teacher was trained on."""

from pathlib import Path
from typing import Any

from lighthubert_hf.training.finetuning.recipe import CtcRecipe

from .settings import DemoSettings

_MAX_EVAL_EXAMPLES = 200  # of a split; those of the demo's own corpus are smaller


def character_error_rates(
    model: Path, output: Path, settings: DemoSettings, train: dict[str, Any], held_out: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Train a recogniser from the encoder in `model`, or what is left of that; its character error rates by split.

    Args:
        output: The run's folder; the recogniser is `output/model`.
        train: Labelled speech, as recipes write a source.
        held_out: Sources by split.
    """
    from lighthubert_hf.training.finetuning.run import finetune

    metrics = finetune(_recipe(model, output, settings, train, held_out), quiet=False)
    return {split: metrics["evaluation"][split]["cer"] for split in held_out}


def _recipe(
    model: Path, output: Path, settings: DemoSettings, train: dict[str, Any], held_out: dict[str, dict[str, Any]]
) -> CtcRecipe:
    return CtcRecipe.model_validate(
        {
            "name": output.name,
            "output_dir": str(output),
            "seed": settings.seed,
            "model": {"path": str(model), "dropout": 0.0},
            "data": {
                "sources": [train],
                "evaluation": {split: [source] for split, source in held_out.items()},
                "max_eval_examples": _MAX_EVAL_EXAMPLES,
                "batch_seconds": 24.0,
                "max_seconds": 16.0,
            },
            # The head finds the letters in what the encoder has learnt, then all learn together.
            "freezing": {"freeze": "front_end", "head_only_steps": settings.ctc_steps // 8},
            "spec_augment": None,
            "optimizer": {"lr": 2e-3, "max_grad_norm": 1.0},
            "schedule": {"kind": "linear", "warmup": 0.05, "final_scale": 0.0},
            "training": {"steps": settings.ctc_steps, "head_lr": 1e-2},
        }
    )

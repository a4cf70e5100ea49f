"""What a run tells the world: a live line, `log.jsonl`, and trackers if asked for."""

import json
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lighthubert_hf.files import read_log, write_text
from lighthubert_hf.progress import progress_bar, write_line

from .recipe import DistillationRecipe
from .step import StepResult


class TrainingLog:
    """Collects the results of steps on the main process; a no-op on the others.

    `log.jsonl` gets one object per `logging.every` steps: `step`, `loss` (mean over the steps since the last line),
    `lr`, `gradient_norm`, `audio_seconds` and `skipped_steps` (both since the start), `audio_per_second` (seconds of
    audio per second, of this line's steps), and one per evaluation: `step`, `validation` (subnet to loss). Everything
    but `audio_per_second` is the same in a run that was interrupted and resumed.
    """

    def __init__(
        self,
        recipe: DistillationRecipe,
        accelerator: Accelerator,
        start: int,
        pending_losses: list[float],
        show_progress: bool,
    ):
        """`start`: steps done; `pending_losses`: those of the last of them, not yet in a line."""
        self.recipe, self.accelerator = recipe, accelerator
        self.path = Path(recipe.output_dir) / "log.jsonl"
        self.losses = list(pending_losses)
        self.seconds, self.since = 0.0, time.perf_counter()
        self.active = accelerator.is_main_process
        if self.active:
            _truncate(self.path, start)
        if recipe.logging.trackers:
            accelerator.init_trackers(recipe.logging.project, config=_flat(recipe.model_dump(mode="json")))
        self.shown = self.active and show_progress
        self.bar = progress_bar(
            None, recipe.name, total=recipe.training.steps, done=start, unit="steps", shown=self.shown
        )

    def step(self, step: int, result: StepResult, lr: float, audio_seconds: float, skipped_steps: int) -> None:
        """Take in the result of `step` (1-based: steps done)."""
        if not self.active:
            return
        self.bar.update()
        self.seconds += result.audio_seconds
        if not result.skipped:
            self.losses.append(result.loss)
        every = self.recipe.logging.every
        if step % every and step != self.recipe.training.steps:
            return
        now = time.perf_counter()
        rate = self.seconds / (now - self.since)
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        self.bar.set_postfix_str(
            f"loss {'–' if loss is None else format(loss, '.4f')}, {rate:.0f} s audio/s"
            + (f", {skipped_steps} skipped" if skipped_steps else "")
        )
        self._write(
            {
                "step": step,
                "loss": loss,
                "lr": lr,
                "gradient_norm": result.gradient_norm,
                "audio_seconds": audio_seconds,
                "skipped_steps": skipped_steps,
                "audio_per_second": rate,
            }
        )
        self.losses, self.seconds, self.since = [], 0.0, now

    def validation(self, step: int, losses: dict[str, float], seconds: float) -> None:
        """Take in an evaluation; the `seconds` it took do not count as training."""
        if not self.active:
            return
        self.since += seconds
        if self.shown:
            write_line(f"step {step:,}, validation loss: " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))
        self._write({"step": step, "validation": losses})

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:  # not end_training, which also ends the process group
            if self.active:
                tracker.finish()

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self.recipe.logging.trackers:
            values = {key: value for key, value in _flat(entry).items() if key != "step" and value is not None}
            self.accelerator.log(values, step=entry["step"])


def _truncate(path: Path, step: int) -> None:
    """Drop what was logged after `step`: the run goes on from there and will log it again."""
    kept = [entry for entry in read_log(path) if entry["step"] <= step]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as `a/b`, with what trackers accept as values."""
    out = {}
    for key, value in data.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}/")
        else:
            out[prefix + key] = value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
    return out

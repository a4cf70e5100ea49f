"""The live line of a fine-tuning."""

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from lighthubert_hf.progress import progress_bar, write_line


class ProgressLine(TrainerCallback):
    """Where the training stands, its loss, and the scores in between; on the main process.

    Args:
        name: What is trained.
    """

    def __init__(self, name: str):
        self.name = name
        self._steps = self._scoring = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            steps = {"total": state.max_steps, "done": state.global_step, "unit": "steps"}
            self._steps = progress_bar(None, self.name, **steps)

    def on_step_end(self, args, state, control, **kwargs):
        if self._steps is not None:
            self._steps.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._steps is not None and "loss" in logs:
            self._steps.set_postfix_str(f"loss {float(logs['loss']):.4f}")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if self._scoring is None and has_length(eval_dataloader):
            self._scoring = progress_bar(None, "scoring", total=len(eval_dataloader), unit="batches")
        if self._scoring is not None:
            self._scoring.update()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self._scoring is not None:
            self._scoring.close()
            self._scoring = None
        if self._steps is not None:
            said = [_figure(name.partition("_")[2], value) for name, value in metrics.items() if _is_score(name)]
            write_line(f"step {state.global_step:,}: {', '.join(said)}")

    def on_train_end(self, args, state, control, **kwargs):
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def _is_score(name: str) -> bool:
    """Not a time or a rate, which transformers puts beside the scores."""
    return name.startswith("eval_") and not name.endswith(("runtime", "_per_second", "_time"))


def _figure(name: str, value: float) -> str:
    return f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.1%}"

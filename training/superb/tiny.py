"""The whole harness in minutes on a CPU, on synthetic speech: shows that it works, and little about the model."""

from pathlib import Path

from lighthubert_hf.training.synthetic.tasks import synthesise_task

from .settings import SuperbData

NAME = "synthetic speech"


def synthetic_data(
    folder: str | Path, tasks: list[str], *, examples: int = 240, held_out_examples: int = 60, seed: int = 0
) -> SuperbData:
    """Synthesise the data of `tasks` in subfolders of `folder`, or reuse what is there.

    Args:
        examples, held_out_examples: Utterances in the training split and in each other one.

    Raises:
        ValueError: Something else is in the way.
        ImportError: espeakng-loader is not installed.
    """
    entries = {}
    for task in tasks:
        # Phonemes come with transcripts, so two tasks share one set and its features.
        kind = "pr" if task == "asr" else task
        place = Path(folder) / kind
        synthesise_task(kind, place, examples=examples, held_out_examples=held_out_examples, seed=seed)
        entries[task] = {"path": str(place), "name": NAME}
    return SuperbData(**entries)

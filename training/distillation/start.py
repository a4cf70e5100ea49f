"""The student that a run begins with: built, its parts ordered on training audio, the same on all processes."""

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.audio.batching import Batch, training_loader
from lighthubert_hf.training.audio.sources import AudioSource

from .channel_order import order_channels
from .gradients import broadcast_parameters
from .importance import order_student
from .recipe import DistillationRecipe
from .student import build_student


def new_student(
    recipe: DistillationRecipe,
    teacher: PreTrainedModel,
    sources: Sequence[AudioSource],
    accelerator: Accelerator,
    show_progress: bool = False,
) -> tuple[LightHubertForPreTraining, torch.Tensor | None]:
    """As `build_student`; what the recipe wants in another order is ordered before a subnet is extracted.

    The first process listens and orders alone, and all take its order.

    Args:
        sources: The training audio.

    Returns:
        The student; and which of the teacher's channels each channel of its stream is, if its width was ordered.
    """
    moved: list[torch.Tensor] = []

    def order(student: LightHubertForPreTraining) -> None:
        settings, device = recipe.student, accelerator.device
        student.to(device)
        if settings.order_on and "width" in settings.order_on.parts:
            moved.append(torch.arange(student.config.hidden_size, device=device))
        if accelerator.is_main_process and settings.order_channels_on:
            waveforms = _first_audio(recipe, sources, accelerator, settings.order_channels_on)
            order_channels(student.lighthubert, waveforms, seed=recipe.seed)
        if accelerator.is_main_process and settings.order_on:
            waveforms = _first_audio(recipe, sources, accelerator, settings.order_on.seconds)
            shown = progress_bar(waveforms, "importance", unit="clips", shown=show_progress)
            whole = settings.init == "teacher"
            places = order_student(student, shown, settings.order_on, all_weights=whole, seed=recipe.seed)
            if places is not None:
                moved[0].copy_(places)
        broadcast_parameters([*student.parameters(), *moved])  # of a front end that is frozen, too

    ordered = recipe.student.order_channels_on or recipe.student.order_on
    student = build_student(recipe.student, teacher, recipe.seed, order if ordered else None)
    return student, moved[0].cpu() if moved else None


def first_batches(
    recipe: DistillationRecipe,
    sources: Sequence[AudioSource],
    accelerator: Accelerator,
    enough: float,
    equal_lengths: bool = False,
) -> Iterator[Batch]:
    """The first process's training audio from its beginning, until it is `enough` seconds."""
    options = recipe.data.model_dump(exclude={"sources", "synthetic_minutes"})
    options |= {"num_workers": 0, "equal_lengths": equal_lengths}
    loader = training_loader(list(sources), seed=recipe.seed, rank=0, world_size=accelerator.num_processes, **options)
    seconds = 0.0
    for batch, _ in loader:
        yield batch
        seconds += float(batch["attention_mask"].sum()) / SAMPLING_RATE
        if seconds >= enough:
            return


def _first_audio(
    recipe: DistillationRecipe, sources: Sequence[AudioSource], accelerator: Accelerator, enough: float
) -> list[torch.Tensor]:
    """The same as waveforms, `(samples,)` each."""
    waveforms = []
    for batch in first_batches(recipe, sources, accelerator, enough, bool(recipe.data.equal_lengths)):
        for row, mask in zip(batch["input_values"], batch["attention_mask"], strict=True):
            waveforms.append(row[: int(mask.sum())].to(accelerator.device))
    return waveforms

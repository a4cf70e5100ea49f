"""Training one head on frozen features: a plain loop, the same bits for the same seed."""

import copy
import logging
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.runs.memory import trim_every_so_often

from .settings import Rates
from .splits import Split
from .task import FeatureBatch, Task, make_batch

logger = logging.getLogger(__name__)

# So many batches without a usable utterance in a row, and there is none.
_MOST_BARREN = 1000


@dataclass
class Probe:
    """A trained head and how it came about.

    Args:
        head: In evaluation mode.
        kept_step: The step after which it was best on the validation split.
        validation: The metrics there, by step.
        loss: Mean over the last tenth of the steps.
        refused: Training utterances that cannot be trained on, such as those with more labels than frames.
        skipped: Steps not taken because a gradient was not finite.
    """

    head: nn.Module
    kept_step: int
    validation: dict[int, dict[str, float]] = field(default_factory=dict)
    loss: float = float("nan")
    refused: int = 0
    skipped: int = 0


def train_head(
    task: Task,
    train: Split,
    validation: Split | None,
    shape: tuple[int, int],
    rates: Rates,
    *,
    seed: int,
    validations: int = 5,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Probe:
    """Train a head with Adam for a fixed number of steps; keep the one that is best on the validation split.

    Args:
        task: What to learn.
        train, validation: Utterances with features. Without the latter the last head is kept.
        shape: States and width of the features.
        rates: Learning rate, steps, batch size.
        seed: Of weights, dropout, SpecAugment and order.
        validations: How often heads are compared, at even distances.

    Raises:
        ValueError: No training utterance can be trained on, or the loss is not finite.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _train(task, train, validation, task.make_head(*shape).to(device), rates, seed, validations, progress)


def _train(task, train, validation, head, rates: Rates, seed: int, validations: int, progress: bool) -> Probe:
    optimizer = _optimizer(head, rates)
    batches = _Batches(task, train, rates.batch_size, seed, next(head.parameters()).device)
    checks = {round(rates.steps * number / validations) for number in range(1, validations + 1)} | {rates.steps}
    probe, losses, best = Probe(head, rates.steps), [], None
    with progress_bar(None, f"head of {task.name}", total=rates.steps, unit="steps", shown=progress) as bar:
        for step in range(1, rates.steps + 1):
            head.train()
            loss = task.loss(head, next(batches))
            if not torch.isfinite(loss):
                raise ValueError(f"{task.name}: the loss is {loss.item()} in step {step}; lower the learning rate")
            optimizer.zero_grad()
            loss.backward()
            if torch.isfinite(nn.utils.clip_grad_norm_(head.parameters(), rates.max_grad_norm)):
                optimizer.step()
            else:
                probe.skipped += 1
            trim_every_so_often(step)
            losses.append(loss.detach())
            bar.update()
            if step % 10 == 0:
                bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            if validation is not None and step in checks:
                probe.validation[step] = task.evaluate(head, task.labelled(validation.once()))
                value = _goodness(task, probe.validation[step])
                if best is None or value > best:
                    best, probe.kept_step, kept = value, step, copy.deepcopy(head.state_dict())
    if best is not None:
        head.load_state_dict(kept)
    head.eval()
    probe.loss = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item()
    probe.refused = len(batches.refused)
    if probe.refused:
        logger.warning("%s: %d training utterances cannot be trained on and were left out", task.name, probe.refused)
    return probe


def _optimizer(head: nn.Module, rates: Rates) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if rates.optimizer == "adamw" else torch.optim.Adam
    return kind(head.parameters(), lr=rates.learning_rate)


def _goodness(task: Task, scores: dict[str, float]) -> float:
    metric = task.metrics[0]
    return scores[metric.name] if metric.higher_is_better else -scores[metric.name]


class _Batches:
    """Endless batches of what can be trained on; remembers what cannot."""

    def __init__(self, task: Task, split: Split, size: int, seed: int, device: torch.device):
        self.task, self.device, self.refused = task, device, set()
        self._batches = split.batches(size, seed)

    def __next__(self) -> FeatureBatch:
        for utterances in islice(self._batches, _MOST_BARREN):
            usable = [one for one in utterances if self.task.is_labelled(one.row) and self.task.accepts(one)]
            self.refused |= {utterance.id for utterance in utterances} - {utterance.id for utterance in usable}
            if usable:
                return make_batch(usable, self.device)
        raise ValueError(
            f"{self.task.name}: none of the training utterances of {self.task.data.path} can be trained on; "
            "check that they are longer than their labels"
        )

"""The distillation loss of subnets on validation audio, at the price of one encoder pass each.

The teacher's targets do not depend on the subnet, so they are computed once. Nor do the student's convolutional
features, unless the search space has a choice of channels: then the audio is kept and the front end runs with each
subnet.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.costs.profiling import macs_per_second, shape
from lighthubert_hf.files import scratch_folder
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.search.score import Score
from lighthubert_hf.training.audio.batching import Batch, validation_loader
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.distillation.objectives.lighthubert import LightHubertObjectiveSection

from .objectives import LightHubertObjective
from .recipe import TeacherSection
from .teacher import Teacher, load_teacher

Targets = Callable[[Batch], torch.Tensor]


class DistillationScore:
    r"""Mean L1 distance per valid frame of validation audio between a subnet's predictions and the teacher's targets.

    $$ \frac{1}{\sum_b \lvert V_b \rvert} \sum_b \sum_{t \in V_b} \frac{1}{D} \lVert W z_t - y_t \rVert_1 $$

    That is the loss of `LightHubertForPreTraining` on unmasked audio, over all batches.

    Args:
        model: the supernet with its prediction head.
        batches: `{"input_values": (B, samples), "attention_mask": (B, samples) or None}`, any number.
        targets: computes what to predict for a batch, `(B, frames, target_size)`; see `teacher_targets`.
        memory_limit: bytes of features and targets to keep in memory, on the model's device.
        cache_folder: where to keep what does not fit, in a temporary folder that is deleted with the score.
        disk_limit: bytes to keep there at most.
        teacher: what is to be said of the model whose targets these are; see `Score`.

    Raises:
        ValueError: if there is no batch, the targets do not fit the model's frames, or the limits are too low.
    """

    def __init__(
        self,
        model: LightHubertForPreTraining,
        batches: Iterable[Batch],
        targets: Targets,
        *,
        memory_limit: int = 4 * 2**30,
        cache_folder: str | Path | None = None,
        disk_limit: int = 64 * 2**30,
        progress: bool = True,
        teacher: Mapping[str, Any] | None = None,
    ):
        self.model, self.teacher = model.eval(), teacher
        self._cache = _Cache(memory_limit, cache_folder, disk_limit)
        self.num_clips, samples = 0, 0
        for batch in progress_bar(batches, "teacher targets", unit="batches", shown=progress):
            prepared = _prepare(model, batch, targets)
            self.num_clips += len(prepared.lengths)
            samples += int(prepared.lengths.sum())
            self._cache.append(prepared)
        if not self.num_clips:
            raise ValueError("there is no validation audio to score subnets on")
        self.seconds = samples / SAMPLING_RATE
        self.predicting_the_mean = self._loss_of_the_mean()
        self._same_front_end = weakref.WeakSet([model])

    def __call__(self, subnet: Subnet | None) -> float:
        """`None`: of a static model."""
        return self.of(self.model, subnet)

    @torch.inference_mode()
    def of(self, model: LightHubertForPreTraining, subnet: Subnet | None) -> float:
        """The loss of `subnet` of another supernet with the same front end, an earlier checkpoint for example.

        Where there is a choice of channels it may differ. `None`: of a static model.
        """
        if model not in self._same_front_end:
            _check_front_end(model, self.model)
            self._same_front_end.add(model.eval())
        total = count = 0.0
        with contextlib.nullcontext() if subnet is None else model.subnet_activated(subnet):
            for batch in self._cache:
                features = batch.input
                if model.config.has_elastic_front_end:
                    features = model.lighthubert.extract_features(features, batch.attention_mask)
                outputs = model.lighthubert.encode(features, batch.attention_mask)
                predictions = model.prediction_head(outputs.last_hidden_state).float()
                errors = (predictions[:, : batch.targets.shape[1]] - batch.targets).abs().mean(-1)
                valid = batch.valid(model)
                total += torch.where(valid, errors, 0).sum(dtype=torch.float64).item()
                count += valid.sum().item()
        return total / count

    @property
    def fingerprint(self) -> str:
        """Tells scores on other audio or of another teacher apart."""
        return f"{self.num_clips} clips, {self.seconds:.2f} s, mean predictor {self.predicting_the_mean:.4g}"

    def as_score(self) -> Score:
        """For `lighthubert_hf.search.run.search`."""
        described = f"{self.num_clips} clips, {self.seconds:.0f} s of audio"
        return Score(
            self,
            "loss",
            fingerprint=self.fingerprint,
            description=described,
            baseline=self.predicting_the_mean,
            teacher=self.teacher,
        )

    @torch.inference_mode()
    def _loss_of_the_mean(self) -> float:
        """What a model would score that always predicts the mean target: the scale the losses are read on."""
        total, count = 0.0, 0
        for batch in self._cache:
            valid = batch.targets[batch.valid(self.model)].double()
            total, count = total + valid.sum(0), count + len(valid)
        mean = total / count
        errors = (
            (batch.targets[batch.valid(self.model)].double() - mean).abs().mean(-1).sum().item()
            for batch in self._cache
        )
        return sum(errors) / count


def distillation_score(
    model: LightHubertForPreTraining,
    teacher: str | PreTrainedModel,
    sources: Sequence[AudioSource],
    *,
    max_examples: int | None = None,
    batch_seconds: float = 40.0,
    crop_seconds: float = 15.0,
    objective: LightHubertObjectiveSection | None = None,
    revision: str | None = None,
    **cache_options,
) -> DistillationScore:
    """The score of `model`'s subnets on audio from `sources`, with targets of the model or checkpoint `teacher`.

    Args:
        max_examples: clips to use; all if not given.
        batch_seconds, crop_seconds: seconds of a batch, padding included, and of a clip at most.
        objective: how targets are made of the teacher's layers.
        revision: of a teacher on the Hub.
        cache_options: `memory_limit`, `cache_folder`, `disk_limit`, `progress` of `DistillationScore`.
    """
    if isinstance(teacher, str):
        name, teacher = teacher, load_teacher(TeacherSection(path=teacher, revision=revision))
    else:
        name = teacher.name_or_path
    loader = validation_loader(
        list(sources), batch_seconds=batch_seconds, crop_seconds=crop_seconds, max_examples=max_examples
    )
    targets = teacher_targets(teacher.to(model.device), objective)
    facts = {
        "name": name,
        "parameters": teacher.num_parameters(),
        "macs_per_second": macs_per_second(teacher.config),
        **shape(teacher.config),
    }
    return DistillationScore(model, (batch for batch, _ in loader), targets, teacher=facts, **cache_options)


def teacher_targets(teacher: PreTrainedModel, objective: LightHubertObjectiveSection | None = None) -> Targets:
    """The targets of LightHuBERT's objective: the mean of the teacher's last FFN outputs.

    Args:
        teacher: an encoder on the device of the batches.
        objective: number of layers and their norm; by default those of the recipes, for a shallower teacher all.
    """
    num_layers = teacher.config.num_hidden_layers
    if objective is None:
        settings = LightHubertObjectiveSection()
        objective = settings.model_copy(update={"num_target_layers": min(settings.num_target_layers or 8, num_layers)})
    loss = LightHubertObjective(objective, num_layers)
    frozen = Teacher(teacher, loss.request)

    def targets(batch: Batch) -> torch.Tensor:
        mask = batch["attention_mask"]
        output = frozen(batch["input_values"], mask)
        frames = next(iter(output.layer_results.values())).shape[1]
        lengths = teacher._get_feat_extract_output_lengths(mask.sum(-1))
        valid = torch.arange(frames, device=lengths.device) < lengths[:, None]
        return loss.targets(output, None, valid, None)[0]

    return targets


def _prepare(model: LightHubertForPreTraining, batch: Batch, targets: Targets) -> "_CachedBatch":
    values = batch["input_values"].to(model.device)
    mask = batch.get("attention_mask")
    mask = torch.ones_like(values, dtype=torch.long) if mask is None else mask.to(model.device)
    lengths, samples = mask.sum(-1), values.shape[1]
    with torch.inference_mode():
        wanted = targets({"input_values": values, "attention_mask": mask}).float()
        kept = values
        if not model.config.has_elastic_front_end:
            kept = model.lighthubert.extract_features(values, None if (lengths == samples).all() else mask)
    size, frames = model.config.target_size, model._get_feat_extract_output_lengths(samples)
    if wanted.ndim != 3 or wanted.shape[2] != size or abs(wanted.shape[1] - frames) > 1:
        raise ValueError(
            f"the targets have shape {tuple(wanted.shape)}, the model predicts {(len(values), frames, size)}; "
            "score with the teacher the supernet was distilled from"
        )
    # Contiguous, so that a cached slice does not keep a larger tensor alive.
    return _CachedBatch(kept.contiguous(), wanted[:, :frames].contiguous(), lengths, samples)


def _check_front_end(model: LightHubertForPreTraining, reference: LightHubertForPreTraining) -> None:
    """That the features kept for one supernet may stand in for those of another."""
    if model.config.has_elastic_front_end != reference.config.has_elastic_front_end:
        raise ValueError("only one of the models has a choice of channels in its front end; make a score for each")
    if model.config.has_elastic_front_end:
        return
    one, other = (m.lighthubert.feature_extractor.state_dict() for m in (model, reference))
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        raise ValueError(
            "the models' front ends differ, so they cannot share convolutional features; make a score for each"
        )


@dataclass(frozen=True)
class _CachedBatch:
    """`input` of the encoder `(B, frames, channels)` or of an elastic front end `(B, samples)`, `targets`
    `(B, frames, size)`, valid samples `lengths` of `samples`."""

    input: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor
    samples: int

    @property
    def attention_mask(self) -> torch.BoolTensor | None:
        """Over samples, as the model takes it; `None` if nothing is padded. Not kept: it is large."""
        if (self.lengths == self.samples).all():
            return None
        return torch.arange(self.samples, device=self.lengths.device) < self.lengths[:, None]

    def valid(self, model: LightHubertForPreTraining) -> torch.BoolTensor:
        """`(B, frames)`."""
        lengths = model._get_feat_extract_output_lengths(self.lengths)
        return torch.arange(self.targets.shape[1], device=lengths.device) < lengths[:, None]


class _Cache:
    """Batches to iterate over again and again: in memory up to a limit, the others in files."""

    def __init__(self, memory_limit: int, parent: str | Path | None, disk_limit: int):
        self._memory_left, self._disk_left = memory_limit, disk_limit if parent is not None else 0
        self._limits = f"{memory_limit / 1e9:.3g} GB of memory and {self._disk_left / 1e9:.3g} GB on disk"
        self._parent, self._folder = parent, None
        self._entries: list[_CachedBatch | tuple[Path, int, torch.device]] = []

    def append(self, batch: _CachedBatch) -> None:
        tensors = {"input": batch.input, "targets": batch.targets, "lengths": batch.lengths}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._memory_left:
            self._memory_left -= size
            self._entries.append(batch)
            return
        if size > self._disk_left:
            raise ValueError(
                f"the validation audio's features and targets do not fit into {self._limits}; use fewer or shorter "
                "clips, raise memory_limit or disk_limit, or give a cache_folder"
            )
        if self._folder is None:
            scratch = scratch_folder(Path(self._parent) / "scoring")
            self._folder = scratch.__enter__()
            weakref.finalize(self, scratch.__exit__, None, None, None)
        self._disk_left -= size
        path = self._folder / f"{len(self._entries)}.safetensors"
        save_file(tensors, path)
        self._entries.append((path, batch.samples, batch.input.device))

    def __iter__(self) -> Iterator[_CachedBatch]:
        for entry in self._entries:
            if isinstance(entry, _CachedBatch):
                yield entry
            else:
                path, samples, device = entry
                yield _CachedBatch(**load_file(path, device=str(device)), samples=samples)

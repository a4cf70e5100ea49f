"""One optimiser step: teacher once per batch, front end once per number of channels, encoder once per subnet."""

import contextlib
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.modeling_outputs import BaseModelOutput

from lighthubert_hf import LightHubertForPreTraining, Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.streaming.chunks import ChunkContext, encode_in_chunks
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.distillation.objectives.base import TeacherOutput

from .contexts import StepContexts
from .gradients import reduce_gradients, reduce_statistics
from .masking import draw_time_mask
from .objectives import FrameLoss, Objective
from .recipe import DistillationRecipe, MaskingSection
from .sampler import loss_weight
from .student import TEACHER_INIT
from .teacher import Teacher


@dataclass
class DistillationBatch:
    """A batch with everything that does not depend on the subnet.

    Args:
        input_values, attention_mask: As the loader gave them, on the device; no mask if nothing is padded.
        valid: `(batch, frames)`, true on frames of audio.
        time_mask: `(batch, frames)`, true where the student's features are masked.
        targets: What to predict, `(batch, frames, size)` each.
        front_end: The student's convolutional features, if the teacher has made them along.
    """

    input_values: torch.Tensor
    attention_mask: torch.Tensor | None
    valid: torch.BoolTensor
    time_mask: torch.BoolTensor
    targets: list[torch.Tensor]
    front_end: torch.Tensor | None = None


@dataclass
class StepResult:
    """What one step did, over all processes.

    Args:
        loss: Mean over the subnets of the loss per weighted valid frame.
        audio_seconds: Audio in the step's batches.
        gradient_norm: Before clipping.
        skipped: Whether loss or gradients were not finite and the weights stayed as they were.
        num_stopping: Processes that asked to stop (`stopping`).
        num_with_data: Processes that had a batch.
    """

    loss: float
    audio_seconds: float
    gradient_norm: float
    skipped: bool
    num_stopping: int
    num_with_data: int


class DistillationModel:
    """Teacher, student and objective, and how they meet on a batch; shared by training and evaluation.

    A frozen front end with the teacher's weights (`init: teacher`, `freeze_front_end: true`) is not run again:
    the student reads the teacher's features.
    """

    def __init__(
        self, teacher: Teacher, student: LightHubertForPreTraining, objective: Objective, accelerator: Accelerator
    ):
        if teacher.stride != (stride := student_stride(student)):
            raise ValueError(
                f"the teacher makes a frame of {teacher.stride} samples, the student of {stride}; "
                "give the student the teacher's conv_stride"
            )
        self.teacher, self.student, self.objective, self.accelerator = teacher, student, objective, accelerator
        self.learnt = objective.at(None)
        self.context: ChunkContext | None = None
        if not objective.runs_encoder:
            _train_front_end_only(student)
        self.freeze_front_end = not any(p.requires_grad for p in student.lighthubert.feature_extractor.parameters())
        self.share_front_end = (
            self.freeze_front_end
            and not student.config.has_elastic_front_end
            and same_front_end(teacher, student, accelerator.mixed_precision)
        )
        if self.share_front_end:
            teacher.keep_front_end()

    def enter(self, step: int | None, context: ChunkContext | None = None) -> None:
        """From now on the objective is that of `step` (`None`: that of a validation), and the student hears `context`
        (`None`: whole utterances)."""
        self.learnt, self.context = self.objective.at(step), context
        self.teacher.request = self.learnt.request

    def prepare(self, batch: Batch, masking: MaskingSection | None, *, seed: int, step: int) -> DistillationBatch:
        """Move a batch to the device, run the teacher on it and draw the masks."""
        device = self.accelerator.device
        lengths = batch["attention_mask"].sum(-1)
        frames = self.student._get_feat_extract_output_lengths(lengths)  # on the CPU: no wait for the device
        width = int(self.student._get_feat_extract_output_lengths(batch["input_values"].shape[1]))
        time_mask = torch.zeros(len(lengths), width, dtype=torch.bool)
        if masking is not None and self.learnt.masks:
            drawn = draw_time_mask(frames.tolist(), batch["ids"], seed=seed, step=step, **masking.model_dump())
            time_mask[:, : drawn.shape[1]] = drawn
        valid = torch.arange(width) < frames[:, None]
        padded = bool((lengths < batch["input_values"].shape[1]).any())
        input_values, valid, time_mask = (
            tensor.to(device, non_blocking=True) for tensor in (batch["input_values"], valid, time_mask)
        )
        attention_mask = batch["attention_mask"].to(device, non_blocking=True) if padded else None
        targets, front_end = self._targets(input_values, attention_mask, valid, time_mask)
        return DistillationBatch(input_values, attention_mask, valid, time_mask, targets, front_end)

    def by_front_end(self, subnets: Sequence[Subnet | None]) -> Iterator[list[Subnet | None]]:
        """The subnets in their order, those that share a front end and follow one another together."""
        for _, group in itertools.groupby(
            subnets, lambda subnet: subnet and self.student.config.conv_channels(subnet)
        ):
            yield list(group)

    def features(self, batch: DistillationBatch, subnet: Subnet | None) -> torch.Tensor:
        """The front end of `subnet` and of all that have as many channels: `(batch, frames, channels)`."""
        if batch.front_end is not None:
            return batch.front_end
        if subnet is not None:
            self.student.set_active_subnet(subnet)
        with torch.no_grad() if self.freeze_front_end else contextlib.nullcontext(), self.accelerator.autocast():
            return self.student.lighthubert.extract_features(batch.input_values, batch.attention_mask)

    def predictions(
        self, features: torch.Tensor, batch: DistillationBatch, subnet: Subnet | None
    ) -> list[torch.Tensor]:
        """What `subnet` (`None`: the static student) predicts, cut to the targets' frames."""
        if subnet is not None:
            self.student.set_active_subnet(subnet)
        with self.accelerator.autocast():
            if self.learnt.runs_encoder:
                outputs = self._encode(
                    features,
                    attention_mask=batch.attention_mask,
                    mask_time_indices=batch.time_mask,
                    output_hidden_states=self.learnt.needs_student_states,
                )
            else:
                outputs = self.student.lighthubert.feature_projection(features)
            predictions = self.learnt.predictions(self.student, outputs)
        frames = batch.targets[0].shape[1]
        return [prediction[:, :frames] for prediction in predictions]

    def _encode(self, features: torch.Tensor, **options) -> BaseModelOutput:
        encoder = self.student.lighthubert
        if self.context is None:
            return encoder.encode(features, **options)
        return encode_in_chunks(encoder, features, self.context, **options)

    def loss(
        self, predictions: list[torch.Tensor], targets: list[torch.Tensor], batch: DistillationBatch
    ) -> FrameLoss:
        frames = targets[0].shape[1]
        weights = self.learnt.frame_weights(batch.valid, batch.time_mask)[:, :frames]
        return self.learnt(predictions, targets, weights)

    def _targets(self, input_values, attention_mask, valid, time_mask):
        """The targets, and the front end's features if they are shared."""
        with torch.inference_mode():
            clean = self.teacher(input_values, attention_mask)
            masked = None
            if self.learnt.request.masked:
                masked = self.teacher(input_values, attention_mask, time_mask)
            frames = common_frames(valid.shape[1], clean)
            valid, time_mask = valid[:, :frames], time_mask[:, :frames]
            outputs = [None if output is None else _cut(output, frames) for output in (clean, masked)]
            targets = self.learnt.targets(*outputs, valid, time_mask)
        # Autograd refuses to keep inference tensors, hence the copies.
        front_end = None
        if self.share_front_end:
            kept = {"copy": True, "memory_format": torch.contiguous_format}
            front_end = clean.front_end.to(self.student.dtype, **kept)
        return [target.clone() for target in targets], front_end


class TrainingStep:
    """Runs optimiser steps. Its results depend on weights, batches, recipe and step number alone."""

    def __init__(self, model: DistillationModel, optimizer, recipe: DistillationRecipe):
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.accelerator = model.accelerator
        trained = [*model.student.parameters(), *model.objective.parameters()]
        self.parameters = [parameter for parameter in trained if parameter.requires_grad]
        # A constant of about the number of frames in a step: keeps the gradients of summed losses in fp16's range.
        seconds = recipe.data.batch_seconds * recipe.training.accumulation
        self.expected_frames = seconds * SAMPLING_RATE / student_stride(model.student)
        self.contexts = StepContexts(recipe.streaming, model.student, recipe.seed) if recipe.streaming else None

    def run(
        self,
        step: int,
        batches: Sequence[Batch],
        subnets: Sequence[Subnet | None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> StepResult:
        """Accumulate the gradients of `subnets` on `batches`, sum them over all processes, update.

        Args:
            batches: This process's share; empty if its data ended, which makes it take part with nothing.
            subnets: The same on all processes.
            stopping: Says, when the gradients are done, whether this process wants to stop after this step.
        """
        self.model.enter(step, self.contexts.at(step) if self.contexts else None)
        self.optimizer.zero_grad(set_to_none=True)
        loss, count = (torch.zeros((), device=self.accelerator.device) for _ in range(2))
        seconds = 0.0
        for index, batch in enumerate(batches):
            set_seed(step_seed(self.recipe.seed, step, self.accelerator.process_index, index))
            batch_loss, batch_count = self._accumulate(step, batch, subnets)
            loss, count = loss + batch_loss, count + batch_count
            seconds += float(batch["attention_mask"].sum()) / SAMPLING_RATE
        facts = torch.tensor([seconds, float(stopping()), float(bool(batches))], device=loss.device)
        statistics = reduce_statistics(torch.cat([torch.stack([loss, count]), facts]), self.parameters)
        norm = self._reduce_and_clip(frames=statistics[1])
        loss, count, seconds, num_stopping, num_with_data, norm = torch.cat([statistics, norm[None]]).tolist()
        skipped = not self._update(finite=math.isfinite(loss) and math.isfinite(norm) and count > 0)
        return StepResult(loss / max(count, 1e-9), seconds, norm, skipped, int(num_stopping), int(num_with_data))

    def _accumulate(
        self, step: int, batch: Batch, subnets: Sequence[Subnet | None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Backward for every subnet; the sums of loss and weights, without gradient."""
        model, in_place = self.model, self.recipe.sampler.in_place_weight
        prepared = model.prepare(batch, self.recipe.masking, seed=self.recipe.seed, step=step)
        total, largest = 0, None
        for group in model.by_front_end(subnets):
            features = model.features(prepared, group[0])
            # The encoders' gradients gather (in fp32) at detached features, then go through the front end once.
            shared = features.detach().to(model.student.dtype).requires_grad_(features.requires_grad)
            for subnet in group:
                predictions = model.predictions(shared, prepared, subnet)
                loss = model.loss(predictions, prepared.targets, prepared)
                loss_sum, total = loss.sum, total + loss.sum.detach()
                if in_place and largest is None:  # the sandwich's first is the largest
                    largest = [prediction.detach().float() for prediction in predictions]
                elif in_place:
                    own = model.loss(predictions, largest, prepared).sum
                    loss_sum = (1 - in_place) * loss_sum + in_place * own
                self.accelerator.backward(self._weight(subnet) * loss_sum / (len(subnets) * self.expected_frames))
            if features.requires_grad:
                features.backward(shared.grad.to(features.dtype))
        return total / len(subnets), loss.count

    def _weight(self, subnet: Subnet | None) -> float:
        exponent = self.recipe.sampler.width_exponent
        if subnet is None or not exponent:
            return 1.0
        return loss_weight(subnet, self.model.student.search_space, exponent)

    def _reduce_and_clip(self, frames: torch.Tensor) -> torch.Tensor:
        """Gradients become those of the mean over all processes' frames; returns their norm."""
        reduce_gradients(self.parameters)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return torch.zeros((), device=frames.device)
        self.accelerator.unscale_gradients(self.optimizer)
        scale = self.expected_frames / frames
        norm = scale * torch.nn.utils.get_total_norm(gradients)
        limit = self.recipe.optimizer.max_grad_norm
        if limit is not None:
            scale = scale * (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)  # once: all weights' gradients are read and written
        return norm

    def _update(self, finite: bool) -> bool:
        """Whether the weights were updated. With fp16 the loss scale must hear of a failure, too."""
        if finite or self.accelerator.scaler is not None:
            self.optimizer.step()
        return finite


def step_seed(seed: int, step: int, rank: int, index: int) -> int:
    """Seed of dropout and the like for one batch of one process."""
    return zlib.crc32(f"{seed} {step} {rank} {index}".encode())


def _train_front_end_only(student: LightHubertForPreTraining) -> None:
    """Turn off the gradients of what no objective of the projected features reaches."""
    trained = {*map(id, student.lighthubert.feature_extractor.parameters())}
    trained |= {*map(id, student.lighthubert.feature_projection.parameters())}
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)


def student_stride(student: LightHubertForPreTraining) -> int:
    """Samples from one frame of the student to the next."""
    return math.prod(student.config.conv_stride)


def same_front_end(teacher: Teacher, student: LightHubertForPreTraining, mixed_precision: str) -> bool:
    """Whether the student's convolutional front end computes what the teacher's does, as precisely as it would."""
    if teacher.config.model_type not in TEACHER_INIT:
        return False
    if teacher.model.dtype not in (
        torch.float32,
        {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision),
    ):
        return False
    before = teacher.model.feature_extractor.state_dict()
    own = student.lighthubert.feature_extractor.state_dict()
    return before.keys() == own.keys() and all(torch.equal(before[key], own[key].to(before[key].dtype)) for key in own)


def common_frames(num_student_frames: int, teacher: TeacherOutput) -> int:
    """Frames that both have. Different kernels may cost one frame at the end; more is a mistake.

    Raises:
        ValueError: They differ by more than one.
    """
    num_teacher_frames = teacher.frames()
    if abs(num_student_frames - num_teacher_frames) > 1:
        raise ValueError(
            f"the student makes {num_student_frames} frames of this audio, the teacher {num_teacher_frames}: they may "
            "differ by one; give the student the teacher's conv_kernel and conv_stride"
        )
    return min(num_student_frames, num_teacher_frames)


def _cut(output: TeacherOutput, frames: int) -> TeacherOutput:
    return TeacherOutput(
        {index: tensor[:, :frames] for index, tensor in output.layer_results.items()},
        {index: tensor[:, :frames] for index, tensor in output.hidden_states.items()},
        None if output.projected is None else output.projected[:, :frames],
    )

"""How much of the audio around it a step's student hears: all, or chunks with bounded context as in streaming."""

import math
import random

from lighthubert_hf import LightHubertForPreTraining
from lighthubert_hf.long_audio import seconds_to_frames
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.streaming.chunks import ChunkContext

from .recipe import StreamingSection


class StepContexts:
    """Draws the context of each step, a pure function of (seed, step): each rank and each resumed run draws the same.

    Raises:
        ValueError: The student cannot be streamed, or a chunk holds no frame.
    """

    def __init__(self, settings: StreamingSection, student: LightHubertForPreTraining, seed: int):
        if student.config.feat_extract_norm == "group":
            raise ValueError(
                "the section streaming needs a front end that can run piece by piece, and the student's has a group "
                "norm, which is over the whole recording (feat_extract_norm=group): take a teacher with layer norms, "
                "or set student.init=random and student.config.feat_extract_norm=layer"
            )
        self.settings, self.seed, self.stride = settings, seed, math.prod(student.config.conv_stride)
        if self._frames(settings.chunk_seconds) < 1:
            raise ValueError(
                f"streaming.chunk_seconds must be at least one frame ({self.stride / SAMPLING_RATE:g} s), got "
                f"{settings.chunk_seconds:g}"
            )

    def at(self, step: int) -> ChunkContext | None:
        """The context of `step`; `None`: the whole utterance."""
        rng = random.Random(f"context of seed {self.seed} step {step}")
        if rng.random() >= self.settings.share:
            return None
        left, right = rng.choice(self.settings.left_seconds), rng.choice(self.settings.right_seconds)
        return ChunkContext(*map(self._frames, (self.settings.chunk_seconds, left, right)))

    def _frames(self, seconds: float) -> int:
        return seconds_to_frames(seconds, self.stride)

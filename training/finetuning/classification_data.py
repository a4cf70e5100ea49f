"""Labels of utterances and frames for training: classes in slots, and who speaks when."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from lighthubert_hf.model.feature_encoder import conv_output_lengths, receptive_field
from lighthubert_hf.training.audio.labelled import SAMPLING_RATE, Batch, SpeechExample, pad_waveforms, shortest_input

SLOT_SEPARATOR = ": "


class Classes:
    """The classes of one or several slots, and the model's outputs that stand for them: slot after slot.

    Args:
        names: Classes of every slot; slots are the columns the labels are read from.
        listed: Integers in the (only) column are places in its list of names, not names.
    """

    def __init__(self, names: dict[str, list[str]], listed: bool = False):
        self.names, self.listed = names, listed
        self._ids = {slot: {name: index for index, name in enumerate(part)} for slot, part in names.items()}

    @classmethod
    def of(cls, examples: Iterable[SpeechExample], slots: Sequence[str]) -> "Classes":
        """Those in the data, in alphabetical order. ValueError if there is only one."""
        examples = list(examples)
        names = {slot: sorted({str(example.columns[slot]) for example in examples}) for slot in slots}
        for slot, found in names.items():
            if len(found) < 2:
                raise ValueError(f"all training utterances have the {slot} {found[0]!r}: nothing to tell apart")
        return cls(names)

    @property
    def sizes(self) -> list[int]:
        return [len(part) for part in self.names.values()]

    @property
    def id2label(self) -> dict[int, str]:
        """What the outputs are called: the class, or `slot: class` where there are several slots."""
        if len(self.names) == 1:
            return dict(enumerate(next(iter(self.names.values()))))
        return dict(enumerate(f"{slot}{SLOT_SEPARATOR}{name}" for slot, part in self.names.items() for name in part))

    def ids(self, example: SpeechExample) -> list[int]:
        """A class id for each slot; -100 for a class that is not among them."""
        found = []
        for slot, ids in self._ids.items():
            value = example.columns[slot]
            if self.listed and isinstance(value, int):
                found.append(value if 0 <= value < len(ids) else -100)
            else:
                found.append(ids.get(str(value), -100))
        return found


class ClassCollator:
    """Examples to a padded batch with `labels` `(rows, slots)`, -100 for classes that are not known."""

    def __init__(self, classes: Classes, config: PretrainedConfig):
        self.classes, self.config, self.min_samples = classes, config, shortest_input(config)

    def is_possible(self, example: SpeechExample) -> bool:
        """Whether the utterance has a frame, and classes that can be learnt."""
        return conv_output_lengths(len(example.waveform), self.config) >= 1 and -100 not in self.classes.ids(example)

    def __call__(self, examples: list[SpeechExample]) -> Batch:
        batch = pad_waveforms([example.waveform for example in examples], self.min_samples)
        return {**batch, "labels": torch.tensor([self.classes.ids(example) for example in examples])}


class ActivityCollator:
    """Examples to a padded batch with `labels` `(rows, frames, speakers)` of 0 or 1: who speaks when.

    Args:
        column: Where the segments are.
        num_speakers: Outputs of the model.
        config: The model's.
    """

    def __init__(self, column: str, num_speakers: int, config: PretrainedConfig):
        self.column, self.num_speakers, self.config = column, num_speakers, config
        self.min_samples = shortest_input(config)

    def activity(self, example: SpeechExample) -> torch.Tensor:
        """Of all speakers of the recording, `(frames, speakers)`."""
        frames = conv_output_lengths(len(example.waveform), self.config)
        stride, field = math.prod(self.config.conv_stride), receptive_field(self.config)
        return frame_activity(example.columns[self.column], frames, stride, field)

    def is_possible(self, example: SpeechExample) -> bool:
        """Whether the recording has a frame, and no more speakers than the model has outputs."""
        speakers = {segment["speaker"] for segment in example.columns[self.column]}
        return conv_output_lengths(len(example.waveform), self.config) >= 1 and len(speakers) <= self.num_speakers

    def __call__(self, examples: list[SpeechExample]) -> Batch:
        batch = pad_waveforms([example.waveform for example in examples], self.min_samples)
        frames = conv_output_lengths(batch["input_values"].shape[1], self.config)
        labels = torch.zeros(len(examples), frames, self.num_speakers, dtype=torch.long)
        for row, example in zip(labels, examples, strict=True):
            activity = self.activity(example)[:, : self.num_speakers]
            row[: activity.shape[0], : activity.shape[1]] = activity
        return {**batch, "labels": labels}


def frame_activity(
    segments: list[dict[str, Any]], num_frames: int, stride: int, field: int, num_speakers: int = 0
) -> torch.LongTensor:
    """Who is active in the middle of the samples that each frame sees: `(frames, speakers)` of 0 or 1.

    Args:
        segments: `{speaker, start, end}`, in seconds; speakers are ordered by their names.
        num_frames: Of the recording.
        stride, field: Samples at 16 kHz from a frame to the next, and that a frame sees.
        num_speakers: The least to return; those that the recording lacks are never active.
    """
    speakers = sorted({segment["speaker"] for segment in segments})
    middles = (torch.arange(num_frames) * stride + field / 2) / SAMPLING_RATE
    activity = torch.zeros(num_frames, max(num_speakers, len(speakers)), dtype=torch.long)
    for segment in segments:
        inside = (middles >= segment["start"]) & (middles < segment["end"])
        activity[inside, speakers.index(segment["speaker"])] = 1
    return activity

"""What encodes the stretches of a stream as they come, behind the front end or with it. Two ways, one interface.

Both hold what a stream still needs of its past in a state of its own, and compute the stretches of several streams
that are of one length as one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lighthubert_hf.model.modeling_lighthubert import LightHubertModel

States = list[torch.Tensor]
"""The hidden states of some frames, `(frames, hidden_size)` each, as many as the reader asked for."""


@dataclass
class Reader:
    """Which hidden states are wanted.

    Args:
        layer: One of them; -1 is `last_hidden_state`, 0 the input of the first layer.
        all_states: Instead: all, for a head that reads a mean of them.
    """

    layer: int = -1
    all_states: bool = False


@dataclass
class PieceState:
    """Of one stream: its last inputs, of which the first belongs to frame `first`, and the frame that is next."""

    inputs: torch.Tensor | None = None
    first: int = 0
    next: int = 0


class PieceEncoder:
    """Runs each chunk of frames with some context to either side through the whole encoder, as `long_audio` does.

    Args:
        model: The encoder.
        chunk, left, right: Frames.
        from_samples: Whether the front end runs along, on samples: where its norm is over all that it sees.
    """

    def __init__(
        self,
        model: LightHubertModel,
        reader: Reader,
        *,
        chunk: int,
        left: int,
        right: int,
        hop: int,
        field: int,
        from_samples: bool,
    ):
        self.model, self.reader = model, reader
        self.chunk, self.left, self.right = chunk, left, right
        self.run = model.__call__ if from_samples else model.encode
        self.hop, self.field = (hop, field) if from_samples else (1, 1)

    def begin(self) -> PieceState:
        return PieceState()

    def advance(self, states: Sequence[PieceState], new: Sequence[torch.Tensor], last: bool) -> list[States]:
        """What has become final of each stream, given its next inputs; `last`: all of it, the streams end."""
        for state, inputs in zip(states, new):
            state.inputs = inputs if state.inputs is None else torch.cat([state.inputs, inputs])
        found: list[list[States]] = [[] for _ in states]
        while pieces := {i: piece for i, state in enumerate(states) if (piece := self._next(state, last))}:
            ran = in_batches(self._run, [inputs for inputs, _ in pieces.values()])
            for index, made, (_, kept) in zip(pieces, ran, pieces.values()):
                found[index].append([state[kept] for state in made])
        return [[torch.cat(parts) for parts in zip(*chunks)] for chunks in found]

    def _next(self, state: PieceState, last: bool) -> tuple[torch.Tensor, slice] | None:
        """The inputs of the next chunk and the frames to keep of what they give; `None`: it is not there yet."""
        inputs: torch.Tensor = state.inputs  # pyrefly: ignore[bad-assignment]
        available = state.first + max(0, (len(inputs) - self.field) // self.hop + 1)
        start, stop = state.next, state.next + self.chunk
        if start >= available or (stop + self.right > available and not last):
            return None
        stop = min(stop, available)
        first, end = max(0, start - self.left), min(stop + self.right, available)
        seen = inputs[(first - state.first) * self.hop : (end - 1 - state.first) * self.hop + self.field]
        state.next = stop
        keep = max(0, stop - self.left)
        state.inputs = inputs[(keep - state.first) * self.hop :].clone()
        state.first = keep
        return seen, slice(start - first, stop - first)

    def _run(self, inputs: torch.Tensor) -> States:
        layer = self.reader.layer
        wanted = True if self.reader.all_states else None if layer == -1 else layer
        outputs: Any = self.run(inputs, output_hidden_states=wanted)
        if self.reader.all_states:
            return list(outputs.hidden_states)
        return [outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]]


@dataclass
class Stage:
    """A part of the encoder whose every output depends on `left` inputs before it and `right` behind it."""

    left: int
    right: int
    run: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class StageState:
    """Of one stream and stage: the inputs still needed, and how many of them have had their output."""

    inputs: torch.Tensor | None = None
    done: int = 0


@dataclass
class WindowState:
    """Of one stream: that of every stage, and the hidden states that wait for those of the layers above."""

    stages: list[StageState]
    waiting: list[list[torch.Tensor]] = field(default_factory=list)


class WindowedEncoder:
    """Runs every layer on the new frames alone, where all have a sliding window: the offline output, frame by frame.

    Each layer keeps the end of its input that windows to come see, and waits for the frames that its own see ahead.
    """

    def __init__(self, model: LightHubertModel, reader: Reader, windows: Sequence[int]):
        self.model, self.reader = model, reader
        encoder, config = model.encoder, model.config
        kernel = config.num_conv_pos_embeddings
        self.stages = [Stage(kernel // 2, (kernel - 1) // 2, encoder.add_positions)]
        for index, window in zip(encoder.active_layers, windows):
            self.stages.append(Stage(window // 2, window // 2, self._layer(index, window)))
        if reader.layer != -1 and not reader.all_states:
            self.stages = self.stages[: reader.layer % len(self.stages) + 1]
        self.right = sum(stage.right for stage in self.stages)

    def _layer(self, index: int, window: int) -> Callable[[torch.Tensor], torch.Tensor]:
        encoder = self.model.encoder

        def run(hidden_states: torch.Tensor) -> torch.Tensor:
            options = encoder.attention_options(window, hidden_states, None)
            return encoder.run_layer(index, hidden_states, options)[0]

        return run

    def begin(self) -> WindowState:
        return WindowState([StageState() for _ in self.stages], [[] for _ in self.stages])

    def advance(self, states: Sequence[WindowState], new: Sequence[torch.Tensor], last: bool) -> list[States]:
        """As of `PieceEncoder`."""
        frames = in_batches(lambda features: [self.model.feature_projection(features)], new)
        current = [made[0] for made in frames]
        for number, stage in enumerate(self.stages):
            current = _advance_stage(stage, [state.stages[number] for state in states], current, last)
            if self.reader.all_states:
                for state, made in zip(states, current):
                    state.waiting[number].append(made)
        if self.reader.all_states:
            return [self._aligned(state, len(made)) for state, made in zip(states, current)]
        if self.reader.layer == -1 and self.model.config.do_stable_layer_norm:
            current = [self.model.encoder.layer_norm(made) for made in current]
        return [[made] for made in current]

    def _aligned(self, state: WindowState, count: int) -> States:
        """The next `count` frames of all hidden states: as many as the last layer has made."""
        taken = []
        for waiting in state.waiting:
            frames = torch.cat(waiting)
            taken.append(frames[:count])
            waiting[:] = [frames[count:].clone()]
        return taken


def _advance_stage(
    stage: Stage, states: Sequence[StageState], new: Sequence[torch.Tensor], last: bool
) -> list[torch.Tensor]:
    """The outputs of `stage` that have become final, `(frames, hidden_size)` of each stream."""
    inputs = [made if state.inputs is None else torch.cat([state.inputs, made]) for state, made in zip(states, new)]
    stops = [max(state.done, len(seen) - (0 if last else stage.right)) for state, seen in zip(states, inputs)]
    due = [index for index, (state, stop) in enumerate(zip(states, stops)) if stop > state.done]
    ran = dict(zip(due, in_batches(lambda seen: [stage.run(seen)], [inputs[index] for index in due])))
    found = []
    for index, (state, seen, stop) in enumerate(zip(states, inputs, stops)):
        found.append(ran[index][0][state.done : stop] if index in ran else seen[:0])
        drop = max(0, stop - stage.left)
        state.inputs, state.done = seen[drop:].clone(), stop - drop
    return found


def in_batches(run: Callable[[torch.Tensor], States], rows: Sequence[torch.Tensor]) -> list[States]:
    """What `run`, which takes `(batch, …)`, makes of `rows`: those of one length together."""
    found: list[States] = [[] for _ in rows]
    lengths: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(index)
    for indices in lengths.values():
        for made in run(torch.stack([rows[index] for index in indices])):
            for index, row in zip(indices, made):
                found[index].append(row)
    return found

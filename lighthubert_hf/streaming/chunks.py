"""Whole recordings as a stream would hear them: every chunk of a batch, each with its context, in one forward.

For training: it can be differentiated, and takes padding and masks of time.
"""

from dataclasses import dataclass
from math import prod

import torch
from transformers.modeling_outputs import BaseModelOutput

from lighthubert_hf.model.front_end import conv_output_lengths, receptive_field
from lighthubert_hf.model.modeling_lighthubert import LightHubertModel


@dataclass(frozen=True)
class ChunkContext:
    """Frames of a chunk, and of the context it sees on its left and on its right."""

    chunk: int
    left: int
    right: int

    def __post_init__(self) -> None:
        if self.chunk < 1 or min(self.left, self.right) < 0:
            raise ValueError(f"a chunk has at least 1 frame and a context no less than 0, got {self}")

    def pieces(self, frames: int) -> list[tuple[int, int, int, int]]:
        """Of so many frames: first and end of what each chunk sees, and start and stop of itself."""
        found = []
        for start in range(0, frames, self.chunk):
            stop = min(start + self.chunk, frames)
            found.append((max(0, start - self.left), min(stop + self.right, frames), start, stop))
        return found


def encode_in_chunks(
    model: LightHubertModel,
    features: torch.Tensor,
    context: ChunkContext,
    attention_mask: torch.Tensor | None = None,
    mask_time_indices: torch.Tensor | None = None,
    output_hidden_states: bool | int | list[int] | None = None,
) -> BaseModelOutput:
    """What `model.encode` returns if every chunk sees its context only, as with a `StreamingEncoder`.

    The work is that of `(left + chunk + right) / chunk` forwards.

    Args:
        features: `(batch, frames, channels)`, of `extract_features`.
        attention_mask: `(batch, samples)`. Frames of padding are zero in what comes back.
        mask_time_indices: `(batch, frames)`; see `LightHubertModel.encode`.
    """
    batch, frames, _ = features.shape
    lengths = [frames] * batch
    if attention_mask is not None:
        lengths = conv_output_lengths(attention_mask.ne(0).sum(-1), model.config).tolist()
    pieces = [(row, *piece) for row, length in enumerate(lengths) for piece in context.pieces(length)]
    if not pieces:  # nothing but padding
        return model.encode(features, attention_mask, mask_time_indices, output_hidden_states=output_hidden_states)
    width = max(end - first for _, first, end, _, _ in pieces)
    rows, first, end, start, stop = torch.tensor(pieces).T[..., None].to(features.device)  # (pieces, 1) each
    places = first + torch.arange(width, device=features.device)
    seen = rows, places.clamp(max=frames - 1)
    outputs = model.encode(
        features[seen],
        _sample_mask(model, [end - first for _, first, end, _, _ in pieces], width, features.device),
        None if mask_time_indices is None else mask_time_indices[seen],
        output_hidden_states=output_hidden_states,
    )
    kept = (places >= start) & (places < stop)
    where = rows.expand_as(places)[kept], places[kept]

    def whole(states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(batch, frames, states.shape[-1]).index_put(where, states[kept])

    outputs.last_hidden_state = whole(outputs.last_hidden_state)
    if outputs.hidden_states is not None:
        outputs.hidden_states = tuple(None if state is None else whole(state) for state in outputs.hidden_states)
    return outputs


def _sample_mask(model: LightHubertModel, counts: list[int], width: int, device: torch.device) -> torch.Tensor | None:
    """The mask over samples that gives each row so many of `width` valid frames; `None` if all are."""
    if min(counts) == width:
        return None
    hop, field = prod(model.config.conv_stride), receptive_field(model.config)
    samples = (torch.tensor(counts, device=device) - 1) * hop + field
    return torch.arange((width - 1) * hop + field, device=device) < samples[:, None]

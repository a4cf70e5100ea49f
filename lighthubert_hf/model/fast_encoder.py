"""Spares the encoder the padding of a batch: rows of about the same length run together, apart from the others.

On a CPU a layer is hardly faster a row in a large batch than in a small one, so nothing is lost by it.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from .fast_paths import HALF_OR_MORE, is_watched, runs_plainly, wants_gradients

# Measured: what a group of its own costs, in frames. All weights travel to the processor once more.
FRAMES_PER_GROUP = 100


def length_groups(lengths: list[int]) -> list[list[int]]:
    """Rows by groups so that the frames to compute, padding to a group's longest included, and groups cost least.

    Rows of length zero are in no group.
    """
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row])
    costs, firsts = [0], []  # of the best grouping of the longest rows, and where its last group starts
    for stop in range(1, len(order) + 1):
        options = [costs[first] + FRAMES_PER_GROUP + (stop - first) * lengths[order[first]] for first in range(stop)]
        costs.append(min(options))
        firsts.append(options.index(costs[-1]))
    groups, stop = [], len(order)
    while stop:
        groups.append(order[firsts[stop - 1] : stop])
        stop = firsts[stop - 1]
    return groups


def encode_by_length(
    encoder: nn.Module,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    output_attentions: bool = False,
    **options: Any,
) -> BaseModelOutput:
    """What `encoder(hidden_states, attention_mask, ...)` returns, with zeros for padding where rows are regrouped.

    Args:
        hidden_states: `(B, T, E)`.
        attention_mask: `(B, T)`, true where a frame is valid: the first frames of each row. `None`: all are.
    """
    if attention_mask is None or output_attentions or not _can_regroup(encoder, hidden_states):
        return encoder(hidden_states, attention_mask, output_attentions=output_attentions, **options)
    lengths = attention_mask.sum(-1).tolist()
    groups = length_groups(lengths)
    if not groups:
        return encoder(hidden_states, attention_mask, **options)
    last, states = torch.zeros_like(hidden_states), None
    for group in groups:
        longest = lengths[group[0]]
        same = lengths[group[-1]] == longest
        mask = None if same else attention_mask[group, :longest]
        out = encoder(hidden_states[group, :longest], mask, **options)
        last[group, :longest] = _without_padding(out.last_hidden_state, mask)
        if out.hidden_states is not None:
            states = states or [torch.zeros_like(hidden_states) for _ in out.hidden_states]
            for state, part in zip(states, out.hidden_states):
                state[group, :longest] = _without_padding(part, mask)
    return BaseModelOutput(last_hidden_state=last, hidden_states=None if states is None else tuple(states))


def _can_regroup(encoder: nn.Module, hidden_states: torch.Tensor) -> bool:
    """Whether nobody can tell: no gradients, no dropout, no hook that expects the whole batch."""
    return (
        not encoder.training
        and runs_plainly([hidden_states], HALF_OR_MORE)
        and not wants_gradients([hidden_states, *encoder.parameters()])
        and not is_watched(*encoder.modules())
    )


def _without_padding(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return states if mask is None else states.masked_fill(~mask[..., None], 0)

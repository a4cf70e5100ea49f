"""SUPERB's heads. Each begins with a learnt weighted sum of the frozen model's hidden states.

All take features `(rows, frames, states, width)`, padded, and their `lengths` `(rows,)`.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .spec_augment import spec_augment


class WeightedSum(nn.Module):
    """The hidden states' mean under a softmax of one weight each: to `(rows, frames, width)`."""

    def __init__(self, num_states: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_states))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.einsum("btsw,s->btw", features, self.weight.softmax(-1))

    def shares(self) -> list[float]:
        """How much of each state goes in."""
        return self.weight.detach().softmax(-1).tolist()


class FrameClassifier(nn.Module):
    """Linear, linear: the logits of every frame, for CTC over phones."""

    def __init__(self, num_states: int, width: int, num_outputs: int, *, projection: int = 256):
        super().__init__()
        self.weighted_sum = WeightedSum(num_states)
        self.projection = nn.Linear(width, projection)
        self.output = nn.Linear(projection, num_outputs)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.output(self.projection(self.weighted_sum(features)))


class UtteranceClassifier(FrameClassifier):
    """Linear, mean over frames, linear. All of it is linear in the frames: their mean may be taken beforehand."""

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden = self.projection(self.weighted_sum(features))
        return self.output(_mean(hidden, lengths))


class RecurrentRecogniser(nn.Module):
    """SpecAugment (in training), linear, two bidirectional LSTMs with dropout 0.2 after each, linear."""

    def __init__(
        self, num_states: int, width: int, num_outputs: int, *, projection: int = 1024, recurrent: int = 1024
    ):
        super().__init__()
        self.weighted_sum = WeightedSum(num_states)
        self.projection = nn.Linear(width, projection)
        self.lstm = nn.LSTM(projection, recurrent, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2 * recurrent, num_outputs)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden = self.weighted_sum(features)
        if self.training:
            hidden = spec_augment(hidden, lengths)
        return self.output(self.dropout(_recurrent(self.lstm, self.projection(hidden), lengths)))


class XVector(nn.Module):
    """Speaker embeddings (Snyder et al., 2018): linear, five TDNN layers, mean and deviation over frames, two linears.

    `forward` gives the cosines with the training speakers' vectors, `embed` what trials are scored by. Recordings
    shorter than the TDNN's context are padded with their last frame.
    """

    TDNN = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # kernel size, dilation
    CONTEXT = 1 + sum((kernel - 1) * dilation for kernel, dilation in TDNN)

    def __init__(self, num_states: int, width: int, num_outputs: int, *, size: int = 512, pooled: int = 1500):
        super().__init__()
        self.weighted_sum = WeightedSum(num_states)
        self.projection = nn.Linear(width, size)
        widths = [size] * len(self.TDNN) + [pooled]
        self.tdnn = nn.ModuleList(
            nn.Conv1d(widths[i], widths[i + 1], kernel, dilation=dilation)
            for i, (kernel, dilation) in enumerate(self.TDNN)
        )
        self.embedding = nn.Linear(2 * pooled, size)
        self.second = nn.Linear(size, size)
        self.speakers = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_outputs, size)))

    def embed(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`(rows, size)`."""
        hidden = self.projection(self.weighted_sum(features))
        hidden, lengths = _lengthened(hidden, lengths, self.CONTEXT)
        hidden = hidden.transpose(1, 2)
        for layer in self.tdnn:
            hidden = layer(hidden).relu()
        hidden, lengths = hidden.transpose(1, 2), lengths - self.CONTEXT + 1
        mean = _mean(hidden, lengths)
        variance = _mean((hidden - mean[:, None]).square(), lengths)
        deviation = (variance + 1e-8).sqrt()
        return self.embedding(torch.cat([mean, deviation], -1)).relu()

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        vectors = self.second(self.embed(features, lengths)).relu()
        return F.linear(F.normalize(vectors), F.normalize(self.speakers))


class Diarizer(nn.Module):
    """One LSTM, linear: for every frame a logit for each speaker."""

    def __init__(self, num_states: int, width: int, num_outputs: int, *, recurrent: int = 512):
        super().__init__()
        self.weighted_sum = WeightedSum(num_states)
        self.lstm = nn.LSTM(width, recurrent, batch_first=True)
        self.output = nn.Linear(recurrent, num_outputs)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.output(_recurrent(self.lstm, self.weighted_sum(features), lengths))


def _valid(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[..., None]


def _mean(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (hidden * _valid(hidden, lengths)).sum(1) / lengths[:, None]


def _recurrent(lstm: nn.LSTM, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    packed = pack_padded_sequence(hidden, lengths.cpu(), batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=hidden.shape[1])[0]


def _lengthened(hidden: torch.Tensor, lengths: torch.Tensor, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of fewer than `least` frames, padded with their last frame to that many."""
    if int(lengths.min()) >= least:
        return hidden, lengths
    frames = max(hidden.shape[1], least)
    place = torch.arange(frames, device=hidden.device).expand(len(hidden), frames)
    place = torch.minimum(place, lengths[:, None] - 1)
    return hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[2])), lengths.clamp(min=least)

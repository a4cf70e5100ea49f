"""Scores of a subnet that cost no labels, from what it and the teacher make of the same speech.

A score takes a pair of `Embeddings`; more is better for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn

from lighthubert_hf.training.audio.batching import validation_loader
from lighthubert_hf.training.audio.sources import AudioSource

CLUSTERS = 50
RIDGE = 1e-2


@dataclass(frozen=True)
class Embeddings:
    """Args:
    layers: hidden states of every layer, their input first: `(frames, width)` each, of all utterances in a row.
    utterances: which utterance a frame is of, `(frames,)`.
    """

    layers: list[torch.Tensor]
    utterances: torch.Tensor

    def of_utterances(self, layer: int) -> torch.Tensor:
        """Means over the frames of each utterance: `(utterances, width)`."""
        states = self.layers[layer]
        sums = states.new_zeros(int(self.utterances.max()) + 1, states.shape[1]).index_add_(0, self.utterances, states)
        return sums / self.utterances.bincount()[:, None]


@torch.inference_mode()
def embed(model: nn.Module, source: AudioSource, utterances: int) -> Embeddings:
    """What `model`, an encoder, makes of the first `utterances` of a split."""
    layers, numbers, count = None, [], 0
    for batch, _ in validation_loader([source], batch_seconds=20, crop_seconds=6, max_examples=utterances):
        mask = batch["attention_mask"]
        states = model(batch["input_values"], attention_mask=mask, output_hidden_states=True).hidden_states
        frames = model._get_feat_extract_output_lengths(mask.sum(-1))
        valid = torch.arange(states[0].shape[1]) < frames[:, None]
        numbers.append((torch.arange(len(mask))[:, None] + count).expand(valid.shape)[valid])
        layers = [[] for _ in states] if layers is None else layers
        for layer, state in zip(layers, states, strict=True):
            layer.append(state[valid])
        count += len(mask)
    return Embeddings([torch.cat(layer).double() for layer in layers], torch.cat(numbers))


def readable(of: torch.Tensor, wanted: torch.Tensor) -> float:
    """Share of the variance of `wanted` that ridge regression on `of` explains, fitted on the even rows and tested on
    the odd ones."""
    x, y = (tensor - tensor[::2].mean(0) for tensor in (of, wanted))
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    gram = x[::2].T @ x[::2]
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
    weights = torch.linalg.solve(gram + ridge, x[::2].T @ y[::2])
    return 1 - ((x[1::2] @ weights - y[1::2]).square().sum() / y[1::2].square().sum()).item()


def effective_rank(states: torch.Tensor) -> float:
    """Exponential of the entropy of the singular values (RankMe, https://huggingface.co/papers/2210.02885)."""
    values = torch.linalg.svdvals(states - states.mean(0))
    shares = values / values.sum()
    return float(torch.exp(-(shares * (shares + 1e-12).log()).sum()))


def agreement(of: torch.Tensor, wanted: torch.Tensor) -> float:
    """Adjusted mutual information of the clusters of one and of the other."""
    labels = [KMeans(CLUSTERS, n_init=1, random_state=0).fit_predict(t[::2].numpy()) for t in (of, wanted)]
    return float(adjusted_mutual_info_score(*labels))


def similarity(of: torch.Tensor, wanted: torch.Tensor) -> float:
    """Linear CKA (https://huggingface.co/papers/1905.00414)."""
    x, y = (tensor - tensor.mean(0) for tensor in (of, wanted))
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def _all_layers(embeddings: Embeddings) -> torch.Tensor:
    """Utterance means of all layers side by side, each layer scaled to the same variance."""
    means = [embeddings.of_utterances(layer) for layer in range(len(embeddings.layers))]
    return torch.cat([(states - states.mean(0)) / states.std() for states in means], 1)


def _by_layer(own: Embeddings, teacher: Embeddings) -> float:
    """How well each of the teacher's layers can be read from the subnet's layer at the same share of its depth."""
    depth, full = len(own.layers) - 1, len(teacher.layers) - 1
    return mean(readable(own.layers[round(i * depth / full)], layer) for i, layer in enumerate(teacher.layers))


SCORES: dict[str, Callable[[Embeddings, Embeddings], float]] = {
    "agreement of clusters": lambda own, teacher: agreement(own.layers[-1], teacher.layers[-1]),
    "effective rank of frames": lambda own, teacher: effective_rank(own.layers[-1]),
    "effective rank of utterances": lambda own, teacher: effective_rank(_all_layers(own)),
    "similarity of utterances": lambda own, teacher: similarity(_all_layers(own), _all_layers(teacher)),
    "teacher's last layer read": lambda own, teacher: readable(own.layers[-1], teacher.layers[-1]),
    "teacher's layers read": _by_layer,
}
MIXES = {
    "loss and layers read": ("loss", "teacher's layers read"),
    "loss and clusters": ("loss", "agreement of clusters"),
    "loss and utterances": ("loss", "similarity of utterances"),
    "loss, clusters and utterances": ("loss", "agreement of clusters", "similarity of utterances"),
}


def with_mixes(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    """Scores of some subnets, more is better, and means of their ranks."""
    ranks = {name: rankdata(values) for name, values in scores.items()}
    return scores | {name: np.mean([ranks[part] for part in parts], axis=0).tolist() for name, parts in MIXES.items()}

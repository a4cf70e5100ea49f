"""The prediction head that a student which starts as its teacher begins with: fitted, not random.

A random head makes the first steps tear up the weights below it, which were right. The head is linear, so the best one
for weights as they are is a least-squares problem, solved on a minute of audio.
"""

from collections.abc import Iterable

import torch

from lighthubert_hf.training.audio.batching import Batch

from .step import DistillationModel
from .validation import validation_subnets

RIDGE = 1e-3  # of the mean square of an input


@torch.no_grad()
def fit_head(model: DistillationModel, batches: Iterable[Batch], *, seed: int = 0, num_random: int = 4) -> None:
    r"""Set the student's prediction head to the ridge regression of the targets on its last hidden states, in place.

    $$ W = \Big(\sum_{t} z_t z_t^\top + \lambda I\Big)^{-1} \sum_t z_t \, y_t^\top, \qquad
       \lambda = \tfrac{1}{1000} \operatorname{mean} \operatorname{diag} \sum_t z_t z_t^\top $$

    over the valid frames of unmasked audio. The states of a subnet narrower than the head count as zero beyond its
    width, so that one head serves all: that of a supernet is fitted on its smallest, default and largest subnet and on
    some random ones together.

    Args:
        model: Whose objective is `lighthubert`.
        batches: Some audio; a minute does.
        seed: Of the random subnets.
        num_random: How many of them.
    """
    student, subnets = model.student, [None]
    if student.search_space is not None:
        subnets = list(validation_subnets(student.config, num_random, seed).values())
    was_training, active = student.training, student.active_subnet if student.search_space is not None else None
    student.eval()
    weight = student.prediction_head.weight
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    cross = torch.zeros(weight.shape[1], weight.shape[0], dtype=torch.float64)
    for batch in batches:
        prepared = model.prepare(batch, masking=None, seed=0, step=0)
        (targets,) = prepared.targets
        valid = prepared.valid[:, : targets.shape[1]]
        wanted = targets[valid].double().cpu()
        for subnet in subnets:
            features = model.features(prepared, subnet)
            if subnet is not None:
                student.set_active_subnet(subnet)
            states = student.lighthubert.encode(features, prepared.attention_mask).last_hidden_state
            states = states[:, : targets.shape[1]][valid].double().cpu()
            width = states.shape[1]
            gram[:width, :width] += states.T @ states
            cross[:width] += states.T @ wanted
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight.copy_(torch.linalg.solve(gram, cross).T)
    student.train(was_training)
    if active is not None:
        student.set_active_subnet(active)

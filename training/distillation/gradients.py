"""Gradients summed over all processes, once per optimiser step.

Why not `DistributedDataParallel`: a step runs several subnets, each leaving other layers out, and their gradients meet
at the features of a front end that runs once. DDP reduces during one backward of one forward; unsynchronised backwards
whose unused parameters differ would leave ranks with different gradients. Summing what has accumulated, at the end, is
exact for any mixture of subnets, gradient checkpointing and accumulation, and costs one reduction per step.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

BUCKET_ELEMENTS = 2**24  # 64 MB of fp32: large enough for bandwidth, small enough as a temporary


def broadcast_parameters(parameters: Sequence[torch.Tensor]) -> None:
    """Every process starts from the first one's values."""
    if _alone():
        return
    for parameter in parameters:
        dist.broadcast(parameter.data, 0)


def reduce_statistics(statistics: torch.Tensor, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Sum `statistics` over processes, and agree on which parameters have a gradient anywhere.

    A parameter that has one elsewhere but not here gets zeros, so that all processes reduce the same; one that has
    none anywhere keeps `None`, and the optimiser leaves it alone everywhere.
    """
    if _alone():
        return statistics
    present = torch.tensor([p.grad is not None for p in parameters], dtype=statistics.dtype)
    packed = torch.cat([statistics, present.to(statistics.device, non_blocking=True)])
    dist.all_reduce(packed)
    summed, present = packed.split([len(statistics), len(parameters)])
    for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
        if anywhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return summed


def reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum gradients over processes in place; the result is the same to the bit on all of them."""
    if _alone():
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [piece.view_as(gradient) for piece, gradient in zip(pieces, bucket, strict=True)])


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def _buckets(gradients: list[torch.Tensor]):
    bucket, size = [], 0
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.numel()
        if size >= BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket

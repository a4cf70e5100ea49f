"""Whether two models are the same: a short hash of every weight."""

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_fingerprint(model: nn.Module, facts: Any = None, digest_size: int = 16) -> str:
    """A hash of a model's weights (names, types, shapes, every bit) and of what else makes it what it is.

    Args:
        facts: more to be told apart by, as JSON can say it.
        digest_size: bytes of the hash; the text has twice as many digits.
    """
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=digest_size)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

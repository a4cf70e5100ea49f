"""Flash attention 2 without its kernels, which need a GPU: stand-ins for them under transformers' own wrapper."""

import inspect

import torch
from transformers import modeling_flash_attention_utils


def reference_flash_attention(query, key, value, softmax_scale, window_size=(-1, -1), causal=False, dropout_p=0.0):
    """What flash attention computes, `(B, T, H, D)`; a window of (l, r) is inclusive, -1 is unlimited."""
    assert not causal
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * softmax_scale
    offset = torch.arange(key.shape[1]) - torch.arange(query.shape[1])[:, None]
    left, right = (reach if reach >= 0 else key.shape[1] for reach in window_size)
    scores = scores.masked_fill((offset < -left) | (offset > right), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)


def reference_varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **kwargs):
    bounds = zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)
    rows = [[tensor[None, start:stop] for tensor in (query, key, value)] for start, stop in bounds]
    return torch.cat([reference_flash_attention(*row, **kwargs)[0] for row in rows])


# transformers looks which of the optional arguments a kernel has.
reference_varlen.__signature__ = inspect.Signature(
    [
        *list(inspect.signature(reference_varlen).parameters.values())[:-1],
        *list(inspect.signature(reference_flash_attention).parameters.values())[3:],
    ]
)


def use_stand_ins(monkeypatch) -> None:
    """transformers' wrapper, which does masks and windows, finds the functions above."""
    utils = modeling_flash_attention_utils
    functions = (reference_flash_attention, reference_varlen, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)

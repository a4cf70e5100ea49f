"""Checkpoints in the original's layout, rebuilt from names, shapes and a seed, and what the original computed on them.

The golden vectors in `data/tiny-1.safetensors` came from the original implementation, run on
`original_checkpoint(cfg, 1)`:

- `wav0` … `wav3`: normalised waveforms of 16000, 11111, 7000 and 15680 samples;
- `NAME.wav0.hidden1`, `.hidden6`, `.last`, `.prediction`: outputs of subnet NAME, one utterance, no padding (not the
  original's `hidden0`, which is taken before the positional convolution and the norm, ours after them);
- `default.padded`, `default.padded_mask`: last hidden states of the padded batch wav0–wav2, and 1 where the original
  thinks a frame padding (it keeps up to two frames more than transformers);
- `random0.masked.last`, `random0.mask_indices`: frames replaced by the mask embedding;
- `window16.wav3.last`: sliding window of 16 frames.

`data/tiny-1.json` has the checkpoint's `cfg.model`, its search space and the subnets, in our terms, with the
original's parameter counts.
"""

import ast
import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from .precision import assert_as_exact

DATA = Path(__file__).parent / "data"
GOLDEN_VECTORS = DATA / "tiny-1.safetensors"
DROPPED = ("label_embs_concat", "final_proj.")  # left over from pre-training, all zero here
SHARED = Path(__file__).parents[2] / "shared" / "golden"


def assert_as_the_original(found: torch.Tensor, vector: torch.Tensor, exact: torch.Tensor) -> None:
    """Assert that we compute what the original did, and as exactly.

    The vectors are of another machine, and in float32. How far they are from what we compute in float64 is the same
    wherever the test runs: 2e-6 of values of size 1, the original's rounding on that machine.

    Args:
        found, exact: ours, in float32 and float64.
        vector: the original's, in float32.
    """
    assert (vector.double() - exact).abs().max() < 1e-5
    assert_as_exact(found, vector, exact)


def golden_description() -> dict:
    """`{"cfg": …, "search_space": …, "subnets": {name: {"subnet", "attention_window", "num_parameters"}}}`."""
    return json.loads((DATA / "tiny-1.json").read_text())


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The made-up weight called `name` in the original's state dict: a function of name, shape and seed only."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    a = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("weight_g"):
        a = np.abs(a) + np.float32(0.5)
    elif len(shape) == 1:
        a = np.float32(0.1) * a + np.float32(name.endswith("weight"))
    else:
        gain = np.float32(1.4 if name.startswith("feature_extractor.") else 1)
        a = a * gain / np.sqrt(np.prod(shape[1:]))  # in double precision, then rounded once
    return torch.from_numpy(a.astype(np.float32))


def conv_layers(text: str) -> list[tuple[int, int, int]]:
    """`"[(32,10,5)] + [(32,3,2)] * 4"` as (channels, kernel, stride) of every layer."""

    def value(node):
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            return left + right if isinstance(node.op, ast.Add) else left * right
        return ast.literal_eval(node)

    return value(ast.parse(text, mode="eval").body)


def original_shapes(cfg: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's state dict for its `cfg.model`, in its order."""
    width, ffn = cfg["encoder_embed_dim"], cfg["encoder_ffn_embed_dim"]
    shapes, channels = {"mask_emb": (width,)}, 1
    for i, (out, kernel, _) in enumerate(conv_layers(cfg["conv_feature_layers"])):
        prefix = f"feature_extractor.conv_layers.{i}"
        shapes[f"{prefix}.0.weight"] = (out, channels, kernel)
        if cfg["conv_bias"]:
            shapes[f"{prefix}.0.bias"] = (out,)
        if cfg["extractor_mode"] == "layer_norm":
            shapes |= {f"{prefix}.2.1.{p}": (out,) for p in ("weight", "bias")}
        elif i == 0:
            shapes |= {f"{prefix}.2.{p}": (out,) for p in ("weight", "bias")}
        channels = out
    shapes |= {"post_extract_proj.weight": (width, channels), "post_extract_proj.bias": (width,)}
    shapes |= {
        "encoder.pos_conv.0.bias": (width,),
        "encoder.pos_conv.0.weight_g": (1, 1, cfg["conv_pos"]),
        "encoder.pos_conv.0.weight_v": (width, width // cfg["conv_pos_groups"], cfg["conv_pos"]),
    }
    for i in range(cfg["encoder_layers"]):
        prefix = f"encoder.layers.{i}"
        matrices = {f"self_attn.{p}_proj": (width, width) for p in ("k", "v", "q", "out")}
        matrices |= {"self_attn_layer_norm": (width,), "fc1": (ffn, width), "fc2": (width, ffn)}
        for name, shape in (matrices | {"final_layer_norm": (width,)}).items():
            shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
    shapes |= {"encoder.layer_norm.weight": (width,), "encoder.layer_norm.bias": (width,)}
    shapes |= {"layer_norm.weight": (channels,), "layer_norm.bias": (channels,)}
    for i, heads in enumerate(cfg.get("layer_pred_num", "0").split(",")):
        if int(heads) > 0:
            shapes[f"layer_pred_heads.{i}.weight"] = (cfg["teacher_embed_dim"] * int(heads), width)
    final = cfg["final_dim"]
    return shapes | {
        "label_embs_concat": (504, final),
        "final_proj.weight": (final, width),
        "final_proj.bias": (final,),
    }


def original_checkpoint(cfg: dict, seed: int = 1) -> dict:
    """A checkpoint as the original writes it, keys that a converter must drop included.

    Args:
        cfg: the original's `cfg.model`, such as `golden_description()["cfg"]`.
        seed: another seed, other weights.
    """
    weights = OrderedDict(
        (name, torch.zeros(shape) if name.startswith(DROPPED) else draw(name, shape, seed))
        for name, shape in original_shapes(cfg).items()
    )
    task = {
        "_name": "compress_hubert_pretraining",
        "normalize": cfg["extractor_mode"] == "layer_norm",
        "sample_rate": 16000,
    }
    return {"cfg": {"_name": None, "model": dict(cfg), "task": task}, "model": weights}

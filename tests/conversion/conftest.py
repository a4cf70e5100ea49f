"""Checkpoints in the original's layout, small enough to convert in a tenth of a second."""

import os
from pathlib import Path

import pytest
import torch

from lighthubert_hf import SearchSpace

from ..golden import golden_description, original_checkpoint


@pytest.fixture(autouse=True, scope="session")
def quiet():
    """No progress bars of other libraries between the test results."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def small_cfg() -> dict:
    """`cfg.model` of a two-layer supernet."""
    return golden_description()["cfg"] | {
        "encoder_layers": 2,
        "encoder_ffn_embed_dim": 256,
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 2",
        "conv_pos": 16,
        "layer_pred_num": "0,1",
        "teacher_embed_dim": 24,
        "final_dim": 8,
    }


@pytest.fixture(scope="session")
def small_space() -> SearchSpace:
    return SearchSpace((64, 96, 128), (1, 2), (1.0, 1.5, 2.0), (1, 2))


@pytest.fixture
def save_original(tmp_path, small_cfg):
    """`save_original(edit=None, seed=1, **cfg)`: the path of a new checkpoint that `edit` has changed."""

    def save(edit=None, seed: int = 1, **cfg) -> Path:
        checkpoint = original_checkpoint(small_cfg | cfg, seed)
        if edit is not None:
            edit(checkpoint)
        path = tmp_path / f"original-{len(os.listdir(tmp_path))}.pt"
        torch.save(checkpoint, path)
        return path

    return save

"""transformers' own common model tests, run on our models.

They are in transformers' source distribution, not in its wheel, so they run where that is at hand:

    pip download --no-deps --no-binary :all: transformers==5.23.0 && tar xzf transformers-5.23.0.tar.gz
    TRANSFORMERS_SOURCE=transformers-5.23.0 pytest -o addopts= tests/model/test_transformers_common.py

`pip install parameterized` too. docs/model.md says which of them apply and pass.
"""

import importlib
import os
import sys
import types
import unittest
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from lighthubert_hf import LightHubertConfig, LightHubertModel

from ..heads import HEADS, make_labels

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("TRANSFORMERS_SOURCE names no source distribution of transformers", allow_module_level=True)

pytest.importorskip("parameterized")
NO_EMBEDDINGS = "speech has no token embeddings"


def load(name: str) -> types.ModuleType:
    """A module of transformers' tests. What those import that is not in the distribution is for other models."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(Path(SOURCE).resolve() / "tests")]
    stubs = {
        "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "utils.test_configuration_utils": {"config_common_kwargs": {}},
    }
    sys.modules[package.__name__] = package
    for path, content in stubs.items():
        for stub in (path.split(".")[0], path):
            module = sys.modules.setdefault(f"{package.__name__}.{stub}", types.ModuleType(stub))
            module.__path__ = []
        vars(module).update(content)
    with patch("transformers.utils.direct_transformers_import"):
        return importlib.import_module(f"{package.__name__}.{name}")


common = load("test_modeling_common")
ConfigTester = load("test_configuration_common").ConfigTester

# The mixin tells models apart by transformers' tables of names, in which ours are not.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "lighthubert": "LightHubertModel"}


class TinyModels:
    """The sizes the mixin asks for, and inputs."""

    batch_size, num_hidden_layers, num_attention_heads, hidden_size = 4, 2, 2, 32
    seq_length = encoder_seq_length = 14
    is_training = True

    def get_config(self) -> LightHubertConfig:
        return LightHubertConfig(
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            head_dim=16,
            intermediate_size=48,
            num_hidden_layers=self.num_hidden_layers,
            conv_dim=[16] * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            vocab_size=12,
            classifier_proj_size=24,
            num_labels=5,
            tdnn_dim=(16, 16, 24),
            tdnn_kernel=(3, 3, 1),
            tdnn_dilation=(1, 2, 1),
            xvector_output_dim=16,
            target_size=20,
            mask_time_prob=0.5,  # or the mask embedding would get no gradient
            mask_time_length=2,
        )

    def prepare_config_and_inputs_for_common(self):
        values = torch.randn(self.batch_size, 4800)
        return self.get_config(), {"input_values": values, "attention_mask": torch.ones_like(values).long()}


class LightHubertCommonTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LightHubertModel, *HEADS)
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = TinyModels()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return inputs | make_labels(model_class) if return_labels and model_class is not LightHubertModel else inputs

    def test_config(self):
        ConfigTester(
            self, LightHubertConfig, hidden_size=32, num_conv_pos_embedding_groups=4, has_text_modality=False
        ).run_common_tests()

    @unittest.skip(NO_EMBEDDINGS)
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip(NO_EMBEDDINGS)
    def test_resize_tokens_embeddings(self):
        pass

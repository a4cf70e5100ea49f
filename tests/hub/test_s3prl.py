"""s3prl reads a plain-HuBERT export: what its `hf_hubert_custom` upstream and its featurizer do, done here.

The upstream loads `HubertModel` and `Wav2Vec2FeatureExtractor` from one folder, pads a list of waveforms with an
attention mask and asks for all hidden states. The featurizer stacks them, weighs them, and cuts every utterance to
`round(samples / 320)` frames.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertModel, Subnet
from lighthubert_hf.hub.folder import save_model_folder

from ..precision import assert_as_exact, in_double

SAMPLING_RATE, DOWNSAMPLE_RATE = 16_000, 320
# Layers differ, so the export has to pad them.
SUBNET = Subnet(64, (4, 2, 1), (192, 96, 128))


@pytest.fixture(scope="module")
def static(make_model):
    return make_model(LightHubertModel).extract_subnet(SUBNET).eval()


@pytest.fixture(scope="module")
def folder(static, tmp_path_factory):
    return str(save_model_folder(static.to_hubert(), tmp_path_factory.mktemp("s3prl") / "plain"))


@pytest.fixture(scope="module")
def waveforms():
    rng = np.random.default_rng(0)
    # Neither of zero mean nor of unit variance, as recordings are.
    return [(0.05 * rng.standard_normal(n) + 0.1).astype(np.float32) for n in (16_000, 9_000, 5_123, 400)]


@torch.inference_mode()
def hidden_states(folder, waveforms):
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = HubertModel.from_pretrained(folder).eval()
    inputs = extractor(
        waveforms, sampling_rate=SAMPLING_RATE, padding=True, return_attention_mask=True, return_tensors="pt"
    )
    return model(**inputs, output_hidden_states=True).hidden_states


def test_the_folder_says_that_waveforms_are_normalised(folder):
    settings = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    assert settings["do_normalize"] is True
    assert settings["sampling_rate"] == SAMPLING_RATE
    assert json.loads((Path(folder) / "config.json").read_text())["model_type"] == "hubert"


@pytest.mark.numerical
@torch.inference_mode()
def test_every_utterance_of_a_padded_batch_is_what_the_subnet_makes_of_it_alone(static, folder, waveforms):
    batch = hidden_states(folder, waveforms)
    assert len(batch) == SUBNET.num_hidden_layers + 1
    twins = static, in_double(static)
    for row, waveform in enumerate(waveforms):
        normalised = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        audio = torch.from_numpy(normalised)[None]
        alone, exact = (twin(audio, output_hidden_states=True).hidden_states for twin in twins)
        assert_as_exact([states[row : row + 1, : alone[0].shape[1]] for states in batch], alone, exact)


def test_the_featurizer_can_weigh_the_layers_and_cut_the_utterances(folder, waveforms):
    states = hidden_states(folder, waveforms)
    stacked = torch.stack(states)
    mixed = (torch.zeros(len(states)).softmax(-1)[:, None, None, None] * stacked).sum(0)
    assert mixed.shape == (len(waveforms), states[0].shape[1], SUBNET.hidden_size)
    assert torch.isfinite(mixed).all()
    longest = max(len(waveform) for waveform in waveforms)
    assert abs(mixed.shape[1] - round(longest / DOWNSAMPLE_RATE)) < 5  # what s3prl tolerates


def test_the_upstream_can_be_trained(folder, waveforms):
    """Trained, s3prl wants the same number of hidden states every time: no layer may be dropped."""
    model = HubertModel.from_pretrained(folder).train()
    assert model.config.layerdrop == 0
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(
        waveforms[:2], sampling_rate=SAMPLING_RATE, padding=True, return_attention_mask=True, return_tensors="pt"
    )
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == SUBNET.num_hidden_layers + 1
    torch.stack(states).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "masked_spec_embed" not in name)

"""Tiny encoders of every family that may teach."""

import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from .tiny import TINY

_CLASSES = {
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "wavlm": (WavLMConfig, WavLMModel),
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel),
}
FAMILIES = [*_CLASSES, "hubert-pre-norm"]


def make_encoder(family: str, seed: int = 0, **fields):
    """A randomly initialised encoder in evaluation mode."""
    if family == "hubert-pre-norm":
        family, fields = "hubert", fields | {"do_stable_layer_norm": True}
    config, model = _CLASSES[family]
    own = dict(TINY)
    if family == "data2vec-audio":
        del own["feat_extract_norm"]
        own |= {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
    torch.manual_seed(seed)
    return model(config(**own | fields)).eval()

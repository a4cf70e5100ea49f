"""Gives a HuBERT-like model of transformers the fast front end and positional convolution of ours.

For a teacher, which distillation runs as often as the student. Weights stay the same parameters under the same names.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from .elastic import WeightNormConv1d
from .feature_encoder import FeatureEncoder


class ChannelsFirstFeatureEncoder(FeatureEncoder):
    """`(batch, samples)` to `(batch, channels, frames)`, as transformers' models expect it of theirs."""

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return super().forward(input_values).transpose(1, 2)

    def _freeze_parameters(self) -> None:
        self.freeze()


class PositionalConvEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.conv = WeightNormConv1d(
            config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        )
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(hidden_states))


_PARTS = {"feature_extractor": ChannelsFirstFeatureEncoder, "encoder.pos_conv_embed": PositionalConvEmbedding}


def accelerate(model: PreTrainedModel) -> tuple[str, ...]:
    """Replace parts of `model` by faster ones that compute the same on the same parameters.

    Args:
        model: a bare encoder of transformers: HuBERT, wav2vec 2.0, WavLM, …

    Returns:
        Names of the parts replaced. A part whose parameters are not those of HuBERT's (data2vec has five small
        positional convolutions, for instance), which has hooks or is replaced already, is left as it is.
    """
    done = []
    for name, fast in _PARTS.items():
        parent, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent)
        part = getattr(parent, leaf, None)
        if part is None or isinstance(part, fast):
            continue
        if any(module._forward_hooks or module._forward_pre_hooks for module in part.modules()):
            continue
        with torch.device("meta"):
            replacement = fast(model.config)
        if _hand_over_parameters(part, replacement):
            setattr(parent, leaf, replacement.train(part.training))
            done.append(name)
    return tuple(done)


def _hand_over_parameters(old: nn.Module, new: nn.Module) -> bool:
    """Make `new` use the parameters of `old`, if names and shapes agree; says whether they do."""
    parameters = dict(old.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if shapes != {name: parameter.shape for name, parameter in new.named_parameters()}:
        return False
    for name, parameter in parameters.items():
        module, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(module), leaf, parameter)
    return True

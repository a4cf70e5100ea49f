"""Whether rows of different lengths may run together."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_padding_invariant(model: "PreTrainedModel") -> bool:
    """Whether a row of a padded batch, with an `attention_mask`, comes out as it would alone, on its valid frames.

    LightHuBERTs say so themselves. Of other encoders (HuBERT, wav2vec 2.0, WavLM) those are that normalise within
    every frame: transformers' group norm takes its statistics from the padding, too. data2vec-audio is not: its stack
    of positional convolutions carries what the padding has become into the last frames.

    Args:
        model: An encoder, or a model with a head on one.
    """
    own = getattr(model, "padding_invariant", None)
    return getattr(model.config, "feat_extract_norm", None) == "layer" if own is None else own

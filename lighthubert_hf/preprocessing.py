"""How audio becomes a model's input: the sampling rate, and the feature extractor that stands where none is given."""

from transformers import Wav2Vec2FeatureExtractor

SAMPLING_RATE = 16_000
"""Samples per second of all audio that models hear."""


def build_feature_extractor(
    *, do_normalize: bool = True, sampling_rate: int = SAMPLING_RATE, return_attention_mask: bool = True
) -> Wav2Vec2FeatureExtractor:
    """A feature extractor for mono waveforms, padded with zeros on the right.

    Args:
        do_normalize: whether each recording gets zero mean and unit variance, as LightHuBERT was trained.
        sampling_rate: samples per second.
        return_attention_mask: whether the model is told what is padding. Ours are padding-invariant; transformers'
            group-norm HuBERTs are not, and were trained without a mask.
    """
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=sampling_rate,
        padding_value=0.0,
        do_normalize=do_normalize,
        return_attention_mask=return_attention_mask,
    )

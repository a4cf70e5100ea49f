"""Makes transformers' Auto classes, and through them its pipelines, know LightHuBERT.

Every class also registers itself to be saved together with its code, so that a saved folder loads with
`trust_remote_code=True` where this package is not installed.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    AutoModelForPreTraining,
    AutoProcessor,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from .model import modeling_lighthubert as modeling
from .model.configuration_lighthubert import LightHubertConfig

AUTO_MODELS = {
    AutoModel: modeling.LightHubertModel,
    AutoModelForPreTraining: modeling.LightHubertForPreTraining,
    AutoModelForCTC: modeling.LightHubertForCTC,
    AutoModelForAudioClassification: modeling.LightHubertForSequenceClassification,
    AutoModelForAudioXVector: modeling.LightHubertForXVector,
    AutoModelForAudioFrameClassification: modeling.LightHubertForAudioFrameClassification,
}


def register() -> None:
    """Tell the Auto classes; doing it twice does no harm."""
    AutoConfig.register(LightHubertConfig.model_type, LightHubertConfig, exist_ok=True)
    LightHubertConfig.register_for_auto_class()
    AutoFeatureExtractor.register(LightHubertConfig, Wav2Vec2FeatureExtractor, exist_ok=True)
    AutoProcessor.register(LightHubertConfig, Wav2Vec2Processor, exist_ok=True)
    for auto, model in AUTO_MODELS.items():
        auto.register(LightHubertConfig, model, exist_ok=True)
        model.register_for_auto_class(auto.__name__)

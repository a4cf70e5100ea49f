"""A HuBERT or wav2vec 2.0 encoder as a LightHuBERT: the same tensors, the same outputs, sooner on a CPU."""

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import HubertModel, PreTrainedModel, Wav2Vec2Model

from lighthubert_hf import LightHubertConfig, LightHubertModel

from .student import lighthubert_fields


def own_form(model: PreTrainedModel) -> LightHubertModel | None:
    """The `LightHubertModel` that computes what `model` does in evaluation, on valid frames; it shares its weights.

    Rows of a padded batch come out as each would alone, with a group-norm front end too, which transformers' own
    classes do not manage.

    `None` where there is none: another family, a subclass, adapter layers, a config of which we cannot do something.
    """
    if type(model) not in (HubertModel, Wav2Vec2Model):
        return None
    try:
        config = LightHubertConfig.from_dict(lighthubert_fields(model.config))
    except (ValueError, StrictDataclassError):  # the config says what it cannot do, batch norm for example
        return None
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        form = LightHubertModel(config)
    state, own = model.state_dict(), form.state_dict()
    # Models that never mask have no embedding for it.
    state.setdefault("masked_spec_embed", torch.zeros(config.hidden_size, dtype=model.dtype, device=model.device))
    if state.keys() != own.keys() or any(state[key].shape != own[key].shape for key in own):
        return None
    form.load_state_dict(state, strict=True, assign=True)
    return form.eval().requires_grad_(False)

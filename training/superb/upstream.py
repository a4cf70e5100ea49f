"""The frozen model that is judged: all its hidden states, and a fingerprint that tells two models apart."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from lighthubert_hf.hub.folder import PREPROCESSOR, PROCESSOR
from lighthubert_hf.loading import load_encoder, load_feature_extractor, reaching
from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.model.front_end import receptive_field
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.subnets import choose_subnet
from lighthubert_hf.training.audio.decoding import normalise
from lighthubert_hf.training.audio.padding import batches_of_similar_length, pad_waveforms, seconds_together

# Part of every fingerprint: raise it when the same weights give other features.
FEATURES_VERSION = 1
# What a config says of where it was saved and by whom.
_PROVENANCE = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}


class Upstream:
    """A frozen encoder in evaluation mode. Not an `nn.Module`, so that nobody trains it.

    Args:
        model: Any encoder of HuBERT's kind (LightHuBERT, HuBERT, wav2vec2, WavLM, data2vec-audio).
        name, revision: Where it is from, for the results.
        subnet: The subnet it was cut out as, for the results.
        normalised: Whether it takes waveforms of zero mean and unit variance, or as they are.

    Raises:
        ValueError: It is a supernet (extract a subnet), or has no convolutional front end.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str | None = None,
        revision: str | None = None,
        subnet: Subnet | None = None,
        normalised: bool = True,
    ):
        model = model.base_model
        if getattr(model.config, "search_space", None) is not None:
            raise ValueError("a supernet has no features of its own; give a subnet, or extract one")
        if not hasattr(model.config, "conv_stride") or not hasattr(model, "encoder"):
            raise ValueError(
                f"a {type(model).__name__} cannot be judged; use a LightHuBERT, HuBERT, wav2vec2 or WavLM"
            )
        self.model = model.eval()
        self.name, self.revision, self.subnet, self.normalised = name, revision, subnet, normalised
        self.width = model.config.hidden_size
        self.num_states = model.config.num_hidden_layers + 1
        self.stride = math.prod(model.config.conv_stride)
        self.field = receptive_field(model.config)
        self.fingerprint = self._fingerprint()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _fingerprint(self) -> str:
        """Of weights, architecture and input: whether features that were kept are this model's."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in _PROVENANCE}
        facts = [FEATURES_VERSION, type(self.model).__name__, self.normalised, config]
        return weights_fingerprint(self.model, facts)

    def features(
        self, waveforms: Sequence[np.ndarray], batch_seconds: float = 60.0, layers: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """All hidden states of each waveform, `(frames, states, width)` in float32 on the model's device.

        Args:
            waveforms: `(samples,)` each, 16 kHz, as recorded; one too short for a frame is padded to one.
            batch_seconds: Audio that runs together. A model whose features depend on padding (transformers'
                own with a group norm) sees every waveform by itself.
            layers: only these of the hidden states, in this order.
        """
        waveforms = [self.prepared(waveform) for waveform in waveforms]
        results: list[torch.Tensor] = [torch.empty(0)] * len(waveforms)
        lengths = [len(waveform) for waveform in waveforms]
        for indices in batches_of_similar_length(lengths, seconds_together(self.model, batch_seconds)):
            for index, states in zip(indices, self._run([waveforms[index] for index in indices], layers), strict=True):
                results[index] = states
        return results

    def prepared(self, waveform: np.ndarray) -> np.ndarray:
        """A waveform as recorded, as the model takes it."""
        return normalise(waveform) if self.normalised else waveform

    @torch.inference_mode()
    def _run(self, waveforms: list[np.ndarray], layers: Sequence[int] | None) -> Iterator[torch.Tensor]:
        batch = pad_waveforms(waveforms, self.field)
        values, mask = (batch[name].to(self.model.device) for name in ("input_values", "attention_mask"))
        mask[:, : self.field] = 1  # what is padded to a frame counts as one
        lengths = self.model._get_feat_extract_output_lengths(mask.sum(-1)).tolist()
        mask = None if bool(mask.all()) else mask
        states = self.model(values, attention_mask=mask, output_hidden_states=True).hidden_states
        states = states if layers is None else [states[layer] for layer in layers]
        for row, length in enumerate(lengths):
            yield torch.stack([state[row, :length] for state in states], dim=1)


def load_upstream(
    model: str | Path | PreTrainedModel | Upstream, *, revision: str | None = None, subnet: str | Subnet | None = None
) -> Upstream:
    """The frozen model of a folder or Hub id, or a live one.

    Args:
        model: Folder, Hub id, model or upstream.
        revision: Of a model on the Hub.
        subnet: Of a supernet: "default", "smallest", "largest", a JSON file, or a `Subnet`; by default the default.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: `subnet` is given for a static model, or does not fit.
    """
    if isinstance(model, Upstream):
        return model
    name, normalised = None, True
    if not isinstance(model, PreTrainedModel):
        name = str(model)
        model = load_encoder(name, revision)
        normalised = _takes_normalised(name, revision)
        revision = getattr(model.config, "_commit_hash", None) or revision
    model, chosen = model.base_model, None
    if getattr(model.config, "search_space", None) is not None:
        chosen = choose_subnet(subnet or "default", model.config)
        model = model.extract_subnet(chosen)
    elif subnet is not None:
        raise ValueError(f"{name or 'the model'} is static and has no subnets; leave the subnet out")
    return Upstream(model, name=name, revision=revision, subnet=chosen, normalised=normalised)


def _takes_normalised(name: str, revision: str | None) -> bool:
    """What the model's feature extractor says; LightHuBERT's default where there is none."""
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    with reaching("model", name, revision):
        if not any(cached_file(name, file, **options) for file in (PREPROCESSOR, PROCESSOR)):
            return True
    return bool(load_feature_extractor(name, revision).do_normalize)

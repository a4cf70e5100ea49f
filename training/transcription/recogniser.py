"""A recogniser that writes down speech while it hears it."""

from math import prod
from typing import Any

import torch
from transformers import AutoModelForCTC, Wav2Vec2Processor

from lighthubert_hf import LightHubertConfig, LightHubertForCTC
from lighthubert_hf.devices import choose_device
from lighthubert_hf.loading import load, load_config, load_lighthubert
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.streaming import StreamingEncoder
from lighthubert_hf.streaming.encoder import Samples
from lighthubert_hf.training.distillation.own_form import own_form

from .words import GreedyWords, Word


def load_recogniser(
    name: str, revision: str | None = None, device: str | None = None
) -> tuple[LightHubertForCTC, Wav2Vec2Processor]:
    """The recogniser in a folder or on the Hub, and its processor. A HuBERT or wav2vec 2.0 runs in our own form.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It has no CTC head, no vocabulary, or one of another size.
    """
    config = load_config(name, revision)
    architecture = (config.architectures or [config.model_type])[0]
    if not architecture.endswith("ForCTC"):
        raise ValueError(
            f"{name} is a {architecture}, without the CTC head that puts out text; train one with "
            "`lighthubert finetune`"
        )
    if config.model_type == LightHubertForCTC.config_class.model_type:
        model: Any = load_lighthubert(name, revision)
    else:
        model = _in_own_form(load(AutoModelForCTC, name, revision=revision).model, name)
    try:
        processor = Wav2Vec2Processor.from_pretrained(name, revision=revision)
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} has no vocabulary and feature extractor beside its weights ({reason}); copy them from the run "
            "that trained it"
        ) from None
    if len(processor.tokenizer) != model.config.vocab_size:
        raise ValueError(
            f"the vocabulary of {name} has {len(processor.tokenizer)} tokens, its head {model.config.vocab_size}; "
            "copy the tokenizer from the run that trained it"
        )
    return model.to(choose_device(device)), processor


def _in_own_form(model: Any, name: str) -> LightHubertForCTC:
    encoder = own_form(model.base_model)
    if encoder is None:
        raise ValueError(
            f"{name} is a {type(model).__name__} whose layers are not LightHuBERT's (those of HuBERT and wav2vec 2.0 "
            "are, but for adapters and batch norm); fine-tune one of these"
        )
    fields = {"vocab_size": model.config.vocab_size, "pad_token_id": model.config.pad_token_id}
    with torch.device("meta"):
        own = LightHubertForCTC(LightHubertConfig.from_dict(encoder.config.to_dict() | fields))
    own.lighthubert, own.lm_head = encoder, model.lm_head
    return own.eval()


class StreamingRecogniser:
    """Words of one stream, with times, as they become final: greedy CTC over a `StreamingEncoder`.

    Args:
        model, processor: As of `load_recogniser`.
        chunk_seconds, left_seconds, right_seconds, normalize: As of `StreamingEncoder`.
    """

    def __init__(
        self,
        model: LightHubertForCTC,
        processor: Wav2Vec2Processor,
        chunk_seconds: float = 0.5,
        left_seconds: float | None = None,
        right_seconds: float | None = None,
        *,
        normalize: bool | tuple[float, float] = True,
        sampling_rate: int = SAMPLING_RATE,
    ):
        self.encoder = StreamingEncoder(
            model,
            chunk_seconds,
            left_seconds,
            right_seconds,
            logits=True,
            normalize=normalize,
            sampling_rate=sampling_rate,
        )
        self._words = GreedyWords(processor.tokenizer, prod(model.config.conv_stride) / SAMPLING_RATE)

    @property
    def now(self) -> float:
        """Seconds before which no word begins that is still to come."""
        return self._words.now

    def feed(self, samples: Samples) -> list[Word]:
        """The next samples, `(samples,)`, to the words that they make final."""
        return self._read(self.encoder.feed(samples))

    def finish(self) -> list[Word]:
        """The last words."""
        return self._read(self.encoder.finish()) + self._words.finish()

    def _read(self, logits: torch.Tensor) -> list[Word]:
        return self._words.feed(logits.argmax(-1).tolist())

"""A recogniser that writes down speech while it hears it."""

from math import prod

import torch
from transformers import Wav2Vec2Processor

from lighthubert_hf import LightHubertForCTC
from lighthubert_hf.devices import choose_device
from lighthubert_hf.loading import load_lighthubert
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.streaming import StreamingEncoder
from lighthubert_hf.streaming.encoder import Samples

from .words import GreedyWords, Word


def load_recogniser(
    name: str, revision: str | None = None, device: str | None = None
) -> tuple[LightHubertForCTC, Wav2Vec2Processor]:
    """The recogniser in a folder or on the Hub, and its processor.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It has no CTC head, no vocabulary, or one of another size.
    """
    model = load_lighthubert(name, revision)
    if not isinstance(model, LightHubertForCTC):
        raise ValueError(
            f"{name} is a {type(model).__name__}, without the CTC head that puts out text; train one with "
            "`lighthubert finetune`"
        )
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

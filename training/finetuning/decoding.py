"""From logits to text."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, Wav2Vec2Processor

from lighthubert_hf.model.front_end import receptive_field
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.audio.padding import batches_of_similar_length, pad_waveforms, seconds_together


def greedy_ids(model: PreTrainedModel, logits: torch.Tensor, attention_mask: torch.Tensor) -> torch.LongTensor:
    """Best token of every frame, the blank in frames of padding: `(rows, frames, tokens)` to `(rows, frames)`."""
    ids = logits.argmax(-1)
    lengths = model._get_feat_extract_output_lengths(attention_mask.sum(-1)).to(ids.device)
    padding = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
    return ids.masked_fill(padding, model.config.pad_token_id).cpu()


def transcriptions(ids: torch.LongTensor, processor: Wav2Vec2Processor) -> list[str]:
    """Text of every row, as transformers' pipeline writes it: repeats merged, blanks left out."""
    # With `skip_special_tokens` the tokenizer drops blanks before it merges: "all" would become "al".
    return processor.tokenizer.batch_decode(ids, skip_special_tokens=False)


@torch.inference_mode()
def transcribe(
    model: PreTrainedModel,
    processor: Wav2Vec2Processor,
    examples: list[SpeechExample],
    *,
    batch_seconds: float = 120.0,
    decode: Callable[[torch.Tensor], str] | None = None,
) -> list[str]:
    """Text of every example, in their order.

    Args:
        decode: Turns the log-probabilities `(frames, tokens)` of one utterance into text, such as a
            `BeamSearch`; `None`: greedy.
    """
    model.eval()
    texts = [""] * len(examples)
    lengths = [len(example.waveform) for example in examples]
    for indices in batches_of_similar_length(lengths, seconds_together(model, batch_seconds)):
        batch = pad_waveforms([examples[index].waveform for index in indices], receptive_field(model.config))
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits = model(**batch).logits
        if decode is None:
            found = transcriptions(greedy_ids(model, logits, batch["attention_mask"]), processor)
        else:
            frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(-1))
            rows = logits.float().log_softmax(-1).cpu()
            found = [decode(row[:count]) for row, count in zip(rows, frames.tolist(), strict=True)]
        for index, text in zip(indices, found, strict=True):
            texts[index] = text
    return texts

"""CTC: the model's own loss, and error rates of the text that is decoded greedily."""

from collections.abc import Sequence

from lighthubert_hf.metrics import CharacterErrorRate, WordErrorRate
from lighthubert_hf.training.audio.labelled import Batch, SpeechExample

from .ctc_decoding import greedy_ids, transcriptions
from .trainer import Row, SpeechTrainer


class CtcTrainer(SpeechTrainer):
    """Scores `loss`, `wer` and `cer`. Only token ids leave the device, and frames of padding are blanks."""

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[Row]:
        outputs = self.model(**batch)
        texts = transcriptions(greedy_ids(self.model, outputs.logits, batch["attention_mask"]), self.processor)
        return [(outputs.loss.item(), example.text, text) for example, text in zip(examples, texts, strict=True)]

    def score(self, rows: list[Row]) -> dict[str, float]:
        losses, references, predictions = zip(*rows, strict=True)
        return {"loss": sum(losses) / len(losses), **error_rates(predictions, references)}


def error_rates(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`wer` and `cer` over all words and characters of the set."""
    rates = {}
    for metric in (WordErrorRate(), CharacterErrorRate()):
        rates |= metric.compute(predictions=list(predictions), references=list(references))
    return rates

"""Fine-tuning of speech recognisers: a vocabulary and CTC."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCTC, PretrainedConfig, PreTrainedModel, Wav2Vec2Processor

from lighthubert_hf.metrics import CharacterErrorRate, WordErrorRate
from lighthubert_hf.model.front_end import conv_output_lengths
from lighthubert_hf.training.audio.batching import Batch
from lighthubert_hf.training.audio.examples import SpeechExample, read_examples
from lighthubert_hf.training.audio.padding import pad_waveforms, shortest_input
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.tasks.ctc import frames_needed

from .beam_search import BeamSearch
from .decoding import greedy_ids, transcribe, transcriptions
from .processors import build_processor, characters, load_processor, phonemes, word_pieces
from .task import FineTuningTask
from .trainer import ScoredRow, SpeechTrainer
from .transcripts import Cleaning, Coverage, check_coverage, coverage, describe, spelt

logger = logging.getLogger(__name__)

# Transcripts of a stream that are compared with the vocabulary beforehand.
LOOK = 200
UNITS = {"characters": "characters", "bpe": "pieces of words", "phonemes": "phonemes"}
SYNTHETIC_HELD_OUT = ("validation", "test_sentences", "test_voice")


class CtcCollator:
    """Examples to a padded batch with `labels` `(rows, longest)`, -100 where padded.

    Args:
        processor: Its tokenizer makes the labels.
        config: The model's, for the frames it makes of a waveform.
        clean: What is done to transcripts first; by default whitespace alone is put in order.
    """

    def __init__(self, processor: Wav2Vec2Processor, config: PretrainedConfig, clean: Cleaning | None = None):
        self.tokenizer, self.config, self.clean = processor.tokenizer, config, clean or Cleaning()
        self.min_samples = shortest_input(config)

    def labels(self, text: str) -> list[int]:
        return self.tokenizer(spelt(self.clean(text), self.tokenizer)).input_ids

    def is_possible(self, example: SpeechExample) -> bool:
        """Whether the transcript fits the frames. CTC's loss is infinite otherwise."""
        frames = conv_output_lengths(len(example.waveform), self.config)
        return frames >= max(1, frames_needed(self.labels(example.text)))

    def __call__(self, examples: list[SpeechExample]) -> Batch:
        batch = pad_waveforms([example.waveform for example in examples], self.min_samples)
        rows = [self.labels(example.text) for example in examples]
        labels = torch.full((len(rows), max(1, *map(len, rows))), -100)
        for row, ids in enumerate(rows):
            labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return {**batch, "labels": labels}


class CtcTrainer(SpeechTrainer):
    """Scores `loss`, `wer` and `cer`. Only token ids leave the device, and frames of padding are blanks."""

    def predict_rows(self, examples: list[SpeechExample], batch: Batch) -> list[ScoredRow]:
        outputs = self.model(**batch)
        texts = transcriptions(greedy_ids(self.model, outputs.logits, batch["attention_mask"]), self.processor)
        references = [self.collate.clean(example.text) for example in examples]
        return [(outputs.loss.item(), *row) for row in zip(references, texts, strict=True)]

    def score(self, rows: list[ScoredRow]) -> dict[str, float]:
        losses, references, predictions = zip(*rows, strict=True)
        return {"loss": sum(losses) / len(losses), **error_rates(predictions, references)}


def error_rates(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`wer` and `cer` over all words and characters of the set."""
    rates = {}
    for metric in (WordErrorRate(), CharacterErrorRate()):
        rates |= metric.compute(predictions=list(predictions), references=list(references))
    return rates


class CtcFineTuning(FineTuningTask):
    auto_class, trainer_class = AutoModelForCTC, CtcTrainer
    scores = {"cer": "character error rate (%)", "wer": "word error rate (%)"}  # noqa: RUF012
    hub_task, hub_task_name = "automatic-speech-recognition", "speech recognition"
    refused = "more text than frames"

    def __init__(self, recipe):
        super().__init__(recipe)
        self.clean = Cleaning(recipe.data.transcripts)
        self.keeps_head = recipe.data.vocabulary is not None and recipe.data.vocabulary == recipe.model.path

    def synthesise(self, folder: Path) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
        from lighthubert_hf.training.synthetic.speech import synthesise_corpus

        minutes = self.recipe.data.synthetic_minutes
        synthesise_corpus(folder, minutes=minutes, held_out_minutes=min(3.0, minutes / 5))
        train, *held_out = (
            [AudioSource(str(folder), split, text_column="text")] for split in ("train", *SYNTHETIC_HELD_OUT)
        )
        return train, dict(zip(SYNTHETIC_HELD_OUT, held_out, strict=True))

    def check_names(self) -> None:
        super().check_names()
        if self.recipe.data.vocabulary is not None:
            self._processor = self._loaded()

    def prepare(self, train: list[SpeechExample] | None, sources: list[AudioSource]) -> None:
        data = self.recipe.data
        if train is None and data.vocabulary is None:
            raise ValueError(
                f"the training speech exceeds data.memory_gb ({data.memory_gb:g}) and is streamed, so its "
                "characters are not known beforehand: give data.vocabulary, a folder with a tokenizer"
            )
        if train is None:  # a look at the beginning of the stream
            train = read_examples(sources, max_examples=LOOK, max_seconds=data.max_seconds, progress=False)
        raw = [example.text for example in train]
        texts = [self.clean(text) for text in raw]
        if data.vocabulary is None:
            self._processor = self._built(texts)
        found = coverage(texts, self._processor.tokenizer)
        self._warn(found, "the training transcripts", raw)
        self.facts = {"vocabulary": {"units": data.units, **found.to_dict()}}
        self._report = describe(found, "units" if data.vocabulary is not None else UNITS[data.units], len(texts))

    def _loaded(self) -> Wav2Vec2Processor:
        data, model = self.recipe.data, self.recipe.model
        revision = data.vocabulary_revision or (model.revision if data.vocabulary == model.path else None)
        try:
            return load_processor(data.vocabulary, revision)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"data.vocabulary: {error}") from None

    def _built(self, texts: list[str]) -> Wav2Vec2Processor:
        data = self.recipe.data
        if data.units == "bpe":
            return build_processor(word_pieces(texts, data.vocabulary_size))
        return build_processor((phonemes if data.units == "phonemes" else characters)(texts))

    def _warn(self, found: Coverage, what: str, texts: list[str]) -> None:
        settings = self.recipe.data.transcripts
        if warning := check_coverage(found, what, texts, self._processor.tokenizer, settings):
            logger.warning("%s", warning)

    def check_held_out(self, name: str, examples: Sequence[SpeechExample]) -> None:
        texts = [example.text for example in examples]
        self._warn(coverage(map(self.clean, texts), self._processor.tokenizer), f"the held-out set {name}", texts)

    def report(self) -> str:
        return self._report

    def processor(self) -> Wav2Vec2Processor:
        return self._processor

    def config_changes(self) -> dict[str, Any]:
        tokenizer = self._processor.tokenizer
        return {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
        }

    def collator(self, model: PreTrainedModel) -> CtcCollator:
        return CtcCollator(self._processor, model.config, self.clean)

    def final_scores(self, trainer: SpeechTrainer, name: str, examples: Sequence[SpeechExample]) -> dict[str, float]:
        scores, settings = super().final_scores(trainer, name, examples), self.recipe.decoding
        if settings.kind == "beam":
            search = BeamSearch(
                self._processor,
                beam_width=settings.beam_width,
                language_model=settings.language_model,
                weight=settings.language_model_weight,
                word_bonus=settings.word_bonus,
            )
            texts = transcribe(trainer.model, self._processor, list(examples), decode=search)
            scores |= error_rates(texts, [self.clean(example.text) for example in examples])
        return scores

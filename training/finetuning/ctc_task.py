"""Fine-tuning of speech recognisers: characters and CTC."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCTC, PreTrainedModel, Wav2Vec2Processor

from lighthubert_hf.training.audio.labelled import SpeechExample
from lighthubert_hf.training.audio.sources import AudioSource

from .beam_search import BeamSearch
from .ctc_data import CtcCollator, build_processor, characters, load_processor
from .ctc_decoding import transcribe
from .ctc_trainer import CtcTrainer, error_rates
from .task import FineTuningTask
from .trainer import SpeechTrainer

SYNTHETIC_HELD_OUT = ("validation", "test_sentences", "test_voice")


class CtcTask(FineTuningTask):
    auto_class, trainer_class = AutoModelForCTC, CtcTrainer
    scores = {"cer": "character error rate (%)", "wer": "word error rate (%)"}  # noqa: RUF012
    hub_task, hub_task_name = "automatic-speech-recognition", "speech recognition"
    refused = "more text than frames"

    def __init__(self, recipe):
        super().__init__(recipe)
        self.keeps_head = recipe.data.vocabulary is not None and recipe.data.vocabulary == recipe.model.path

    def synthesise(self, folder: Path) -> tuple[list[AudioSource], dict[str, list[AudioSource]]]:
        from lighthubert_hf.training.synthetic.speech import synthesise_corpus

        minutes = self.recipe.data.synthetic_minutes
        synthesise_corpus(folder, minutes=minutes, held_out_minutes=min(3.0, minutes / 5))
        train, *held_out = (
            [AudioSource(str(folder), split, text_column="text")] for split in ("train", *SYNTHETIC_HELD_OUT)
        )
        return train, dict(zip(SYNTHETIC_HELD_OUT, held_out, strict=True))

    def prepare(self, train: list[SpeechExample] | None) -> None:
        data = self.recipe.data
        if data.vocabulary is not None:
            self._processor = load_processor(data.vocabulary)
        elif train is None:
            raise ValueError(
                f"the training speech exceeds data.memory_gb ({data.memory_gb:g}) and is streamed, so its "
                "characters are not known beforehand: give data.vocabulary, a folder with a tokenizer"
            )
        else:
            self._processor = build_processor(characters(example.text for example in train))

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
        return CtcCollator(self._processor, model.config)

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
            scores |= error_rates(texts, [example.text for example in examples])
        return scores

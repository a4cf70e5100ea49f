"""Text for CTC: a vocabulary of characters, the processor that carries it, and rows that can be aligned at all."""

import json
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from transformers import PretrainedConfig, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lighthubert_hf.model.feature_encoder import conv_output_lengths
from lighthubert_hf.training.audio.labelled import SAMPLING_RATE, Batch, SpeechExample, pad_waveforms, shortest_input

BLANK, UNKNOWN, WORD_DELIMITER = "<pad>", "<unk>", "|"


def characters(texts: Iterable[str]) -> list[str]:
    """The vocabulary of `texts`: blank, unknown and word delimiter, then every character in order of its code.

    Raises:
        ValueError: if a text contains the word delimiter, or there is no character at all.
    """
    found = {character for text in texts for character in text}
    if WORD_DELIMITER in found:
        raise ValueError(f"transcripts contain {WORD_DELIMITER!r}, which stands for the space; replace it in the data")
    found -= {character for character in found if character.isspace()}
    if not found:
        raise ValueError("the transcripts are empty, so there is no vocabulary; check text_column")
    return [BLANK, UNKNOWN, WORD_DELIMITER, *sorted(found)]


def build_processor(vocabulary: list[str]) -> Wav2Vec2Processor:
    """Feature extractor and tokenizer. Waveforms are normalised; the blank of CTC is the padding token."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}, ensure_ascii=False))
        # CTC has no use for sentence borders, and a token nobody emits is a wasted row of the head.
        tokenizer = Wav2Vec2CTCTokenizer(
            str(path),
            bos_token=None,
            eos_token=None,
            pad_token=BLANK,
            unk_token=UNKNOWN,
            word_delimiter_token=WORD_DELIMITER,
        )
    return Wav2Vec2Processor(feature_extractor=build_feature_extractor(), tokenizer=tokenizer)


def build_feature_extractor() -> Wav2Vec2FeatureExtractor:
    """Normalises waveforms, as training does."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=SAMPLING_RATE, padding_value=0.0, do_normalize=True, return_attention_mask=True
    )


def load_processor(name: str) -> Wav2Vec2Processor:
    """The processor of another model, for its vocabulary (`name`: a folder or Hub id).

    Raises:
        ValueError: if it does not normalise waveforms, as the data here are.
    """
    processor = Wav2Vec2Processor.from_pretrained(name)
    if not processor.feature_extractor.do_normalize:
        raise ValueError(
            f"the feature extractor of {name} has do_normalize=False, but training data are normalised; "
            "leave vocabulary empty to build one"
        )
    return processor


def frames_needed(labels: list[int]) -> int:
    """Fewest frames CTC can align `labels` to: one a label, and a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


class CtcCollator:
    """Examples to a padded batch with `labels` `(rows, longest)`, -100 where padded.

    Args:
        processor: Its tokenizer makes the labels.
        config: The model's, for the frames it makes of a waveform.
    """

    def __init__(self, processor: Wav2Vec2Processor, config: PretrainedConfig):
        self.tokenizer, self.config = processor.tokenizer, config
        self.min_samples = shortest_input(config)

    def labels(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

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

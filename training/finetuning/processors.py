"""Processors: what turns waveforms and texts into a model's input, and a vocabulary of characters."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2Processor

from lighthubert_hf.preprocessing import build_feature_extractor

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

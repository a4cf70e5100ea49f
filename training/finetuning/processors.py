"""Processors: what turns waveforms and texts into a model's input, and vocabularies built from transcripts."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer, Wav2Vec2Processor

from lighthubert_hf.loading import load_speech_processor
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


def phonemes(texts: Iterable[str]) -> list[str]:
    """The vocabulary of transcripts in phonemes: blank, unknown, then everything that stands between spaces.

    Raises:
        ValueError: if there is none.
    """
    found = {phoneme for text in texts for phoneme in text.split()}
    if not found:
        raise ValueError("the transcripts are empty, so there is no vocabulary; check text_column")
    return [BLANK, UNKNOWN, *sorted(found - {BLANK, UNKNOWN})]


def word_pieces(texts: Iterable[str], size: int) -> list[str]:
    """A vocabulary of `size` pieces of words that byte-pair encoding finds in `texts`, every character among them.

    In use a word is read as the longest pieces from its left, which needs no rules of merging beside the vocabulary.

    Raises:
        ValueError: if there are more characters than `size`, or as in `characters`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(texts)
    specials = characters(texts)
    single, specials = specials[3:], specials[:3]
    if size < len(single):
        raise ValueError(
            f"data.vocabulary_size is {size}, but the transcripts hold {len(single)} different characters, which are "
            "pieces all; raise it"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return [*specials, *sorted(learner.get_vocab(), key=lambda piece: (len(piece), piece))]


def build_processor(vocabulary: list[str]) -> Wav2Vec2Processor:
    """Feature extractor and tokenizer. Waveforms are normalised; the blank of CTC is the padding token.

    Without the word delimiter in the `vocabulary` its units are phonemes: spaces stand between all of them.
    """
    kind = Wav2Vec2CTCTokenizer if WORD_DELIMITER in vocabulary else Wav2Vec2PhonemeCTCTokenizer
    own = {"word_delimiter_token": WORD_DELIMITER} if kind is Wav2Vec2CTCTokenizer else {"do_phonemize": False}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        tokens = {token: index for index, token in enumerate(vocabulary)}
        path.write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
        # CTC has no use for sentence borders, and a token nobody emits is a wasted row of the head.
        tokenizer = kind(str(path), bos_token=None, eos_token=None, pad_token=BLANK, unk_token=UNKNOWN, **own)
    return Wav2Vec2Processor(feature_extractor=build_feature_extractor(), tokenizer=tokenizer)


def load_processor(name: str, revision: str | None = None) -> Wav2Vec2Processor:
    """The processor of another model, for its vocabulary (`name`: a folder or Hub id).

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or does not normalise waveforms, as the data here are.
    """
    processor = load_speech_processor(name, revision)
    if not processor.feature_extractor.do_normalize:
        raise ValueError(
            f"the feature extractor of {name} has do_normalize=False, but training data are normalised; "
            "leave vocabulary empty to build one"
        )
    return processor

"""Prefix beam search over the output of CTC, with an optional n-gram language model of words.

pyctcdecode forbids numpy 2 and is no longer kept; torchaudio's decoder rests on flashlight-text, which is no longer
released either. What is needed of them is short; the language model is read by KenLM's own package, an extra.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Wav2Vec2Processor

from lighthubert_hf.extras import require

Prefix = tuple[int, ...]
IMPOSSIBLE = -math.inf


class _Words(NamedTuple):
    """The finished words of a prefix: their score by the language model, its state, where the next word begins."""

    score: float
    state: Any
    start: int


class BeamSearch:
    """Decoder of one utterance: the most probable text, all its alignments summed.

    With a language model, a text W of |W| words scores \\(\\log p_{CTC}(W) + \\alpha \\ln p_{LM}(W) + \\beta |W|\\).

    Args:
        processor: Its tokenizer names the tokens; unknown and other special tokens are never put out.
        beam_width: Texts kept after every frame.
        language_model: A KenLM file (.arpa or binary) whose words are spelled as the transcripts were.
        weight: \\(\\alpha\\).
        word_bonus: \\(\\beta\\).
        min_log_probability: Tokens below it, relative to the best of their frame, are not tried.

    Raises:
        ImportError: if a language model is given and kenlm is not installed.
        FileNotFoundError: if there is no such file.

    Source: A. Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
    Recurrent DNNs, 2014.
    """

    def __init__(
        self,
        processor: Wav2Vec2Processor,
        *,
        beam_width: int = 32,
        language_model: str | None = None,
        weight: float = 0.5,
        word_bonus: float = 1.0,
        min_log_probability: float = -8.0,
    ):
        tokenizer = processor.tokenizer
        self.tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        if tokenizer.word_delimiter_token_id is None:
            raise ValueError("a vocabulary of phonemes has no word delimiter; decode with decoding.kind=greedy")
        self.blank, self.space = tokenizer.pad_token_id, tokenizer.word_delimiter_token_id
        self.spoken = [index not in tokenizer.all_special_ids for index in range(len(tokenizer))]
        self.spoken[self.space] = True
        self.beam_width, self.min_log_probability = beam_width, min_log_probability
        self.weight, self.word_bonus = weight * math.log(10), word_bonus  # KenLM counts in powers of ten
        self.language_model = None if language_model is None else _load_kenlm(language_model)

    def __call__(self, log_probabilities: torch.Tensor) -> str:
        """`(frames, tokens)`, logarithms to base e, to text."""
        frames = np.asarray(log_probabilities, dtype=np.float64)
        words = {(): _Words(0.0, self._first_state(), 0)}
        beams = {(): (0.0, IMPOSSIBLE)}  # log-probability of alignments that end in a blank, and of the others
        for frame in frames:
            beams = self._advance(beams, frame)
            for prefix in beams:
                if prefix not in words:
                    words[prefix] = self._extend(words, prefix)
            if len(beams) > self.beam_width:
                ranked = sorted(beams, key=lambda p: np.logaddexp(*beams[p]) + words[p].score, reverse=True)
                beams = {prefix: beams[prefix] for prefix in ranked[: self.beam_width]}
        finals: dict[Prefix, float] = {}
        for prefix, scores in beams.items():  # a space at the end makes no other text
            text = prefix[:-1] if prefix[-1:] == (self.space,) else prefix
            finals[text] = np.logaddexp(finals.get(text, IMPOSSIBLE), np.logaddexp(*scores))
        best = max(finals, key=lambda text: finals[text] + self._finish(words[text], text))
        return "".join(" " if token == self.space else self.tokens[token] for token in best)

    def _advance(self, beams: dict[Prefix, tuple[float, float]], frame: np.ndarray) -> dict:
        """One frame further: every text stays as it is or grows by one token."""
        tried = [int(t) for t in np.flatnonzero(frame >= frame.max() + self.min_log_probability) if self.spoken[t]]
        blanks: dict[Prefix, float] = {}
        others: dict[Prefix, float] = {}

        def add(scores: dict[Prefix, float], prefix: Prefix, value: float) -> None:
            scores[prefix] = np.logaddexp(scores.get(prefix, IMPOSSIBLE), value)

        for prefix, (blank, other) in beams.items():
            last = prefix[-1] if prefix else None
            total = np.logaddexp(blank, other)
            add(blanks, prefix, total + frame[self.blank])
            if last is not None:
                add(others, prefix, other + frame[last])
            for token in tried:
                if token == self.space and last is None:
                    add(blanks, prefix, total + frame[token])  # silence before the first word
                elif token != last:
                    add(others, (*prefix, token), total + frame[token])
                else:  # a repeat counts anew after a blank only; two spaces are one
                    add(others, prefix if token == self.space else (*prefix, token), blank + frame[token])
        return {p: (blanks.get(p, IMPOSSIBLE), others.get(p, IMPOSSIBLE)) for p in blanks | others}

    def _first_state(self):
        if self.language_model is None:
            return None
        import kenlm

        state = kenlm.State()
        self.language_model.BeginSentenceWrite(state)
        return state

    def _extend(self, words: dict[Prefix, _Words], prefix: Prefix) -> _Words:
        """The finished words of `prefix`, from those of the text it has grown from."""
        parent = words[prefix[:-1]]
        if prefix[-1] != self.space or self.language_model is None:
            return parent
        return self._add_word(parent, prefix[parent.start : -1], len(prefix))

    def _add_word(self, words: _Words, spelling: Prefix, end: int) -> _Words:
        import kenlm

        state = kenlm.State()
        score = self.language_model.BaseScore(words.state, "".join(self.tokens[t] for t in spelling), state)
        return _Words(words.score + self.weight * score + self.word_bonus, state, end)

    def _finish(self, words: _Words, prefix: Prefix) -> float:
        """Score of the whole text, its last word and the end of the sentence included."""
        if self.language_model is None:
            return 0.0
        if len(prefix) > words.start:
            words = self._add_word(words, prefix[words.start :], len(prefix))
        import kenlm

        return words.score + self.weight * self.language_model.BaseScore(words.state, "</s>", kenlm.State())


def _load_kenlm(path: str):
    require("lm", what="a language model")
    import kenlm

    try:
        return kenlm.Model(path)
    except OSError as error:
        raise FileNotFoundError(f"no KenLM model can be read from {path}: {error}") from None

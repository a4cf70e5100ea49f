"""From the best token of every frame to words with times, as frames come, and from words to lines."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import Wav2Vec2CTCTokenizer

# A line of captions ends at a pause, or where it gets too long to be read: at most two rows of 42 characters.
PAUSE_SECONDS = 0.6
LINE_SECONDS = 6.0
LINE_CHARACTERS = 84


@dataclass(frozen=True)
class Word:
    """A word, and when it is said, in seconds from the beginning."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Line:
    """Words that are shown together."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def start(self) -> float:
        return self.words[0].start

    @property
    def end(self) -> float:
        return self.words[-1].end

    def to_dict(self) -> dict:
        """Times in seconds, to the millisecond."""
        words = [{"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in self.words]
        return {"start": round(self.start, 3), "end": round(self.end, 3), "text": self.text, "words": words}


class GreedyWords:
    """Reads words off the best path of CTC: repeats merged, blanks left out.

    A word begins with the first frame of its first token and ends with the last frame of its last. CTC learns which
    tokens follow each other, not how long they last: most of its frames are blank, so words come out a little short.

    Args:
        tokenizer: Without a word delimiter in it, as of phonemes, every token is a word.
        frame_seconds: Of one frame.
    """

    def __init__(self, tokenizer: Wav2Vec2CTCTokenizer, frame_seconds: float):
        self.tokenizer, self.frame_seconds = tokenizer, frame_seconds
        self.blank = tokenizer.pad_token_id
        delimiter = tokenizer.word_delimiter_token_id
        self.delimiter = None if delimiter == tokenizer.unk_token_id else delimiter  # a vocabulary may lack it
        self.frames = 0
        self._last: int | None = None
        self._tokens: list[int] = []
        self._start = self._end = 0

    @property
    def now(self) -> float:
        """Seconds before which no word begins that is still to come."""
        return (self._start if self._tokens else self.frames) * self.frame_seconds

    def feed(self, ids: Iterable[int]) -> list[Word]:
        """The words that end within the next frames, given the best token of each."""
        found = []
        for token in ids:
            if token != self._last and token == self.delimiter:
                found += self._word()
            elif token not in (self._last, self.blank):
                if self.delimiter is None:
                    found += self._word()
                if not self._tokens:
                    self._start = self.frames
                self._tokens.append(token)
            if token not in (self.blank, self.delimiter):
                self._end = self.frames + 1
            self._last = token
            self.frames += 1
        return found

    def finish(self) -> list[Word]:
        """The word that the end of the audio ends, if there is one."""
        return self._word()

    def _word(self) -> list[Word]:
        if not self._tokens:
            return []
        tokens = self.tokenizer.convert_ids_to_tokens(self._tokens)
        text = self.tokenizer.convert_tokens_to_string(tokens, group_tokens=False)["text"]
        self._tokens = []
        return [Word(text, self._start * self.frame_seconds, self._end * self.frame_seconds)]


@dataclass
class Lines:
    """Cuts a stream of words into lines: at pauses, and before a line gets too long."""

    _words: list[Word] = field(default_factory=list)

    def feed(self, words: Iterable[Word], now: float) -> list[Line]:
        """The lines that are complete, given the next words, and the time before which no other begins."""
        found = []
        for word in words:
            if self._words and not self._fits(word):
                found += self.finish()
            self._words.append(word)
        if self._words and now - self._words[-1].end >= PAUSE_SECONDS:
            found += self.finish()
        return found

    def _fits(self, word: Word) -> bool:
        return (
            word.start - self._words[-1].end < PAUSE_SECONDS
            and word.end - self._words[0].start <= LINE_SECONDS
            and sum(len(known.text) + 1 for known in self._words) + len(word.text) <= LINE_CHARACTERS
        )

    def finish(self) -> list[Line]:
        """What is left, as a line."""
        line, self._words = tuple(self._words), []
        return [Line(line)] if line else []

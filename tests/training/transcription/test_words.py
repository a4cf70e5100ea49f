import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.finetuning.processors import build_processor, characters, phonemes
from lighthubert_hf.training.transcription.captions import formatted
from lighthubert_hf.training.transcription.words import GreedyWords, Line, Lines, Word

from ...examples import examples

LETTERS = build_processor(characters(["ab c"])).tokenizer  # blank 0, unknown 1, delimiter 2, a b c
PHONEMES = build_processor(phonemes(["aa b"])).tokenizer
ids = st.lists(st.tuples(st.sampled_from([0, 0, 2, 3, 4, 5]), st.integers(1, 4)), max_size=20).map(
    lambda runs: [token for token, count in runs for _ in range(count)]
)


@settings(max_examples=examples(60), deadline=None)
@given(ids=ids, cut=st.integers(0, 80))
def test_words_and_times_are_those_of_the_tokenizer(ids, cut):
    reader = GreedyWords(LETTERS, 1.0)
    words = [*reader.feed(ids[:cut]), *reader.feed(ids[cut:]), *reader.finish()]
    wanted = LETTERS.decode(ids, output_word_offsets=True) if ids else {"text": "", "word_offsets": []}
    assert [(word.text, word.start, word.end) for word in words] == [
        (one["word"], one["start_offset"], one["end_offset"]) for one in wanted["word_offsets"]
    ]
    assert " ".join(word.text for word in words) == " ".join(wanted["text"].split())


def test_without_a_delimiter_every_token_is_a_word():
    reader = GreedyWords(PHONEMES, 0.5)
    words = reader.feed([0, 2, 2, 0, 2, 3]) + reader.finish()
    assert words == [Word("aa", 0.5, 1.5), Word("aa", 2.0, 2.5), Word("b", 2.5, 3.0)]


words = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 30)), max_size=15).map(
    lambda parts: [
        Word("x" * length, (start := sum(gap + size for gap, size, _ in parts[:i]) + parts[i][0]) / 5, (start + s) / 5)
        for i, (_, s, length) in enumerate(parts)
    ]
)


@settings(max_examples=examples(60), deadline=None)
@given(words=words, heard=st.lists(st.integers(0, 15), max_size=4))
def test_lines_hold_all_words_and_do_not_depend_on_when_they_come(words, heard):
    def cut(pauses):
        lines, found = Lines(), []
        for number, word in enumerate(words):
            if number in pauses:  # nothing has begun until this word does
                found += lines.feed([], word.start)
            found += lines.feed([word], word.end)
        return found + lines.finish()

    found = cut(heard)
    assert found == cut([])
    assert [word for line in found for word in line.words] == words
    for line in found:
        if len(line.words) > 1:
            assert line.end - line.start <= 6.0
            assert len(line.text) <= 84


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("txt", "a <b>\n"),
        ("srt", "7\n01:01:01,250 --> 01:01:02,000\na <b>\n\n"),
        ("vtt", "01:01:01.250 --> 01:01:02.000\na &lt;b&gt;\n\n"),
        (
            "json",
            '{"start": 3661.25, "end": 3662.0, "text": "a <b>", "words": [{"word": "a", "start": 3661.25, '
            '"end": 3661.5}, {"word": "<b>", "start": 3661.6, "end": 3662.0}]}\n',
        ),
    ],
)
def test_formats(kind, wanted):
    line = Line((Word("a", 3661.25, 3661.5), Word("<b>", 3661.6, 3661.9996)))
    assert formatted(line, 7, kind) == wanted

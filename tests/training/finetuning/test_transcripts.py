"""Vocabularies: what they are built of, what they do not know, and transcripts cleaned for them."""

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, Wav2Vec2Processor

from lighthubert_hf.training.finetuning.beam_search import BeamSearch
from lighthubert_hf.training.finetuning.ctc import CtcCollator
from lighthubert_hf.training.finetuning.decoding import transcriptions
from lighthubert_hf.training.finetuning.processors import build_processor, characters, phonemes, word_pieces
from lighthubert_hf.training.finetuning.recipe import TranscriptSection
from lighthubert_hf.training.finetuning.transcripts import Cleaning, check_coverage, coverage, describe

from .test_processors import config

TEXTS = ["the cat and the other cat", "then the bath", "a cat that bathes there"]


def labels(processor, text, **settings):
    return CtcCollator(processor, config(), Cleaning(TranscriptSection(**settings))).labels(text)


def read_back(processor, ids):
    """The text of frames in which every label lasts, with blanks between."""
    return transcriptions(torch.tensor([[token for label in ids for token in (label, label, 0)]]), processor)[0]


class TestCleaning:
    @pytest.mark.parametrize(
        ("settings", "text", "clean"),
        [
            ({}, " a\tb\n\u00a0c\u2009\u3000d ", "a b c d"),
            ({"case": "upper"}, "Straße", "STRASSE"),
            ({"case": "lower", "drop": ".,?'"}, "Don't, HE said.", "dont he said"),
            ({"unicode": "NFC"}, "e\u0301", "é"),
            ({"unicode": "NFD"}, "é", "e\u0301"),
            ({"unicode": "NFKC"}, "ﬁ ２", "fi 2"),
            ({"drop": "-"}, "a - b", "a b"),
        ],
    )
    def test_switches(self, settings, text, clean):
        assert Cleaning(TranscriptSection(**settings))(text) == clean

    @given(st.text(), st.sampled_from([None, "NFC", "NFD", "NFKC", "NFKD"]))
    def test_any_text_is_in_its_form_with_single_spaces(self, text, form):
        clean = Cleaning(TranscriptSection(unicode=form))(text)
        assert clean == " ".join(clean.split())
        if form is not None:
            assert clean == " ".join(unicodedata.normalize(form, text).split())


class TestVocabularies:
    def test_pieces_of_words(self):
        vocabulary = word_pieces(TEXTS, 20)
        assert vocabulary[:3] == ["<pad>", "<unk>", "|"]
        assert len(vocabulary) == 3 + 20
        assert {*"thecandobrs"} <= set(vocabulary)  # every character, so that nothing is unknown
        assert {"the", "cat"} <= set(vocabulary)
        assert vocabulary == word_pieces(TEXTS, 20)
        with pytest.raises(ValueError, match=r"vocabulary_size is 3, but .* 11 different characters"):
            word_pieces(TEXTS, 3)

    @pytest.mark.parametrize("text", TEXTS)
    def test_text_in_pieces_is_shorter_and_reads_back(self, text, tmp_path):
        processor = build_processor(word_pieces(TEXTS, 20))
        ids = labels(processor, text)
        assert len(ids) < len(text)
        assert read_back(processor, ids) == text
        processor.save_pretrained(tmp_path)
        saved = Wav2Vec2Processor.from_pretrained(tmp_path)
        assert labels(saved, text) == ids
        assert read_back(saved, ids) == text

    def test_phonemes(self, tmp_path):
        text = "HH AH0 L OW1 T S OW1 L L"
        processor = build_processor(phonemes([text]))
        processor.save_pretrained(tmp_path)
        for found in (processor, AutoProcessor.from_pretrained(tmp_path)):
            assert len(labels(found, text)) == 9
            assert len(found.tokenizer) == 2 + 7 - 1
            assert read_back(found, labels(found, text)) == text
        with pytest.raises(ValueError, match=r"no word delimiter; decode with decoding\.kind=greedy"):
            BeamSearch(processor)
        with pytest.raises(ValueError, match="check text_column"):
            phonemes([" "])


class TestCoverage:
    CAPITALS = build_processor(characters(["THE CAT BD"]))

    @staticmethod
    def check(processor, texts, **settings):
        settings = TranscriptSection(**settings)
        found = coverage(map(Cleaning(settings), texts), processor.tokenizer)
        return check_coverage(found, "the texts", texts, processor.tokenizer, settings)

    def test_a_vocabulary_of_other_letters_is_an_error_with_the_switch_that_helps(self):
        with pytest.raises(
            ValueError, match=r"100\.0% of .*commonest: 't' 2×.*; data.transcripts.case=upper"
        ) as error:
            self.check(self.CAPITALS, ["the cat"])
        assert "\n" not in str(error.value)
        assert self.check(self.CAPITALS, ["the cat"], case="upper") is None
        with pytest.raises(ValueError, match=r"100\.0% .*take a vocabulary of these characters"):
            self.check(self.CAPITALS, ["кошка"])

    def test_a_few_unknown_letters_are_a_warning_with_their_share(self):
        warning = self.check(self.CAPITALS, ["THE CAT, THE CAT", "A BAT?"])
        assert warning.startswith("11.1% of the characters of the texts are not in the vocabulary")
        assert "',' 1×" in warning
        assert self.check(self.CAPITALS, ["THE CAT THE CAT", "A BAT"]) is None

    def test_the_form_of_accents(self):
        composed = build_processor(characters(["é"]))
        with pytest.raises(ValueError, match=r"data\.transcripts\.unicode=NFC would leave 0\.0%"):
            self.check(composed, ["e\u0301"])

    def test_the_report_names_the_units_and_the_rare(self):
        found = coverage(["THE CAT", "THE BAT"], self.CAPITALS.tokenizer)
        assert describe(found, "characters", 2) == (
            "vocabulary: 7 characters in 2 transcripts: A B C D E H T; "
            "rare: 'D' 0×, 'B' 1×, 'C' 1×, 'A' 2×, 'E' 2×, 'H' 2×"
        )
        assert found.to_dict()["counts"]["T"] == 4
        assert found.to_dict()["unknown_share"] == 0

"""Vocabulary, processor and the rows that CTC can align."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertConfig, LightHubertForCTC
from lighthubert_hf.training.audio.examples import SpeechExample
from lighthubert_hf.training.finetuning.ctc import CtcCollator
from lighthubert_hf.training.finetuning.decoding import transcriptions
from lighthubert_hf.training.finetuning.processors import build_processor, characters, load_processor
from lighthubert_hf.training.tasks.ctc import frames_needed

ALPHABET = "abcdéß'"
PROCESSOR = build_processor(characters([ALPHABET, "a b"]))
SENTENCES = st.lists(st.text(ALPHABET, min_size=1, max_size=6), min_size=1, max_size=4).map(" ".join)


def config(**changes):
    return LightHubertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=16,
        intermediate_size=32,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        vocab_size=len(PROCESSOR.tokenizer),
        pad_token_id=PROCESSOR.tokenizer.pad_token_id,
        **changes,
    )


def test_a_vocabulary_is_the_blank_the_unknown_the_space_and_the_characters():
    assert characters(["ba", "a\tc\n"]) == ["<pad>", "<unk>", "|", "a", "b", "c"]
    with pytest.raises(ValueError, match="stands for the space"):
        characters(["a|b"])
    with pytest.raises(ValueError, match="check text_column"):
        characters(["", " "])


@given(SENTENCES)
def test_labels_with_blanks_between_are_the_text_again(text):
    labels = PROCESSOR.tokenizer(text).input_ids
    frames = [token for label in labels for token in (label, label, 0)]
    assert transcriptions(torch.tensor([frames]), PROCESSOR) == [text]


def test_a_character_outside_the_vocabulary_is_unknown():
    unknown = PROCESSOR.tokenizer.unk_token_id
    assert PROCESSOR.tokenizer("axb").input_ids[1] == unknown not in PROCESSOR.tokenizer("ab").input_ids


@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.integers(1, 12))
@settings(deadline=None)
def test_frames_needed_are_those_ctc_needs(labels, frames):
    log_probs = torch.zeros(frames, 1, 4).log_softmax(-1)
    loss = F.ctc_loss(log_probs, torch.tensor([labels]), torch.tensor([frames]), torch.tensor([len(labels)]))
    assert math.isfinite(loss.item()) == (frames >= frames_needed(labels))


@pytest.mark.parametrize(
    ("samples", "text", "possible"), [(399, "", False), (400, "", True), (400, "a", True), (400, "ab", False)]
)
def test_a_waveform_too_short_for_its_text_is_impossible(samples, text, possible):
    collate = CtcCollator(PROCESSOR, config())
    assert collate.is_possible(SpeechExample("x", np.zeros(samples, np.float16), text)) == possible


@pytest.mark.parametrize("samples", [400, 700, 3000])
def test_short_clips_survive_training_with_spec_augment(samples):
    from transformers import HubertConfig, HubertForCTC

    torch.manual_seed(0)
    ours = config(mask_time_prob=0.5, mask_time_length=10)
    plain = {key: value for key, value in ours.to_dict().items() if key in HubertConfig().to_dict()}
    plain = HubertConfig(**plain | {"model_type": "hubert"})
    batch = CtcCollator(PROCESSOR, ours)([SpeechExample("x", np.ones(samples, np.float16), "")])
    for model in (LightHubertForCTC(ours), HubertForCTC(plain)):
        loss = model.train()(**batch).loss
        loss.backward()
        assert torch.isfinite(loss)


def test_a_saved_processor_reads_back_and_others_find_the_feature_extractor(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    assert load_processor(str(tmp_path)).tokenizer.get_vocab() == PROCESSOR.tokenizer.get_vocab()
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    processor = build_processor(characters(["a"]))
    processor.feature_extractor.do_normalize = False
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do_normalize=False"):
        load_processor(str(tmp_path))


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "\0" * 9, "[" * 9999, '{"a": "b", "c": "d"}'])
def test_a_damaged_file_of_a_vocabulary_is_named(tmp_path, name, damage):
    PROCESSOR.save_pretrained(tmp_path)
    (tmp_path / name).write_text(damage)
    with pytest.raises((ValueError, OSError), match=str(tmp_path)) as error:
        load_processor(str(tmp_path))
    assert type(error.value).__name__ != "JSONDecodeError"


def test_two_units_of_one_number_are_no_vocabulary(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    units = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(units | {"a": units["b"]}))
    with pytest.raises(ValueError, match="its vocabulary does not give each unit a number of its own"):
        load_processor(str(tmp_path))

"""Prefix beam search against a sum over all alignments, and with a language model."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.finetuning.beam_search import BeamSearch
from lighthubert_hf.training.finetuning.processors import build_processor, characters

from ...examples import examples

PROCESSOR = build_processor(characters(["ab", "a b"]))  # blank, unknown, space, a, b
ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-2.0\t<unk>
0\t<s>\t-0.3
-1.0\t</s>
-0.3\tab\t-0.3
-2.5\tba\t-0.3

\\2-grams:
-0.2\t<s> ab
-0.2\tab ab
-0.1\tab </s>

\\end\\
"""


def written(path):
    """The text of one alignment: repeats merged, blanks dropped, spaces outside words or repeated dropped."""
    merged = [token for i, token in enumerate(path) if i == 0 or token != path[i - 1]]
    text = "".join({0: "", 2: " ", 3: "a", 4: "b"}[token] for token in merged)
    return " ".join(text.split())


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(deadline=None, max_examples=examples(40))
def test_without_pruning_it_finds_the_text_of_the_highest_probability(seed, frames):
    scores = np.random.default_rng(seed).normal(size=(frames, 5)) * 2
    scores[:, 1] = -np.inf  # unknown is never put out
    log_probabilities = torch.tensor(scores).log_softmax(-1)
    mass = {}
    for path in product((0, 2, 3, 4), repeat=frames):
        probability = log_probabilities[range(frames), path].sum().exp().item()
        mass[written(path)] = mass.get(written(path), 0.0) + probability
    search = BeamSearch(PROCESSOR, beam_width=10**6, min_log_probability=-np.inf)
    found = search(log_probabilities)
    assert mass.get(found, 0.0) == pytest.approx(max(mass.values()), rel=1e-9)


def test_it_sums_where_greedy_takes_the_best_frame():
    # Blank is the best of either frame, but "a" has three alignments.
    frame = torch.tensor([0.5, 1e-9, 1e-9, 0.45, 0.05]).log()
    assert BeamSearch(PROCESSOR)(frame.repeat(2, 1)) == "a"


def test_unknown_is_never_put_out():
    assert BeamSearch(PROCESSOR)(torch.tensor([[0.1, 0.8, 0.05, 0.03, 0.02]]).log()) == ""


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path):
    pytest.importorskip("kenlm")
    (tmp_path / "words.arpa").write_text(ARPA)
    frames = torch.tensor(
        [
            [0.02, 1e-9, 1e-9, 0.46, 0.52],
            [0.02, 1e-9, 1e-9, 0.52, 0.46],
            [0.02, 1e-9, 0.96, 0.01, 0.01],
            [0.02, 1e-9, 1e-9, 0.90, 0.08],
            [0.02, 1e-9, 1e-9, 0.08, 0.90],
        ]
    ).log()
    assert BeamSearch(PROCESSOR)(frames) == "ba ab"
    heard = BeamSearch(PROCESSOR, language_model=str(tmp_path / "words.arpa"), weight=0.5, word_bonus=0.0)(frames)
    assert heard == "ab ab"


def test_a_language_model_that_is_not_there(tmp_path):
    pytest.importorskip("kenlm")
    with pytest.raises(FileNotFoundError, match=r"no KenLM model can be read from .*missing\.arpa"):
        BeamSearch(PROCESSOR, language_model=str(tmp_path / "missing.arpa"))

"""Batches of labelled speech: complete, bounded, split over ranks, resumable."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.audio.example_batches import MemoryBatches, StreamedBatches
from lighthubert_hf.training.audio.examples import MemoryOverflow, SpeechExample, read_examples
from lighthubert_hf.training.audio.padding import batches_of_similar_length, pad_waveforms
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.synthetic.speech import synthesise_corpus

from ...examples import examples

LENGTHS = st.lists(st.integers(1, 40_000), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech") / "corpus"
    synthesise_corpus(folder, minutes=0.4, held_out_minutes=0.1, num_shards=2)
    return str(folder)


def examples_of(lengths):
    return [SpeechExample(str(i), np.zeros(length, np.float16), "text") for i, length in enumerate(lengths)]


def names(examples):
    return [example.id for example in examples]


def batches(lengths, seconds=2.0, accept=lambda example: True, **options):
    return MemoryBatches(examples_of(lengths), names, accept, batch_seconds=seconds, seed=3, **options)


@given(LENGTHS, st.floats(0.1, 5.0))
def test_evaluation_batches_hold_everything_once_longest_first(lengths, seconds):
    found = batches_of_similar_length(lengths, seconds)
    order = [index for batch in found for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    for batch in found:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert len(batch) == 1 or padded <= seconds * SAMPLING_RATE


@given(LENGTHS, st.integers(1, 4))
@settings(deadline=None)
def test_an_epoch_holds_everything_once_within_the_bound(lengths, world_size):
    ranks = [batches(lengths, rank=rank, world_size=world_size) for rank in range(world_size)]
    per_epoch = len(ranks[0]._epoch(0)) // world_size
    drawn = [batch for rank in ranks for batch in islice(rank, per_epoch)]
    rows = [row for batch in drawn for row in batch]
    if world_size == 1:
        assert sorted(rows, key=int) == [str(i) for i in range(len(lengths))]
    for batch in drawn:
        padded = len(batch) * max(lengths[int(row)] for row in batch)
        assert len(batch) == 1 or padded <= 2.0 * SAMPLING_RATE


def test_epochs_differ_and_seeds_decide():
    lengths = list(range(8000, 16000, 200))
    one = list(islice(batches(lengths), 60))
    assert one == list(islice(batches(lengths), 60))
    epoch = len(batches(lengths)._epoch(0))
    assert one[:epoch] != one[epoch : 2 * epoch]


def test_ranks_share_an_epoch():
    lengths = list(range(8000, 16000, 200))
    ranks = [batches(lengths, rank=rank, world_size=2) for rank in range(2)]
    half = len(ranks[0]._epoch(0)) // 2
    first, second = ([row for batch in islice(rank, half) for row in batch] for rank in ranks)
    assert not set(first) & set(second)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None, max_examples=examples(20))
def test_resuming_twice_gives_what_an_uninterrupted_run_gives(first, second):
    lengths = list(range(8000, 16000, 500))
    whole = list(islice(batches(lengths), first + second + 5))
    found, state = [], batches(lengths).state
    for count in (first, second, 5):
        part = batches(lengths)
        part.state = state
        found += islice(part, count)
        state = part.state
    assert found == whole


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 15))
@settings(deadline=None, max_examples=examples(20))
def test_another_number_of_ranks_goes_on_where_these_were(before, after, count):
    """Within an epoch nothing comes twice, and what is left out is less than a round of either."""
    lengths = list(range(8000, 16000, 200))
    one_epoch = len(batches(lengths)._epoch(0))
    count = min(count, one_epoch // before)
    ranks = [batches(lengths, rank=rank, world_size=before) for rank in range(before)]
    heard = [row for rank in ranks for batch in islice(rank, count) for row in batch]
    others = [batches(lengths, rank=rank, world_size=after) for rank in range(after)]
    for rank in others:
        rank.load_states([part.state for part in ranks])
    rounds = (one_epoch - before * count) // after
    heard += [row for rank in others for batch in islice(rank, rounds) for row in batch]
    assert len(set(heard)) == len(heard)
    if after == 1:
        assert len(heard) == len(lengths)


def test_what_cannot_be_trained_on_is_counted():
    found = batches([8000, 9000, 100], accept=lambda example: len(example.waveform) > 400)
    assert found.num_refused == 1
    with pytest.raises(ValueError, match="none of the 1 training utterances"):
        batches([100], accept=lambda example: False)


@pytest.mark.parametrize("shuffle_seed", [None, 0])
def test_what_is_read_has_text_and_half_precision(corpus, shuffle_seed):
    source = AudioSource(corpus, text_column="text")
    options = {"progress": False, "shuffle_seed": shuffle_seed}
    examples = read_examples([source], **options)
    assert all(example.waveform.dtype == np.float16 and example.text for example in examples)
    assert all(abs(example.waveform.astype(np.float32).std() - 1) < 1e-3 for example in examples)
    assert len(read_examples([source], max_examples=3, **options)) == 3


def test_sources_share_the_minutes_by_weight(corpus):
    sources = [AudioSource(corpus, text_column="text", weight=weight) for weight in (3.0, 1.0)]
    options = {"progress": False, "shuffle_seed": 0}
    three, one = (read_examples([sources[0]], minutes=minutes, **options) for minutes in (0.15, 0.05))
    both = read_examples(sources, minutes=0.2, **options)
    assert len(both) == len(three) + len(one)


def test_too_much_for_the_memory(corpus):
    with pytest.raises(MemoryOverflow, match=r"more than 0\.0001 GB"):
        read_examples([AudioSource(corpus, text_column="text")], max_gigabytes=1e-4, progress=False)


def test_a_missing_transcript_is_named(corpus):
    with pytest.raises(ValueError, match="set text_column"):
        read_examples([AudioSource(corpus)], progress=False)


def test_a_stream_resumes_where_it_was(corpus):
    def stream():
        return StreamedBatches(
            [AudioSource(corpus, text_column="text")],
            lambda examples: [example.text for example in examples],
            lambda example: "e" in example.text,
            batch_seconds=8.0,
            max_seconds=8.0,
            seed=0,
        )

    whole = stream()
    expected = list(islice(whole, 6))
    part = stream()
    found = list(islice(part, 2))
    rest = stream()
    rest.state = part.state
    assert found + list(islice(rest, 4)) == expected
    assert all("e" in text for batch in expected for text in batch)


def test_padding_is_masked():
    batch = pad_waveforms([np.ones(3, np.float16), np.ones(5, np.float16)], min_samples=6)
    assert batch["input_values"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]

"""Batches: bounded, bucketed, the same after every interruption."""

import json
import threading
import time
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthubert_hf.training.audio.batching import training_loader, validation_loader
from lighthubert_hf.training.audio.sources import AudioSource

from ...examples import examples
from ..stored_speech import ROWS_PER_SHARD, encode, write_parquet_shards

NUM_ROWS = sum(ROWS_PER_SHARD)
OPTIONS = {"batch_seconds": 1.5, "crop_seconds": 0.4, "window_size": 16, "shuffle_window": 10, "num_open_shards": 2}


def make_loader(path, make=training_loader, **options):
    return make([AudioSource(str(path), text_column="text")], **{**OPTIONS, **options})


def assert_same(batch, other):
    assert batch["ids"] == other["ids"]
    assert batch["texts"] == other["texts"]
    torch.testing.assert_close(batch["input_values"], other["input_values"], rtol=0, atol=0)
    torch.testing.assert_close(batch["attention_mask"], other["attention_mask"], rtol=0, atol=0)


def test_a_batch_is_what_a_model_takes(shards):
    for batch, _ in islice(make_loader(shards[0]), 20):
        values, mask = batch["input_values"], batch["attention_mask"]
        assert values.dtype == torch.float32
        assert mask.dtype == torch.int64
        assert values.shape == mask.shape == (len(batch["ids"]), values.shape[1])
        assert len(batch["texts"]) == len(batch["ids"])
        assert values.numel() <= 1.5 * 16_000
        assert mask.sum(1).max() == values.shape[1]  # no column is all padding
        assert (values[mask == 0] == 0).all()
        assert (mask.diff(dim=1) <= 0).all()  # padding at the end
        for row, length in zip(values, mask.sum(1), strict=True):
            assert abs(row[:length].mean()) < 1e-4
            assert abs(row[:length].std() - 1) < 1e-2


def test_lengths_are_matched_inside_a_window(shards):
    def padding(window_size):
        loader = make_loader(shards[0], make=validation_loader, window_size=window_size, batch_seconds=3)
        masks = [batch["attention_mask"] for batch, _ in loader]
        return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(64) < 0.05
    assert padding(64) < padding(7) / 2


@settings(max_examples=examples(10), deadline=None)
@given(data=st.data())
def test_resuming_twice_changes_nothing(shards, data):
    options = {
        "seed": data.draw(st.integers(0, 1000)),
        "window_size": data.draw(st.integers(1, 40)),
        "equal_lengths": data.draw(st.booleans()),
        "world_size": (world_size := data.draw(st.sampled_from([1, 2, 6]))),
        "rank": data.draw(st.integers(0, world_size - 1)),
    }
    workers = st.sampled_from([0, 2])
    expected = [batch for batch, _ in islice(make_loader(shards[0], **options), 40)]
    stops = sorted(data.draw(st.lists(st.integers(1, 39), min_size=2, max_size=2, unique=True)))
    batches, state = [], None
    for begin, end in zip([0, *stops], [*stops, 40], strict=True):
        loader = make_loader(shards[0], num_workers=data.draw(workers), **options)
        loader.load_state(state)
        for batch, state in islice(loader, end - begin):  # noqa: B007
            batches.append(batch)
        state = json.loads(json.dumps(state))
    for batch, other in zip(batches, expected, strict=True):
        assert_same(batch, other)


def test_every_example_once_per_epoch(shards):
    seen = Counter()
    for batch, state in make_loader(shards[0], window_size=13):
        if state["stream"]["drawn"] >= 2 * NUM_ROWS:
            break
        seen.update(batch["texts"])
    # 2 × 65 examples are 10 windows of 13
    assert seen == Counter(shards[1] * 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_is_one_pass_the_same_every_time(shards, num_workers):
    loader = make_loader(shards[0], make=validation_loader, num_workers=num_workers)
    first, second = ([batch for batch, _ in loader] for _ in range(2))
    assert sorted(text for batch in first for text in batch["texts"]) == sorted(shards[1])
    for batch, other in zip(first, second, strict=True):
        assert_same(batch, other)


@pytest.mark.parametrize("number", [1, 16, 20, 1000])
def test_validation_on_the_first_examples(shards, number):
    loader = make_loader(shards[0], make=validation_loader, max_examples=number)
    run = list(loader)
    texts = [text for batch, _ in run for text in batch["texts"]]
    assert sorted(texts) == sorted(shards[1][:number])
    for place, (_, state) in enumerate(run[:-1]):
        loader.load_state(state)
        rest = [text for batch, _ in loader for text in batch["texts"]]
        assert rest == [text for batch, _ in run[place + 1 :] for text in batch["texts"]]


def test_equal_lengths_leave_no_padding(shards):
    lengths = set()
    for batch, _ in islice(make_loader(shards[0], equal_lengths=True), 20):
        assert batch["attention_mask"].all()
        lengths.add(batch["input_values"].shape[1])
    assert len(lengths) > 3


def test_batches_come_in_a_random_order_of_length(shards):
    lengths = [batch["input_values"].shape[1] for batch, _ in islice(make_loader(shards[0], window_size=64), 12)]
    assert lengths != sorted(lengths)
    assert lengths != sorted(lengths, reverse=True)


def test_examples_that_fit_no_batch_are_refused_beforehand(shards):
    for options in ({"crop_seconds": None}, {"crop_seconds": 2.0}, {"crop_seconds": 2.0, "max_seconds": 1.6}):
        with pytest.raises(ValueError, match=r"a batch of 1\.5 s cannot hold every example"):
            make_loader(shards[0], **options)
    make_loader(shards[0], crop_seconds=None, max_seconds=1.5)


def test_a_state_of_another_window_size_is_refused(shards):
    _, state = next(iter(make_loader(shards[0])))
    with pytest.raises(ValueError, match="window_size=16, this one has 8"):
        make_loader(shards[0], window_size=8).load_state(state)


def test_errors_come_out_of_the_background(tmp_path):
    write_parquet_shards(tmp_path, rows_per_shard=(4,), seconds=(0.02, 0.03))
    with pytest.raises(ValueError, match="gives no usable example"):
        list(make_loader(tmp_path, num_workers=1))


def test_leaving_early_ends_the_background(shards):
    before = threading.active_count()
    iterator = iter(make_loader(shards[0], num_workers=2))
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_processes_with_unequal_shards_go_on_for_ever(tmp_path):
    write_parquet_shards(tmp_path, rows_per_shard=(12, 3))
    for rank in range(2):
        loader = make_loader(tmp_path, rank=rank, world_size=2)
        assert len(list(islice(loader, 30))) == 30


def test_short_audio_folder(tmp_path):
    (tmp_path / "a.wav").write_bytes(encode(0.3, kind="WAV"))
    ((batch, _),) = validation_loader([AudioSource(str(tmp_path))], batch_seconds=1, crop_seconds=1)
    assert batch["texts"] == [None]
    assert batch["input_values"].shape == (1, 4800)

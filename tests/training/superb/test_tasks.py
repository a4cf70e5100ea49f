"""Every task learns a signal that was planted in its features, by its own loss, and scores it by its own metric."""

from itertools import count

import numpy as np
import pytest
import torch

from lighthubert_hf.training.superb.probing import train_head
from lighthubert_hf.training.superb.query_task import QueryByExample
from lighthubert_hf.training.superb.registry import PROBED, parse_tasks
from lighthubert_hf.training.superb.settings import TINY_SIZES, Rates, TaskData
from lighthubert_hf.training.superb.splits import Utterance
from lighthubert_hf.training.tasks.diarization import median_filter
from lighthubert_hf.training.tasks.verification import read_trials

STATES, WIDTH = 3, 12
FRAME = (320, 400)
SIZES = TINY_SIZES.model_copy(update={"recurrent": 24, "recurrent_projection": 24, "xvector": 24, "diarization": 24})


class Planted:
    """A split in memory, as `train_head` takes it."""

    def __init__(self, utterances: list[Utterance]):
        self.utterances, self.rows = utterances, [utterance.row for utterance in utterances]

    def once(self):
        return iter(self.utterances)

    def batches(self, size: int, seed: int):
        for epoch in count():
            yield [self.utterances[i] for i in np.random.default_rng([seed, epoch]).permutation(len(self.rows))[:size]]


def planted(symbols: list[int], name: str, row: dict, seed: int, frames_each: int = 6) -> Utterance:
    """Every symbol is a direction of state 1 for some frames; the other states are noise."""
    rng = np.random.default_rng(seed)
    features = 0.3 * rng.standard_normal((len(symbols) * frames_each, STATES, WIDTH)).astype(np.float32)
    for place, symbol in enumerate(symbols):
        if symbol >= 0:
            features[place * frames_each : (place + 1) * frames_each - 2, 1, symbol] += 3.0
    return Utterance(name, row, features, len(features))


def classified(seed: int) -> Utterance:
    rng = np.random.default_rng(seed)
    one, two, three = rng.integers(0, 2, 3).tolist()
    row = {"label": "pq"[one], "action": "pq"[one], "object": "rs"[two], "location": "tu"[three]}
    return planted([one, 2 + two, 4 + three], str(seed), row, seed)


def spoken(seed: int) -> Utterance:
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, 3, 2).tolist()
    text = "".join("abc"[symbol] for symbol in symbols)
    row = {"text": text, "phonemes": " ".join(text), "slots": f"B-x {text[0]} E-x {text[1]}"}
    return planted(symbols, str(seed), row, seed, frames_each=8)


def conversed(seed: int) -> Utterance:
    """Who speaks first is an accident; two directions say who speaks."""
    rng = np.random.default_rng(seed)
    turns = rng.permutation([0, 1, 0, 1]).tolist()
    segments = [
        {"speaker": "xy"[turn], "start": place * 0.4, "end": place * 0.4 + 0.4} for place, turn in enumerate(turns)
    ]
    return planted(turns, str(seed), {"segments": segments}, seed, frames_each=20)


MAKERS = {"pr": spoken, "asr": spoken, "sf": spoken, "sd": conversed}
# Learning rate and steps; CTC takes a while to leave its plateau.
RATES = {"pr": (5e-2, 50), "asr": (1e-2, 240), "sf": (2e-2, 160)}


def train(name: str, steps: int, seed: int = 0, learning_rate: float = 1e-2):
    make = MAKERS.get(name, classified)
    splits = [Planted([make(base + index) for index in range(32)]) for base in (0, 1000)]
    task = PROBED[name](TaskData(path="planted"), splits[0].rows, SIZES, FRAME)
    rates = Rates(learning_rate=learning_rate, steps=steps, batch_size=16)
    probe = train_head(task, *splits, (STATES, WIDTH), rates, seed=seed, validations=2, progress=False)
    return task, probe, splits[1]


@pytest.mark.parametrize("name", PROBED)
def test_a_planted_signal_is_learnt(name):
    learning_rate, steps = RATES.get(name, (1e-2, 40))
    task, probe, test = train(name, steps, learning_rate=learning_rate)
    metric = task.metrics[-1]
    score = task.test(probe.head, test.once())[metric.name]
    assert score > 0.9 if metric.higher_is_better else score < 0.15, score
    shares = probe.head.weighted_sum.shares()
    assert shares[1] == max(shares), "the informative state does not weigh most"
    assert probe.kept_step in probe.validation


def test_the_same_seed_gives_the_same_head():
    (_, one, _), (_, two, _), (_, other, _) = (train("asr", 5, seed) for seed in (1, 1, 2))
    for name, value in one.head.state_dict().items():
        assert torch.equal(value, two.head.state_dict()[name])
    assert not torch.equal(one.head.output.weight, other.head.output.weight)


def test_training_leaves_torchs_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train("ks", 2)
    assert torch.equal(torch.rand(2), expected)


def test_more_labels_than_frames_are_refused_and_counted():
    utterances = [spoken(index) for index in range(4)]
    long = Utterance("long", {"phonemes": "a a a a"}, utterances[0].features[:6], 6)  # four, and blanks between
    task = PROBED["pr"](TaskData(path="planted"), [*(u.row for u in utterances), long.row], SIZES, FRAME)
    assert not task.accepts(long)
    rates = Rates(learning_rate=1e-3, steps=2, batch_size=8)
    options = {"seed": 0, "progress": False}
    probe = train_head(task, Planted([*utterances, long]), None, (STATES, WIDTH), rates, **options)
    assert probe.refused == 1
    with pytest.raises(ValueError, match="none of the training utterances"):
        train_head(task, Planted([long]), None, (STATES, WIDTH), rates, **options)


def test_a_missing_column_says_how_to_name_it():
    with pytest.raises(ValueError, match=r"--data ks\.columns\.label=NAME"):
        PROBED["ks"](TaskData(path="planted"), [{"keyword": "yes"}], SIZES, FRAME)
    task = PROBED["ks"](TaskData(path="planted", columns={"label": "keyword"}), [{"keyword": "yes"}], SIZES, FRAME)
    assert task.classes == [["yes"]]


def test_an_unknown_class_is_an_error_in_the_score():
    _, probe, test = train("ks", 40)
    task = PROBED["ks"](TaskData(path="planted"), [{"label": "p"}, {"label": "q"}], SIZES, FRAME)
    strangers = [Utterance(u.id, {"label": "new"}, u.features, u.length) for u in test.utterances]
    assert task.test(probe.head, strangers) == {"accuracy": 0.0}


def test_slot_tokens_are_one_token_each():
    task = PROBED["sf"](TaskData(path="planted"), [{"slots": "to B-city new  york E-city now"}], SIZES, FRAME)
    assert task.tokens("to B-city a E-city") == ["t", "o", " ", "B-city", " ", "a", " ", "E-city"]
    assert task.text({"slots": "to B-city new  york E-city"}) == "to B-city new york E-city"


def test_activity_is_where_a_frame_looks():
    row = {"segments": [{"speaker": "b", "start": 0.1, "end": 0.2}, {"speaker": "a", "start": 0.15, "end": 9.0}]}
    task = PROBED["sd"](TaskData(path="planted"), [row], SIZES, FRAME)
    activity = task.activity(row, 12)
    middles = (np.arange(12) * 320 + 200) / 16000
    assert activity[:, 1].tolist() == ((middles >= 0.1) & (middles < 0.2)).astype(int).tolist()
    assert activity[:, 0].tolist() == (middles >= 0.15).astype(int).tolist()


def test_more_speakers_than_orders_can_be_tried_of_are_named():
    row = {"segments": [{"speaker": str(number), "start": 0.0, "end": 1.0} for number in range(12)]}
    with pytest.raises(ValueError, match=r"a recording of planted has 12 speakers, and at most 6"):
        PROBED["sd"](TaskData(path="planted"), [row], SIZES, FRAME)


def test_median_filter_drops_what_is_shorter_than_half_of_it():
    activity = torch.zeros(40, 2)
    activity[5:10, 0], activity[20:30, 1] = 1, 1
    filtered = median_filter(activity, 11)
    assert not filtered[:, 0].any()
    assert torch.equal(filtered[:, 1], activity[:, 1])


def test_trials_decide(tmp_path):
    file = tmp_path / "trials.txt"
    file.write_text("1 a b\n0 a c\n")
    rows = [{"label": name, "id": name} for name in "abc"]
    task = PROBED["asv"](TaskData(path="planted", trials=str(file)), rows, SIZES, FRAME)
    vectors = {"a": [1, 0], "b": [1, 0.1], "c": [-1, 0]}

    class Head(torch.nn.Linear):
        def embed(self, features, lengths):
            return features[:, 0, 0]

    utterances = [Utterance(r["id"], r, np.array([[vectors[r["id"]]]], np.float32), 1) for r in rows]
    assert task.test(Head(1, 1), utterances) == {"eer": 0.0}
    with pytest.raises(ValueError, match="no trial of"):
        task.test(Head(1, 1), utterances[2:])
    file.write_text("yes a b\n")
    with pytest.raises(ValueError, match="line 1"):
        read_trials(file)


def test_queries_must_name_documents_that_exist():
    task = QueryByExample(TaskData(path="planted"))
    documents, queries = Planted([]), Planted([])
    documents.rows, queries.rows = [{"id": "d1"}], [{"documents": ["d2"]}]
    with pytest.raises(ValueError, match="'d2'"):
        task._relevance(queries, documents)


def test_names_of_tasks():
    assert parse_tasks("ks,pr ks") == ["pr", "ks"]
    assert len(parse_tasks("all")) == 10
    with pytest.raises(ValueError, match=r"'kws'.*qbe"):
        parse_tasks("kws")


@pytest.mark.parametrize(("name", "make", "column"), [("ks", classified, "label"), ("asr", spoken, "text")])
def test_rows_without_a_label_are_left_out_and_counted(name, make, column, caplog):
    utterances = [make(index) for index in range(8)]
    states = utterances[0].features
    empty = [Utterance(f"empty-{i}", {column: value}, states, len(states)) for i, value in enumerate((None, " "))]
    rows = [utterance.row for utterance in (*utterances, *empty)]
    task = PROBED[name](TaskData(path="planted"), rows, SIZES, FRAME)
    rates = Rates(learning_rate=1e-3, steps=2, batch_size=16)
    mixed = Planted([*utterances, *empty])
    probe = train_head(task, mixed, mixed, (STATES, WIDTH), rates, seed=0, progress=False)
    assert probe.refused == 2
    assert f"{name}: 2 utterances without a label are not scored: empty-0, empty-1" in caplog.text
    assert len(list(task.labelled(mixed.once()))) == 8


def test_numbers_are_labels_and_transcripts_too():
    task = PROBED["ks"](TaskData(path="planted"), [{"label": 3}, {"label": "yes"}], SIZES, FRAME)
    assert task.classes == [[3, "yes"]]
    task = PROBED["asr"](TaskData(path="planted"), [{"text": 23}, {"text": 4.0}], SIZES, FRAME)
    assert [task.text(row) for row in ({"text": 23}, {"text": 4.0})] == ["23", "4"]

"""The ten synthetic tasks: the columns promised, labels that agree with the audio, splits apart, seeds."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from lighthubert_hf.metrics.slot_filling import find_slots
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.training.audio.decoding import load_audio
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.audio.streaming import AudioStream
from lighthubert_hf.training.synthetic.espeak import Speaker, Style
from lighthubert_hf.training.synthetic.tasks import EMOTIONS, KEYWORDS, TASKS, VERIFICATION_VOICES, synthesise_task

SMALL = {"examples": 24, "held_out_examples": 12}
COLUMNS = {
    "pr": {"text", "phonemes"},
    "asr": {"text"},
    "ks": {"label"},
    "ic": {"action", "object", "location"},
    "er": {"label"},
    "sid": {"label"},
    "asv": {"label"},
    "sd": {"segments"},
    "sf": {"text", "slots"},
    "qbe": {"text", "documents"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(task)`: a folder with the task and its manifest, made once."""
    known = {}

    def make(task: str):
        if task not in known:
            folder = tmp_path_factory.mktemp("tasks") / task
            known[task] = folder, synthesise_task(task, folder, **SMALL)
        return known[task]

    return make


def rows_of(folder, split):
    stream = AudioStream(
        [AudioSource(str(folder), split, all_columns=True)], shuffle=False, repeat=False, normalised=False
    )
    return [{**example["columns"], "waveform": example["input_values"]} for example in stream]


@pytest.mark.parametrize("task", TASKS)
def test_every_split_streams_with_the_columns_promised(task, made):
    folder, manifest = made(task)
    for split, facts in manifest["splits"].items():
        rows = rows_of(folder, split)
        assert len(rows) == facts["examples"] == (24 if split in ("train", "documents") else 12)
        assert len({row["id"] for row in rows}) == len(rows)
        assert all(set(row) == COLUMNS[task] | {"id", "waveform"} for row in rows)
        assert sum(len(row["waveform"]) for row in rows) / SAMPLING_RATE == pytest.approx(facts["seconds"], abs=1e-2)


def test_classes_are_equally_frequent(made):
    for task, classes in (("ks", len(KEYWORDS) + 2), ("er", len(EMOTIONS))):
        labels = [row["label"] for row in rows_of(made(task)[0], "train")]
        assert {labels.count(label) for label in labels} == {24 // classes}


def test_trials_are_all_pairs_of_unheard_speakers(made):
    folder, _ = made("asv")
    speakers = {row["id"]: row["label"] for row in rows_of(folder, "test")}
    trials = [line.split() for line in (folder / "trials.txt").read_text().splitlines()]
    assert len(trials) == 12 * 11 / 2
    assert all(int(same) == (speakers[one] == speakers[other]) for same, one, other in trials)
    assert {same for same, _, _ in trials} == {"0", "1"}
    voices = [set(voices) for voices in VERIFICATION_VOICES.values()]
    assert sum(map(len, voices)) == len(set().union(*voices))


def test_segments_are_where_the_speech_is(made):
    overlaps = 0
    for row in rows_of(made("sd")[0], "train"):
        speech = np.zeros(len(row["waveform"]), dtype=int)
        for segment in row["segments"]:
            speech[round(segment["start"] * SAMPLING_RATE) : round(segment["end"] * SAMPLING_RATE)] += 1
        assert len({segment["speaker"] for segment in row["segments"]}) == 2
        assert np.abs(row["waveform"][speech == 0]).max(initial=0.0) < 1e-4
        assert max(segment["end"] for segment in row["segments"]) == pytest.approx(
            len(row["waveform"]) / SAMPLING_RATE
        )
        overlaps += (speech == 2).any()
    assert overlaps > 5


def test_slots_mark_the_text(made):
    for row in rows_of(made("sf")[0], "train"):
        plain = " ".join(word for word in row["slots"].split() if word[:2] not in ("B-", "E-"))
        assert plain == row["text"]
        assert find_slots(row["slots"])


def test_queries_name_the_documents_that_say_them(made):
    folder, _ = made("qbe")
    documents = {row["id"]: row["text"].split() for row in rows_of(folder, "documents")}
    for split in ("validation", "test"):
        for row in rows_of(folder, split):
            assert row["documents"] == sorted(name for name, words in documents.items() if row["text"] in words) != []


def test_phonemes_are_those_of_the_text():
    speaker = Speaker()
    assert " ".join(speaker.phonemes("the red bird, slowly", "en-us+f1")) == "D @2 r E d b 3: d s l oU l i"
    assert speaker.phonemes("cat", "en-us+m3") == ["k", "a", "t"]


def test_a_style_changes_the_speech_and_does_not_last():
    fast, again = Speaker(), Speaker()
    quick = fast.say("the red bird sings", "en-us+f1", Style(rate=300))
    slow = fast.say("the red bird sings", "en-us+f1")
    assert len(quick) < 0.8 * len(slow)
    assert abs(len(again.say("the red bird sings", "en-us+f1")) - len(slow)) < 0.05 * len(slow)
    quiet = fast.say("the red bird sings", "en-us+f1", Style(volume=30))
    assert np.abs(quiet).max() < 0.5 * np.abs(slow).max()


def test_the_same_seed_gives_the_same_data_and_a_complete_folder_is_reused(made, tmp_path):
    folder, manifest = made("ks")
    assert synthesise_task("ks", tmp_path / "again", **SMALL) == manifest

    def contents(place: Path):
        return {path.name: path.read_bytes() for path in (place / "data").iterdir()}

    assert contents(tmp_path / "again") == contents(folder)
    written = (folder / "corpus.json").stat().st_mtime_ns
    assert synthesise_task("ks", folder, **SMALL) == manifest
    assert (folder / "corpus.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"holds a corpus made with {'seed': 0}, asked for {'seed': 1}"):
        synthesise_task("ks", folder, **SMALL, seed=1)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="no task 'tts'; there are pr, asr"):
        synthesise_task("tts", tmp_path / "x")
    with pytest.raises(ValueError, match="num_shards=3 needs a row of examples=2"):
        synthesise_task("ks", tmp_path / "x", examples=2, num_shards=3)
    assert not list(tmp_path.iterdir())


def test_audio_is_flac_at_16_khz(made):
    from datasets import load_dataset

    row = next(iter(load_dataset(str(made("asr")[0]), split="test", streaming=True).decode(False)))
    assert row["audio"]["bytes"][:4] == b"fLaC"
    assert np.abs(load_audio(row["audio"])).max() <= 1

"""Small labelled sets of synthetic speech for the ten tasks of SUPERB: to see that training and scoring run, offline.

What is learned here says nothing about people's speech. Emotions above all are a stand-in: settings of espeak-ng's
rate, loudness, pitch and range of pitch with names of emotions on them.

The columns are the contract for other data as well; every row has an `id` (string) and an `audio`:

| task | columns |
|---|---|
| asr | `text` |
| pr | `text`; `phonemes`, separated by spaces |
| ks, er, sid, asv | `label` |
| ic | `action`, `object`, `location`, each one of a fixed set |
| sd | `segments`, a list of `{speaker, start, end}` in seconds; speakers may overlap |
| sf | `text`; `slots`, the text with `B-name` before and `E-name` after the words of each slot |
| qbe | `text`; `documents`, the ids of the documents that contain a query (in `documents` itself empty) |
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar

from .corpus_folder import flac, shard_path, write_corpus, write_shard
from .espeak import NEUTRAL, Speaker, Style
from .speech import LEXICON, TRAINING_VOICES, new_sentences

TRIALS = "trials.txt"
SPLITS = ("train", "validation", "test")
# Who speaks in the splits of speaker verification and diarisation; none of them is in two.
VERIFICATION_VOICES = {
    "train": TRAINING_VOICES,
    "validation": ("en-us+f5", "en-us+m7", "en-us+croak", "en-us+Annie"),
    "test": ("en-us+m8", "en-us+whisper", "en-us+Andrea", "en-us+klatt2"),
}
KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
UNKNOWN_WORD, SILENCE = "_unknown_", "_silence_"
EMOTIONS = {
    "neutral": NEUTRAL,
    "happy": Style(rate=200, volume=120, pitch=80, pitch_range=90),
    "angry": Style(rate=240, volume=180, pitch=40, pitch_range=70),
    "sad": Style(rate=120, volume=60, pitch=25, pitch_range=15),
}
_COMMANDS = {
    ("activate", "lights"): "turn on the lights",
    ("deactivate", "lights"): "switch off the lights",
    ("activate", "music"): "play some music",
    ("deactivate", "music"): "stop the music",
    ("increase", "heat"): "make it warmer",
    ("decrease", "heat"): "make it colder",
}
_LOCATIONS = {"none": "", "kitchen": " in the kitchen", "bedroom": " in the bedroom", "garden": " in the garden"}
_REQUESTS = (
    "wake me up at {time} {day}",
    "play {song} by {artist}",
    "will it rain in {city} {day}",
    "book a table for {number} in {city}",
    "remind {artist} at {time}",
)
_VALUES = {
    "time": ("seven", "half past nine", "noon"),
    "day": ("today", "tomorrow", "on sunday"),
    "song": ("red river", "quiet water", "paper birds"),
    "artist": ("john stone", "mary house", "the old dogs"),
    "city": ("boston", "new york", "paris"),
    "number": ("two", "four", "nine people"),
}


def synthesise_task(
    task: str,
    folder: str | os.PathLike,
    *,
    examples: int = 120,
    held_out_examples: int = 40,
    seed: int = 0,
    num_shards: int = 2,
) -> dict[str, Any]:
    """Write a data set of one task that `datasets.load_dataset(folder, split=…, streaming=True)` reads.

    ```
    folder/
      corpus.json                          parameters and sizes; its presence means "complete"
      data/train-00000-of-00002.parquet …  `examples` rows
      data/validation-*.parquet            `held_out_examples` rows
      data/test-*.parquet                  as many
      trials.txt                           asv: all pairs of the test split, lines `1 ID ID` (one speaker) or `0 ID ID`
    ```

    For `qbe` the splits are `documents` (`examples` rows) and the queries `validation` and `test`, spoken by other
    voices. See the module for the columns. Classes are equally frequent; sentences of asr, pr and sd occur once;
    asv and sd keep the speakers of their splits apart.

    Args:
        task: One of `TASKS`.
        folder: Where to write. A complete one with the same parameters is reused; anything else in the way is an
            error.
        examples, held_out_examples: Rows.
        seed: Seed of everything; the same parameters give the same data.
        num_shards: Parquet files of each split.

    Returns:
        The manifest: `{"parameters": {…}, "splits": {name: {"examples", "seconds", "shards"}}}`.

    Raises:
        ValueError: Parameters that make no sense, or a folder in the way.
        ImportError: espeakng-loader is not installed.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")
    if not 1 <= num_shards <= min(examples, held_out_examples):
        raise ValueError(
            f"every one of num_shards={num_shards} needs a row of examples={examples} "
            f"and held_out_examples={held_out_examples}"
        )
    parameters = {
        "task": task,
        "examples": examples,
        "held_out_examples": held_out_examples,
        "seed": seed,
        "num_shards": num_shards,
    }
    return write_corpus(Path(folder), parameters, lambda temporary: _write_splits(temporary, **parameters))


@dataclass
class _Studio:
    """What rows are made with. `sentences` never repeats itself, over all splits."""

    speaker: Speaker
    rng: random.Random
    sentences: Iterator[str]
    documents: dict[str, set[str]]

    def say(self, text: str, voices: tuple[str, ...] = TRAINING_VOICES, style: Style = NEUTRAL) -> np.ndarray:
        return self.speaker.say(text, self.rng.choice(voices), style)


TaskRow = dict[str, Any]  # `waveform`, and the columns of the task


def _write_splits(
    folder: Path, task: str, examples: int, held_out_examples: int, seed: int, num_shards: int
) -> dict[str, dict[str, Any]]:
    rng = random.Random(f"{seed} {task}")
    studio = _Studio(Speaker(seed), rng, new_sentences(random.Random(f"{seed} sentences")), {})
    splits = ("documents", "validation", "test") if task == "qbe" else SPLITS
    sizes = {split: held_out_examples if split in ("validation", "test") else examples for split in splits}
    facts, identities = {}, []
    with progress_bar(None, f"synthesising {task}", total=sum(sizes.values()), unit="utterances") as progress:
        for split, size in sizes.items():
            rows, samples = [], 0
            for index in range(size):
                row = TASKS[task](studio, split, index)
                waveform, name = row.pop("waveform"), f"{split}-{index:06d}"
                samples += len(waveform)
                rows.append({"id": name, "audio": flac(name, waveform), **row})
                if split == "documents":
                    studio.documents[name] = set(row["text"].split())
                elif task == "asv" and split == "test":
                    identities.append((name, row["label"]))
                progress.update()
            rng.shuffle(rows)
            for shard in range(num_shards):
                part = rows[shard * size // num_shards : (shard + 1) * size // num_shards]
                write_shard(shard_path(folder, split, shard, num_shards), part, _columns(part[0]))
            facts[split] = {"examples": size, "seconds": round(samples / SAMPLING_RATE, 3), "shards": num_shards}
    if task == "asv":
        lines = (f"{int(one[1] == other[1])} {one[0]} {other[0]}\n" for one, other in combinations(identities, 2))
        (folder / TRIALS).write_text("".join(lines), encoding="utf-8")
    return facts


def _columns(row: TaskRow) -> dict[str, Any]:
    """The features of a row's columns besides `id` and `audio`."""
    from datasets import List, Value

    lists = {
        "segments": List({"speaker": Value("string"), "start": Value("float64"), "end": Value("float64")}),
        "documents": List(Value("string")),
    }
    return {name: lists.get(name, Value("string")) for name in row if name not in ("id", "audio")}


def _transcribed(studio: _Studio, split: str, index: int) -> TaskRow:
    text = next(studio.sentences)
    return {"waveform": studio.say(text), "text": text}


def _phonemes(studio: _Studio, split: str, index: int) -> TaskRow:
    row = _transcribed(studio, split, index)
    return {**row, "phonemes": " ".join(studio.speaker.phonemes(row["text"], TRAINING_VOICES[0]))}


def _keyword(studio: _Studio, split: str, index: int) -> TaskRow:
    label = (*KEYWORDS, UNKNOWN_WORD, SILENCE)[index % (len(KEYWORDS) + 2)]
    if label == SILENCE:
        noise = np.random.default_rng(studio.rng.getrandbits(32)).normal(size=SAMPLING_RATE)
        return {"waveform": (noise * studio.rng.uniform(1e-3, 1e-2)).astype(np.float32), "label": label}
    return {"waveform": studio.say(label if label in KEYWORDS else studio.rng.choice(LEXICON)), "label": label}


def _intent(studio: _Studio, split: str, index: int) -> TaskRow:
    action, thing = list(_COMMANDS)[index % len(_COMMANDS)]
    location = studio.rng.choice(list(_LOCATIONS))
    waveform = studio.say(_COMMANDS[action, thing] + _LOCATIONS[location])
    return {"waveform": waveform, "action": action, "object": thing, "location": location}


def _emotion(studio: _Studio, split: str, index: int) -> TaskRow:
    label = list(EMOTIONS)[index % len(EMOTIONS)]
    return {"waveform": studio.say(next(studio.sentences), style=EMOTIONS[label]), "label": label}


def _speaker(studio: _Studio, split: str, index: int) -> TaskRow:
    label = TRAINING_VOICES[index % len(TRAINING_VOICES)]
    return {"waveform": studio.say(next(studio.sentences), (label,)), "label": label}


def _verified_speaker(studio: _Studio, split: str, index: int) -> TaskRow:
    voices = VERIFICATION_VOICES[split]
    label = voices[index % len(voices)]
    return {"waveform": studio.say(next(studio.sentences), (label,)), "label": label}


def _conversation(studio: _Studio, split: str, index: int) -> TaskRow:
    """Two voices, three turns; each begins shortly before or after the end of the one before."""
    first, second = studio.rng.sample(VERIFICATION_VOICES[split], 2)
    segments, placed, end = [], [], 0.0
    for voice in (first, second, first):
        waveform = _without_silence(studio.say(next(studio.sentences), (voice,)))
        start = max(0, round((end + studio.rng.uniform(-0.6, 0.3)) * SAMPLING_RATE)) if placed else 0
        placed.append((start, waveform * studio.rng.uniform(0.6, 1.0)))
        end = (start + len(waveform)) / SAMPLING_RATE
        segments.append({"speaker": voice, "start": start / SAMPLING_RATE, "end": end})
    mixture = np.zeros(max(start + len(waveform) for start, waveform in placed), np.float32)
    for start, waveform in placed:
        mixture[start : start + len(waveform)] += waveform
    return {"waveform": mixture / max(1.0, np.abs(mixture).max()), "segments": segments}


def _without_silence(waveform: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    loud = np.flatnonzero(np.abs(waveform) > threshold)
    return waveform[loud[0] : loud[-1] + 1]


def _request(studio: _Studio, split: str, index: int) -> TaskRow:
    values = {name: studio.rng.choice(choices) for name, choices in _VALUES.items()}
    pattern = _REQUESTS[index % len(_REQUESTS)]
    text = pattern.format(**values)
    tagged = pattern.format(**{name: f"B-{name} {value} E-{name}" for name, value in values.items()})
    return {"waveform": studio.say(text), "text": text, "slots": tagged}


def _query_or_document(studio: _Studio, split: str, index: int) -> TaskRow:
    """Documents are sentences; a query is a word that occurs in one of them."""
    if split == "documents":
        return {**_transcribed(studio, split, index), "documents": []}
    spoken = sorted(set().union(*studio.documents.values()))
    word = studio.rng.choice([word for word in spoken if len(word) > 3] or spoken)
    found = [name for name, words in studio.documents.items() if word in words]
    return {"waveform": studio.say(word, VERIFICATION_VOICES[split]), "text": word, "documents": found}


TASKS: dict[str, Callable[[_Studio, str, int], TaskRow]] = {
    "pr": _phonemes,
    "asr": _transcribed,
    "ks": _keyword,
    "ic": _intent,
    "er": _emotion,
    "sid": _speaker,
    "asv": _verified_speaker,
    "sd": _conversation,
    "sf": _request,
    "qbe": _query_or_document,
}

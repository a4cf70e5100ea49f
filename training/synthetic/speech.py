"""Speech with transcripts out of nothing: a corpus that espeak-ng speaks, stored like any dataset of the Hub.

The demo, the tests and the tiny twins of the recipes need speech without a download. The text that is spoken is the
transcript; a small grammar makes the sentences; voices and sentences that training never hears are kept apart.
"""

import os
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar

from .corpus_folder import flac, shard_path, write_corpus, write_shard
from .espeak import Speaker, speak

__all__ = ["LEXICON", "TRAINING_VOICES", "UNHEARD_VOICES", "new_sentences", "speak", "synthesise_corpus"]

TRAINING_VOICES = tuple(f"en-us+{name}" for name in ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m6"))
UNHEARD_VOICES = ("en-us+f5",)

_WORDS = {
    kind: words.split()
    for kind, words in {
        "determiner": "the a this that every",
        "number": "two three seven nine",
        "adjective": "red blue green light dark small large old quiet",
        "noun": "bird dog cat horse river mountain city house garden door window paper stone bread water music",
        "verb": "walks runs sings sleeps eats opens closes sees finds takes gives",
        "preposition": "under over near behind into",
        "adverb": "slowly quickly today tomorrow never always",
    }.items()
}
_PATTERNS = tuple(
    pattern.split()
    for pattern in (
        "adjective noun adverb",
        "determiner noun verb",
        "number adjective noun",
        "adverb determiner noun verb",
        "determiner adjective noun verb",
        "noun verb preposition noun",
        "determiner noun verb adverb",
        "number noun preposition determiner noun",
        "noun verb determiner adjective noun",
        "adverb noun verb number noun",
    )
)
LEXICON = tuple(sorted({word for words in _WORDS.values() for word in words}))


def synthesise_corpus(
    folder: str | os.PathLike,
    *,
    minutes: float = 80.0,
    held_out_minutes: float = 3.0,
    seed: int = 0,
    voices: tuple[str, ...] = TRAINING_VOICES,
    unheard_voices: tuple[str, ...] = UNHEARD_VOICES,
    num_shards: int = 8,
) -> dict[str, Any]:
    """Write a corpus of synthetic speech that `datasets.load_dataset(folder, split=…)` and the Hub understand.

    ```
    folder/
      corpus.json                               parameters and sizes; its presence means "complete"
      data/train-00000-of-00008.parquet …       the training sentences and voices
      data/validation-*.parquet                 new sentences, training voices (for choosing)
      data/test_sentences-*.parquet             new sentences, training voices (for reporting)
      data/test_voice-*.parquet                 new sentences, voices that training never hears
    ```

    Columns: `id` (string), `audio` (an `Audio` feature: 16 kHz mono FLAC bytes and a file name), `text` (lower-case
    letters and spaces), `voice` (string). No sentence occurs twice. The same parameters give the same corpus.

    Args:
        folder: Where to write. A complete corpus with the same parameters is reused; anything else in the way is
            an error. Everything is written beside it and renamed at the end.
        minutes: Length of the `train` split.
        held_out_minutes: Length of each other split.
        seed: Seed of sentences and voices.
        voices: espeak-ng voices of training, `language+variant`.
        unheard_voices: Voices of `test_voice`.
        num_shards: Parquet files of `train`; the other splits have two.

    Returns:
        The manifest: `{"parameters": {…}, "splits": {name: {"examples", "seconds", "shards"}}}`.

    Raises:
        ValueError: Parameters that make no sense, an unknown voice, or a folder in the way.
        ImportError: espeakng-loader is not installed.
    """
    folder = Path(folder)
    if not (minutes > 0 and held_out_minutes > 0 and num_shards >= 1):
        raise ValueError(
            "a corpus needs minutes > 0, held_out_minutes > 0 and num_shards >= 1; "
            f"got {minutes}, {held_out_minutes} and {num_shards}"
        )
    if not voices or not unheard_voices:
        raise ValueError("a corpus needs at least one voice for training and one that training does not hear")
    if overlap := set(voices) & set(unheard_voices):
        raise ValueError(f"voices {sorted(overlap)} are both heard and unheard; give each to one of the two")
    parameters = {
        "minutes": float(minutes),
        "held_out_minutes": float(held_out_minutes),
        "seed": seed,
        "voices": list(voices),
        "unheard_voices": list(unheard_voices),
        "num_shards": num_shards,
    }
    return write_corpus(folder, parameters, lambda temporary: _write_splits(temporary, parameters))


def _write_splits(folder: Path, parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from datasets import Value

    held_out = parameters["held_out_minutes"]
    plan = (
        ("train", parameters["minutes"], parameters["voices"], parameters["num_shards"]),
        ("validation", held_out, parameters["voices"], 2),
        ("test_sentences", held_out, parameters["voices"], 2),
        ("test_voice", held_out, parameters["unheard_voices"], 2),
    )
    speaker = Speaker(parameters["seed"])
    columns = {"text": Value("string"), "voice": Value("string")}
    sentences = new_sentences(random.Random(parameters["seed"]))
    splits = {}
    seconds_wanted = round(sum(minutes for _, minutes, _, _ in plan) * 60)
    with progress_bar(None, "synthesising", total=seconds_wanted, unit="s") as progress:
        for name, minutes, voices, num_shards in plan:
            choose_voice = random.Random(f"{parameters['seed']} {name}")
            utterances = (
                _utterance(speaker, f"{name}-{i:06d}", next(sentences), choose_voice.choice(voices)) for i in count()
            )
            num_examples, seconds = 0, 0.0
            for shard in range(num_shards):
                rows = []
                while not rows or seconds < minutes * 60 * (shard + 1) / num_shards:
                    row, length = next(utterances)
                    rows.append(row)
                    seconds += length
                    progress.update(min(round(length, 1), progress.total - progress.n))
                write_shard(shard_path(folder, name, shard, num_shards), rows, columns)
                num_examples += len(rows)
            splits[name] = {"examples": num_examples, "seconds": round(seconds, 3), "shards": num_shards}
    return splits


def new_sentences(rng: random.Random) -> Iterator[str]:
    """Sentences of the grammar, none twice."""
    seen = set()
    while True:
        for _ in range(10_000):
            sentence = " ".join(rng.choice(_WORDS[kind]) for kind in rng.choice(_PATTERNS))
            if sentence not in seen:
                break
        else:
            raise ValueError(f"the grammar is exhausted after {len(seen)} sentences; ask for fewer minutes")
        seen.add(sentence)
        yield sentence


def _utterance(speaker: Speaker, name: str, text: str, voice: str) -> tuple[dict[str, Any], float]:
    """One row of the corpus and its length in seconds."""
    waveform = speaker.say(text, voice)
    row = {"id": name, "audio": flac(name, waveform), "text": text, "voice": voice}
    return row, len(waveform) / SAMPLING_RATE

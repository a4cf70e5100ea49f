"""Speech with transcripts out of nothing: a corpus that espeak-ng speaks, stored like any dataset of the Hub.

The demo, the tests and the tiny twins of the recipes need speech without a download. The text that is spoken is the
transcript; a small grammar makes the sentences; voices and sentences that training never hears are kept apart.
"""

import ctypes
import functools
import io
import json
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .audio import SAMPLING_RATE

TRAINING_VOICES = tuple(f"en-us+{name}" for name in ("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m6"))
UNHEARD_VOICES = ("en-us+f5",)
MANIFEST = "corpus.json"

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
    if (existing := _existing_manifest(folder, parameters)) is not None:
        return existing
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        manifest = {"parameters": parameters, "splits": _write_splits(temporary, parameters)}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        temporary.chmod(0o755)  # mkdtemp makes private folders; a corpus is an ordinary one
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def _existing_manifest(folder: Path, parameters: dict[str, Any]) -> dict[str, Any] | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} exists and is not a synthetic corpus (no {MANIFEST}); choose another folder")
    manifest = json.loads(path.read_text())
    differing = sorted(key for key, value in parameters.items() if manifest["parameters"].get(key) != value)
    if differing:
        was, asked = ({key: source.get(key) for key in differing} for source in (manifest["parameters"], parameters))
        raise ValueError(
            f"{folder} holds a corpus made with {was}, asked for {asked}; delete it or choose another folder"
        )
    return manifest


def _write_splits(folder: Path, parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    from tqdm.auto import tqdm

    held_out = parameters["held_out_minutes"]
    plan = (
        ("train", parameters["minutes"], parameters["voices"], parameters["num_shards"]),
        ("validation", held_out, parameters["voices"], 2),
        ("test_sentences", held_out, parameters["voices"], 2),
        ("test_voice", held_out, parameters["unheard_voices"], 2),
    )
    speaker = Speaker(parameters["seed"])
    (folder / "data").mkdir()
    sentences = _new_sentences(random.Random(parameters["seed"]))
    splits = {}
    with tqdm(
        total=round(sum(minutes for _, minutes, _, _ in plan) * 60), unit="s", unit_scale=True, desc="synthesising"
    ) as progress:
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
                _write_shard(folder / "data" / f"{name}-{shard:05d}-of-{num_shards:05d}.parquet", rows)
                num_examples += len(rows)
            splits[name] = {"examples": num_examples, "seconds": round(seconds, 3), "shards": num_shards}
    return splits


def _new_sentences(rng: random.Random) -> Iterator[str]:
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


def _utterance(speaker: "Speaker", name: str, text: str, voice: str) -> tuple[dict[str, Any], float]:
    """One row of the corpus and its length in seconds."""
    import soundfile

    waveform = speaker.say(text, voice)
    flac = io.BytesIO()
    soundfile.write(flac, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    audio = {"bytes": flac.getvalue(), "path": f"{name}.flac"}
    return {"id": name, "audio": audio, "text": text, "voice": voice}, len(waveform) / SAMPLING_RATE


def _write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio, Features, Value

    features = Features(
        {
            "id": Value("string"),
            "audio": Audio(sampling_rate=SAMPLING_RATE),
            "text": Value("string"),
            "voice": Value("string"),
        }
    )
    # The schema carries the features, so `datasets` sees an Audio column; FLAC does not compress further.
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=100, compression="none")


def speak(text: str, voice: str) -> np.ndarray:
    """Say `text` with an espeak-ng voice such as `en-us+f3`.

    The same text sounds slightly different every time (pitch flutters on from sentence to sentence).

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32, 16 kHz, in [-1, 1].
    """
    return _shared_speaker().say(text, voice)


@functools.cache
def _shared_speaker() -> "Speaker":
    return Speaker()


class Speaker:
    """An espeak-ng of its own: what it says depends on `seed` and on what it has said before, and on nothing else.

    The library keeps its state (random numbers, the phase of the pitch flutter) in global variables, where it
    outlasts every sentence and even a new initialisation. So each speaker loads a private copy of the library, with
    variables of its own, and a lock keeps sentences apart.

    Raises:
        ImportError: espeakng-loader is not installed.
    """

    _SYNCHRONOUS, _CHARS_UTF8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS and espeakCHARS_UTF8 of speak_lib.h

    def __init__(self, seed: int = 0):
        try:
            import espeakng_loader
        except ImportError:
            raise ImportError(
                "synthetic speech needs espeakng-loader; install it with: pip install 'lighthubert-hf[demo]'"
            ) from None
        self._lock = threading.Lock()
        self._chunks: list[np.ndarray] = []
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        data_path = espeakng_loader.get_data_path()
        self._sampling_rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, os.fsencode(data_path), 0)
        if self._sampling_rate <= 0:
            raise RuntimeError(f"espeak-ng could not start (espeak_Initialize returned {self._sampling_rate})")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._collect)  # kept: the library holds only a pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._variants = Path(data_path) / "voices" / "!v"

    def _collect(self, samples, count, _events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str) -> np.ndarray:
        """`(num_samples,)`, float32, 16 kHz, in [-1, 1]. `ValueError` if there is no such voice."""
        import soxr

        encoded, variant = text.encode(), voice.partition("+")[2]
        with self._lock:
            self._chunks.clear()
            # The library itself passes over a variant that it does not know.
            known = not variant or (self._variants / variant).is_file()
            if not known or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice {voice!r}; voices are language+variant, such as 'en-us+f3'")
            self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self._CHARS_UTF8, None, None)
            self._library.espeak_Synchronize()
            if not self._chunks:
                raise RuntimeError(f"espeak-ng said nothing for {text!r} with the voice {voice!r}")
            waveform = np.concatenate(self._chunks).astype(np.float32) / 32768
        return soxr.resample(waveform, self._sampling_rate, SAMPLING_RATE).clip(-1.0, 1.0)

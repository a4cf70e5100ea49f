"""espeak-ng through ctypes: text to speech, and text to phonemes."""

import ctypes
import functools
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lighthubert_hf.extras import require
from lighthubert_hf.preprocessing import SAMPLING_RATE

_STRESS = "',"


@dataclass(frozen=True)
class Style:
    """How a voice speaks: words per minute, and loudness, pitch and range of pitch in percent (espeak-ng's scales)."""

    rate: int = 175
    volume: int = 100
    pitch: int = 50
    pitch_range: int = 50


NEUTRAL = Style()


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

    # Of speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8, and the parameters of a `Style` in their order.
    _SYNCHRONOUS, _CHARS_UTF8 = 2, 1
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4

    def __init__(self, seed: int = 0):
        require("demo", what="synthetic speech")
        import espeakng_loader

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

    def say(self, text: str, voice: str, style: Style = NEUTRAL) -> np.ndarray:
        """`(num_samples,)`, float32, 16 kHz, in [-1, 1]. `ValueError` if there is no such voice."""
        import soxr

        encoded = text.encode()
        with self._lock:
            self._chunks.clear()
            self._choose(voice)
            settings = (style.rate, style.volume, style.pitch, style.pitch_range)
            for parameter, value in zip((self._RATE, self._VOLUME, self._PITCH, self._RANGE), settings, strict=True):
                self._library.espeak_SetParameter(parameter, value, 0)
            self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, self._CHARS_UTF8, None, None)
            self._library.espeak_Synchronize()
            if not self._chunks:
                raise RuntimeError(f"espeak-ng said nothing for {text!r} with the voice {voice!r}")
            waveform = np.concatenate(self._chunks).astype(np.float32) / 32768
        return soxr.resample(waveform, self._sampling_rate, SAMPLING_RATE).clip(-1.0, 1.0)

    def phonemes(self, text: str, voice: str) -> list[str]:
        """The phonemes the voice makes of `text`, in espeak-ng's ASCII names, without marks of stress and pauses."""
        convert = self._library.espeak_TextToPhonemes
        convert.restype = ctypes.c_char_p
        rest, found = ctypes.c_char_p(text.encode()), []
        with self._lock:
            self._choose(voice)
            while rest.value:  # a clause at a time; the library moves the pointer on
                clause = convert(ctypes.byref(rest), self._CHARS_UTF8, ord("_") << 8)
                found += clause.decode().replace("_", " ").split()
        found = [name.lstrip(_STRESS) for name in found]
        return [name for name in found if any(character.isalnum() or character == "@" for character in name)]

    def _choose(self, voice: str) -> None:
        variant = voice.partition("+")[2]
        # The library itself passes over a variant that it does not know.
        known = not variant or (self._variants / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}; voices are language+variant, such as 'en-us+f3'")

"""From encoded audio to what a model sees: decode, mix to mono, resample to 16 kHz, normalise.

soundfile decodes and soxr resamples. torchcodec, which `datasets` would use, needs system libraries that most machines
lack, and its mere presence can break imports.
"""

import io
import os
from collections.abc import Mapping

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE

# Audio lies within ±1. A mix may overshoot that; a sample this far out is a broken one, or on another scale.
LARGEST_SAMPLE = 100.0


class AudioDecodeError(ValueError):
    """A file that cannot be read as audio. The message names it."""


def read_audio_bytes(audio: Mapping | str | os.PathLike) -> tuple[bytes, str]:
    """Fetch the encoded bytes of an audio file and a name for messages.

    Args:
        audio: A path, or `{"bytes", "path"}` as `datasets` stores it. Paths may be anything fsspec opens
            (`hf://…`, `https://…`, `zip://a.wav::archive.zip`).

    Raises:
        FileNotFoundError: The file does not exist.
        AudioDecodeError: There are neither bytes nor a path.
        OSError: The file cannot be read (a network fault, for example).
    """
    if not isinstance(audio, Mapping):
        audio = {"path": os.fspath(audio)}
    data, path = audio.get("bytes"), audio.get("path")
    if data is not None:
        return data, path or "<bytes without a path>"
    if not path:
        raise AudioDecodeError("an audio example holds neither bytes nor a path")
    if "://" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:
            return file.read(), path
    with open(path, "rb") as file:
        return file.read(), path


def decode_audio(data: bytes, name: str) -> np.ndarray:
    """Decode an audio file that is in memory; channels are averaged before resampling to 16 kHz.

    Args:
        data: The file (FLAC, WAV, OGG, MP3 and whatever else libsndfile reads).
        name: What error messages call it.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32, 16 kHz. May be empty.

    Raises:
        AudioDecodeError: It is not audio that libsndfile reads, or holds values that are not finite or far beyond ±1.
    """
    import soundfile
    import soxr

    try:
        waveform, sampling_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError, OverflowError, MemoryError) as error:
        raise AudioDecodeError(f"{name} cannot be decoded as audio: {error}") from error
    _check_samples(waveform, name)
    waveform = waveform.mean(axis=1, dtype=np.float32)
    if sampling_rate != SAMPLING_RATE and len(waveform):
        waveform = soxr.resample(waveform, sampling_rate, SAMPLING_RATE)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _check_samples(samples: np.ndarray, name: str) -> None:
    """Refuse what a file of integers cannot hold, and a file of floats should not."""
    if not samples.size:
        return
    largest = max(-float(samples.min()), float(samples.max()))  # NaN if any sample is
    if not np.isfinite(largest):
        raise AudioDecodeError(f"{name} holds samples that are not finite")
    if largest > LARGEST_SAMPLE:
        raise AudioDecodeError(
            f"{name} holds samples as large as {largest:.3g}, where audio lies within ±1; scale it, or record it anew"
        )


def load_audio(audio: Mapping | str | os.PathLike) -> np.ndarray:
    """Read and decode one audio file: `(num_samples,)`, float32, 16 kHz, mono, not normalised.

    Raises:
        FileNotFoundError: The file does not exist.
        AudioDecodeError: It cannot be decoded; the message names the file.
    """
    return decode_audio(*read_audio_bytes(audio))


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, `(x − mean) / sqrt(var + 1e-7)`, as `Wav2Vec2FeatureExtractor(do_normalize=True)`.

    The original's layer norm has 1e-5 under the root, which differs on near-silence only.
    """
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)

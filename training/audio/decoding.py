"""From encoded audio to what a model sees: decode, mix to mono, resample to 16 kHz, normalise.

soundfile decodes and soxr resamples, in blocks, so that memory follows the length of what comes out and not that of
what is stored. torchcodec, which `datasets` would use, needs system libraries that most machines lack, and its mere
presence can break imports.
"""

import io
import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

import numpy as np

from lighthubert_hf.preprocessing import SAMPLING_RATE

# From 1 kHz, below which there is no speech, to twice the highest rate of recorders; others are of broken headers.
SAMPLING_RATES = (1_000, 768_000)
# Audio lies within ±1. A mix may overshoot that; a sample this far out is a broken one, or on another scale.
LARGEST_SAMPLE = 100.0
# What of a recording is heard: the mean of its channels, one of them, or each as an example of its own.
Channel = Literal["mean", "split"] | int

_BLOCK = 1 << 16  # frames that are decoded at once
_MOST_BYTES = 1 << 31  # of a file that is not here, which is read whole
_MARGIN = SAMPLING_RATE // 10  # samples around a part that its resampling filter sees; it reaches over far fewer
_CANCELLED = 0.01  # a mix with less than this share of its channels' energy has lost what they held
_SECONDS_LACKING = 0.1  # the padding that encoders of MP3 add, and some headers count, is shorter
_REMOTE_BLOCK = 1 << 18  # bytes of a remote file that are fetched at once
_UNKNOWN = 2**62  # libsndfile says 2**63 - 1 frames where the header does not know


class AudioDecodeError(ValueError):
    """A file that cannot be read as audio. The message names it."""


class Recording:
    """An encoded recording, of which any part can be decoded without what lies before or after it.

    Args:
        audio: The file (FLAC, WAV, OGG, MP3 and whatever else libsndfile reads), or `(samples, sampling rate)` with
            samples of shape `(num_frames,)` or `(num_channels, num_frames)`.
        name: What error messages call it.

    Raises:
        AudioDecodeError: It is not audio that libsndfile reads, or has a rate outside 1 to 768 kHz.
    """

    def __init__(self, audio: "bytes | BinaryIO | RemoteFile | tuple[Any, int]", name: str):
        self.name = name
        if isinstance(audio, tuple):
            samples, self.sampling_rate = audio
            self._file, self._samples = None, self._checked_array(samples)
            self.num_channels, self._frames = self._samples.shape[1], len(self._samples)
        else:
            self._file = io.BytesIO(audio) if isinstance(audio, bytes) else audio
            self._samples = None
            with self._open() as file:
                self.sampling_rate, self.num_channels = file.samplerate, file.channels
                self._frames = file.frames if file.frames < _UNKNOWN else None
        low, high = SAMPLING_RATES
        if isinstance(self.sampling_rate, bool) or not isinstance(self.sampling_rate, (int, float, np.number)):
            raise AudioDecodeError(f"{name} has the sampling rate {self.sampling_rate!r}, which is no number")
        if not low <= self.sampling_rate <= high or self.sampling_rate != int(self.sampling_rate):
            raise AudioDecodeError(
                f"{name} says that its sampling rate is {self.sampling_rate:g} Hz; rates from {low} to {high} are read"
            )
        self.sampling_rate = int(self.sampling_rate)

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _checked_array(self, samples: Any) -> np.ndarray:
        try:
            array = np.asarray(samples, dtype=np.float32)
        except (ValueError, TypeError) as error:
            raise AudioDecodeError(f"{self.name} holds samples that are no array of numbers ({error})") from None
        if array.ndim == 1:
            return array[:, None]
        if array.ndim != 2 or not len(array):
            raise AudioDecodeError(
                f"{self.name} holds samples of shape {array.shape}, not (samples,) or (channels, samples)"
            )
        return array.T

    @property
    def num_frames(self) -> int:
        """Samples of every channel, as stored. A file whose header does not say is decoded once to count them."""
        if self._frames is None:
            self._frames = sum(len(block) for block in self._blocks(0, None))
        return self._frames

    @property
    def num_samples(self) -> int:
        """Samples at 16 kHz."""
        return round(self.num_frames * SAMPLING_RATE / self.sampling_rate)

    def channels(self, channel: Channel) -> list[Channel]:
        """What `channel` asks of this recording: one entry, but with 'split' as many as there are channels.

        Raises:
            AudioDecodeError: It has no such channel.
        """
        if channel == "split":
            return list(range(self.num_channels)) if self.num_channels > 1 else ["mean"]
        if channel != "mean" and not 0 <= channel < self.num_channels:
            raise AudioDecodeError(f"{self.name} has {self.num_channels} channels, so there is no channel {channel}")
        return [channel]

    def read(self, start: int = 0, stop: int | None = None, channel: Channel = "mean") -> tuple[np.ndarray, bool]:
        """Samples `start` to `stop` at 16 kHz (`stop=None`: to the end), float32, of shape `(num_samples,)`.

        Returns:
            The waveform, and whether its channels cancel each other: whether their mean has less than 1 % of their
            energy.

        Raises:
            AudioDecodeError: It cannot be decoded, or holds values that are not finite or far beyond ±1.
        """
        (channel,) = self.channels(channel)
        # A part begins where a stored sample and one at 16 kHz coincide.
        shared = math.gcd(self.sampling_rate, SAMPLING_RATE)
        unit, frames = SAMPLING_RATE // shared, self.sampling_rate // shared
        before = max(start - _MARGIN, 0) // unit
        after = None if stop is None else -(-(stop + _MARGIN) // unit)
        resample = resampler(self.sampling_rate)
        mixed, heard, decoded, pieces = 0.0, 0.0, 0, []
        first_frame, last_frame = before * frames, None if after is None else after * frames
        for block in self._blocks(first_frame, last_frame):
            decoded += len(block)
            self._check(block)
            mono = _mono(block, channel)
            if self.num_channels > 1 and channel == "mean":
                mixed, heard = mixed + float(mono @ mono), heard + float(np.vdot(block, block)) / self.num_channels
            pieces.append(resample(mono, last=False))
        self._check_whole(decoded, first_frame, last_frame)
        pieces.append(resample(np.zeros(0, np.float32), last=True))
        waveform = np.concatenate(pieces)
        first = start - before * unit
        waveform = waveform[first : None if stop is None else first + stop - start]
        return np.ascontiguousarray(waveform), heard > 0 and mixed < _CANCELLED * heard

    def iterate(self, channel: Channel = "mean") -> Iterator[np.ndarray]:
        """What `read()` returns, in blocks, so that memory does not follow the length of the recording.

        Raises:
            AudioDecodeError: As `read`, where the block is reached.
        """
        (channel,) = self.channels(channel)
        resample = resampler(self.sampling_rate)
        decoded = 0
        for block in self._blocks(0, None):
            decoded += len(block)
            self._check(block)
            yield resample(_mono(block, channel), last=False)
        self._check_whole(decoded, 0, None)
        yield resample(np.zeros(0, np.float32), last=True)

    def _check_whole(self, decoded: int, start: int, stop: int | None) -> None:
        """Refuse what is shorter than its header says: decoders leave out what is damaged without a word."""
        if self._frames is None:
            return
        lacking = (self._frames if stop is None else min(stop, self._frames)) - start - decoded
        if lacking > _SECONDS_LACKING * self.sampling_rate:
            seconds = lacking / self.sampling_rate
            raise AudioDecodeError(f"{self.name} is damaged: {seconds:.2g} s of it are not there or cannot be decoded")

    def _blocks(self, start: int, stop: int | None) -> Iterator[np.ndarray]:
        """The stored samples, `(frames, channels)`."""
        if self._samples is not None:
            part = self._samples[start:stop]
            yield from (part[place : place + _BLOCK] for place in range(0, len(part), _BLOCK))
            return
        with self._open() as file:
            place = start
            if start and self._frames is not None:
                self._decoding(file.seek, start)
            elif start:  # libsndfile cannot seek in what has no known length
                for left in range(start, 0, -_BLOCK):
                    self._decoding(file.read, min(left, _BLOCK), dtype="float32", always_2d=True)
            while stop is None or place < stop:
                size = _BLOCK if stop is None else min(_BLOCK, stop - place)
                block = self._decoding(file.read, size, dtype="float32", always_2d=True)
                if not len(block):
                    return
                place += len(block)
                yield block

    def _open(self):
        import soundfile

        class Sequential(soundfile.SoundFile):
            """soundfile seeks after every read, which fails in a FLAC file of unknown length."""

            def seekable(self) -> bool:
                return False

        self._file.seek(0)
        return self._decoding(Sequential, self._file)

    def _decoding(self, function, *arguments, **options):
        import soundfile

        try:
            found = function(*arguments, **options)
            self._raise_fault()
            return found
        except (soundfile.SoundFileError, ValueError, TypeError, OverflowError, MemoryError) as error:
            self._raise_fault()
            reason = getattr(error, "error_string", error)  # of libsndfile, without what soundfile adds
            raise AudioDecodeError(f"{self.name} cannot be decoded as audio: {reason}") from error

    def _raise_fault(self) -> None:
        if isinstance(self._file, RemoteFile) and (fault := self._file.fault) is not None:
            self._file.fault = None
            raise fault

    def _check(self, samples: np.ndarray) -> None:
        """Refuse what a file of integers cannot hold, and a file of floats should not."""
        if not samples.size:
            return
        largest = max(-float(samples.min()), float(samples.max()))  # NaN if any sample is
        if not np.isfinite(largest):
            raise AudioDecodeError(f"{self.name} holds samples that are not finite")
        if largest > LARGEST_SAMPLE:
            raise AudioDecodeError(
                f"{self.name} holds samples as large as {largest:.3g}, where audio lies within ±1; "
                "scale it, or record it anew"
            )


def _mono(block: np.ndarray, channel: Literal["mean"] | int) -> np.ndarray:
    mono = block.mean(axis=1, dtype=np.float32) if channel == "mean" else block[:, channel]
    return np.ascontiguousarray(mono)


def resampler(sampling_rate: int):
    """A function of mono blocks and of whether one is the last, which returns what of them is ready at 16 kHz."""
    if sampling_rate == SAMPLING_RATE:
        return lambda block, last: block
    import soxr

    return soxr.ResampleStream(sampling_rate, SAMPLING_RATE, 1, dtype="float32").resample_chunk


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading that is one: no FIFO, which would wait for ever, no device, no folder.

    Raises:
        AudioDecodeError: It is something else.
        OSError: It cannot be opened.
    """
    # Without waiting for somebody who writes, and asked of what was opened: a name may change its meaning meanwhile.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AudioDecodeError(f"{os.fspath(path)} is no file: it is a folder, a device or a pipe")
    return os.fdopen(descriptor, "rb")


class RemoteFile:
    """A file that fsspec opens, for libsndfile to read parts of.

    libsndfile swallows what goes wrong while it reads: it is kept in `fault`.
    """

    def __init__(self, path: str):
        import fsspec

        self._system, self._path = fsspec.core.url_to_fs(path)
        self._file = self._system.open(self._path, "rb", block_size=_REMOTE_BLOCK)
        self.fault: Exception | None = None
        if not self._file.seekable():
            with self._file as stream:
                self._file = io.BytesIO(stream.read())

    def read(self, size: int = -1) -> bytes:
        try:
            try:
                return self._file.read(size)
            except ValueError:  # a server that sends whole files only
                place, whole = self._file.tell(), self._system.cat_file(self._path)
                self._file = io.BytesIO(whole)
                self._file.seek(place)
                return self._file.read(size)
        except Exception as error:
            self.fault = error
            return b""

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def open_audio(audio: Mapping | str | os.PathLike) -> Recording:
    """Open a recording, reading nothing but its header, of a URL if its server hands out parts of files.

    Args:
        audio: A path, `{"bytes", "path"}` as `datasets` stores it, or `{"array", "sampling_rate"}`. Paths may be
            anything fsspec opens (`hf://…`, `https://…`, `zip://a.wav::archive.zip`), so they have to be trusted.

    Raises:
        FileNotFoundError: The file does not exist.
        AudioDecodeError: There is nothing to read, or it is no audio; the message names it.
        OSError: The file cannot be read (a network fault, for example).
    """
    if not isinstance(audio, Mapping):
        audio = {"path": os.fspath(audio)}
    data, path, array = audio.get("bytes"), audio.get("path"), audio.get("array")
    if array is not None:
        return Recording((array, audio.get("sampling_rate")), path or "<an array>")
    if data is not None:
        return Recording(bytes(data), path or "<bytes without a path>")
    if not path:
        raise AudioDecodeError("an audio example holds neither bytes nor a path")
    file = RemoteFile(path) if "://" in path else open_regular(path)
    try:
        return Recording(file, path)
    except BaseException:
        file.close()
        raise


def load_audio(audio: Mapping | str | os.PathLike, channel: Channel = "mean") -> np.ndarray:
    """Read and decode one audio file: `(num_samples,)`, float32, 16 kHz, mono, not normalised.

    Raises:
        FileNotFoundError: The file does not exist.
        AudioDecodeError: It cannot be decoded; the message names the file.
    """
    with open_audio(audio) as recording:
        return recording.read(channel=channel)[0]


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance, `(x − mean) / sqrt(var + 1e-7)`, as `Wav2Vec2FeatureExtractor(do_normalize=True)`.

    The original's layer norm has 1e-5 under the root, which differs on near-silence only.
    """
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)

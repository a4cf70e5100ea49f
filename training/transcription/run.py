"""Transcribing files, and raw samples as they come."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from transformers import Wav2Vec2Processor

from lighthubert_hf import LightHubertForCTC
from lighthubert_hf.absent import absent
from lighthubert_hf.files import replacing_file
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.streaming.levels import RunningLevel
from lighthubert_hf.training.audio.decoding import SAMPLING_RATES, AudioDecodeError, Recording, open_audio, resampler

from .captions import HEADERS, SUFFIXES, Format, formatted
from .recogniser import StreamingRecogniser
from .words import Line, Lines, Word

Encoding = Literal["s16le", "f32le"]
Write = Callable[[str], Any]

ENCODINGS: dict[Encoding, str] = {"s16le": "<i2", "f32le": "<f4"}
_CONTAINERS = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3\x03": "MP3", b"ID3\x04": "MP3"}


@dataclass(frozen=True)
class Context:
    """How much audio is computed at once and what it sees around it, in seconds; see `StreamingEncoder`.

    Args:
        chunk: New audio.
        left, right: Context; `None`: what makes the text exact where every layer has a window, else 5 seconds.
    """

    chunk: float
    left: float | None = None
    right: float | None = None


FILES = Context(chunk=20.0)
LIVE = Context(chunk=0.5)
LIVE_RIGHT = 1.0  # of a model with global attention, which could wait for ever


@dataclass
class Transcripts:
    """What came of transcribing several files: one entry each, in their order."""

    done: list[dict[str, Any]] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"files": self.done, "kept": self.kept, "failed": self.failed}

    def complaint(self, total: int) -> str:
        """What could not be read, in one line; empty: all was."""
        if not self.failed:
            return ""
        reasons = "; ".join(f"{one['file']}: {one['reason']}" for one in self.failed[:5])
        more = f"; and {len(self.failed) - 5} more" if len(self.failed) > 5 else ""
        return f"{len(self.failed)} of {total} files could not be transcribed ({reasons}{more})"


def transcribe_files(
    model: LightHubertForCTC,
    processor: Wav2Vec2Processor,
    paths: Sequence[str],
    *,
    kind: Format = "txt",
    output: Path | None = None,
    context: Context = FILES,
    overwrite: bool = False,
    write: Write | None = None,
    progress: bool = True,
) -> Transcripts:
    """Text and times of recordings of any length, each in bounded memory.

    A recording is read twice: its mean and variance first, where the model expects audio normalised as a whole.

    Args:
        paths: Whatever libsndfile reads.
        output: Folder for one file a recording, whole or not there. What is there already is kept.
        overwrite: Write it anew instead.
        write: Is given what would be written, line by line as it comes, where there is no `output`.
        progress: Whether to show one.

    Raises:
        ValueError: Two recordings would be written to one file.
    """
    places = dict.fromkeys(paths) if output is None else _places(paths, output, kind)
    found = Transcripts()
    with progress_bar(None, "heard", unit="s of audio", shown=progress) as bar:
        for path, place in places.items():
            if place is not None and place.is_file() and not overwrite:
                found.kept.append({"file": path, "output": str(place)})
                continue
            try:
                with open_audio(path) as recording, _opened(place, write) as say:
                    lines = _of_recording(recording, model, processor, context, bar.update)
                    facts, texts = _written(lines, kind, say, keep=place is None)
                    facts |= {"seconds": round(recording.num_samples / SAMPLING_RATE, 3)}
            except (OSError, AudioDecodeError) as error:
                reason = error if Path(path).exists() else absent("recording", path)
                found.failed.append({"file": path, "reason": " ".join(str(reason).split())})
                continue
            found.done.append({"file": path, "text": " ".join(texts), **facts} | _place(place))
    return found


def transcribe_raw(
    model: LightHubertForCTC,
    processor: Wav2Vec2Processor,
    source: BinaryIO,
    *,
    kind: Format = "txt",
    rate: int = SAMPLING_RATE,
    encoding: Encoding = "s16le",
    context: Context = LIVE,
    write: Write,
    announce: Write = lambda _: None,
) -> dict[str, Any]:
    """Text and times of raw mono samples, written as they become final; in plain text word by word.

    Where the model expects normalised audio, it is normalised by the statistics so far.

    Args:
        source: Samples without a header, until its end.
        rate: Of the samples, Hz; any, they are resampled.
        announce: Is told the delay at the beginning.

    Raises:
        ValueError: for a rate that there is not, a file with a header, samples that are none.
    """
    low, high = SAMPLING_RATES
    if not low <= rate <= high:
        raise ValueError(f"--rate must be between {low} and {high} samples per second, got {rate}")
    recogniser = _recogniser(model, processor, context, True)
    if context.right is None and not recogniser.encoder.exact:
        context = Context(context.chunk, context.left, LIVE_RIGHT)
        recogniser = _recogniser(model, processor, context, True)
    delay = recogniser.encoder.latency_ms / 1000
    announce(f"words come up to {delay:.2g} s, and the time to compute, after they are said")
    lines = _heard(recogniser, _raw(source, rate, encoding), word_by_word=write if kind == "txt" else None)
    facts, texts = _written(lines, kind, None if kind == "txt" else write, keep=True)
    return {"file": "-", "text": " ".join(texts), "seconds": round(recogniser.now, 3), **facts}


def _places(paths: Sequence[str], output: Path, kind: Format) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        place = output / f"{Path(path).stem}{SUFFIXES[kind]}"
        if other := next((known for known, taken in places.items() if taken == place), None):
            raise ValueError(
                f"{other} and {path} would both be written to {place}; transcribe them into folders of their own"
            )
        places[path] = place
    return places


def _place(place: Path | None) -> dict[str, str]:
    return {} if place is None else {"output": str(place)}


@contextlib.contextmanager
def _opened(place: Path | None, write: Write | None) -> Iterator[Write | None]:
    """Where the lines of one transcript go."""
    if place is None:
        yield write
        return
    with replacing_file(place) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
        yield file.write


def _of_recording(
    recording: Recording,
    model: LightHubertForCTC,
    processor: Wav2Vec2Processor,
    context: Context,
    heard: Callable[[float], Any],
) -> Iterator[Line]:
    if not recording.num_frames:
        raise AudioDecodeError(f"{recording.name} holds no audio")
    normalize: bool | tuple[float, float] = False
    if processor.feature_extractor.do_normalize:
        level = RunningLevel()
        for block in recording.iterate():
            level.update(torch.from_numpy(block))
        normalize = level.mean, level.variance**0.5

    def counted() -> Iterator[np.ndarray]:
        for block in recording.iterate():
            yield block
            heard(round(len(block) / SAMPLING_RATE, 2))

    return _heard(_recogniser(model, processor, context, normalize), counted())


def _recogniser(
    model: LightHubertForCTC, processor: Wav2Vec2Processor, context: Context, normalize: bool | tuple[float, float]
) -> StreamingRecogniser:
    normalize = normalize if processor.feature_extractor.do_normalize else False
    return StreamingRecogniser(model, processor, context.chunk, context.left, context.right, normalize=normalize)


def _heard(
    recogniser: StreamingRecogniser, blocks: Iterable[np.ndarray], word_by_word: Write | None = None
) -> Iterator[Line]:
    """The lines of a recording; `word_by_word` is given every word as soon as it is final."""
    lines, begun = Lines(), False

    def cut(words: list[Word], last: bool = False) -> Iterator[Line]:
        nonlocal begun
        for word in words:
            done = lines.feed([word], word.end)
            if word_by_word is not None:
                word_by_word(("\n" if done else " " if begun else "") + word.text)
            begun = True
            yield from done
        done = lines.finish() if last else lines.feed([], recogniser.now)
        if done and word_by_word is not None:
            word_by_word("\n")
        begun = begun and not done
        yield from done

    for block in blocks:
        yield from cut(recogniser.feed(block))
    yield from cut(recogniser.finish(), last=True)


def _written(lines: Iterable[Line], kind: Format, write: Write | None, keep: bool) -> tuple[dict[str, Any], list[str]]:
    """Write a transcript; what to report of it, and its texts."""
    texts: list[str] = []
    kept: list[dict[str, Any]] = []
    words = 0
    if write is not None and HEADERS[kind]:
        write(HEADERS[kind])
    for number, line in enumerate(lines, 1):
        if write is not None:
            write(formatted(line, number, kind))
        texts.append(line.text)
        words += len(line.words)
        if keep:
            kept.append(line.to_dict())
    return {"words": words, **({"lines": kept} if keep else {})}, texts


def _raw(source: BinaryIO, rate: int, encoding: Encoding) -> Iterator[np.ndarray]:
    """The samples of a stream without a header, at 16 kHz, as they come."""
    resample, dtype = resampler(rate), np.dtype(ENCODINGS[encoding])
    rest, first = b"", True
    with contextlib.suppress(KeyboardInterrupt):  # the end of a recording
        while data := source.read1(1 << 16):  # pyrefly: ignore[missing-attribute]
            if first and (container := _CONTAINERS.get(data[:4])):
                raise ValueError(
                    f"standard input is a {container} file, not raw samples; give the file's name instead of -, or "
                    f"decode it: ffmpeg -i FILE -f {encoding} -ac 1 -ar {rate} -"
                )
            data, first = rest + data, False
            whole = len(data) - len(data) % dtype.itemsize
            samples, rest = np.frombuffer(data[:whole], dtype), data[whole:]
            if encoding == "s16le":
                samples = samples / np.float32(32768)
            yield resample(_checked(samples.astype(np.float32), encoding), last=False)
    yield resample(np.zeros(0, np.float32), last=True)


def _checked(samples: np.ndarray, encoding: Encoding) -> np.ndarray:
    if samples.size and not np.abs(samples).max() <= 100:  # also of NaN
        raise ValueError(
            f"standard input holds samples beyond ±1, or none at all, read as {encoding}; name their --encoding"
        )
    return samples


def standard_input() -> BinaryIO:
    """Raises a ValueError where nobody has piped anything into it."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError(
            "standard input is a terminal; pipe raw samples into it, for example: "
            "arecord -f S16_LE -r 16000 -t raw | lighthubert transcribe MODEL -"
        )
    return sys.stdin.buffer

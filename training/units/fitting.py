"""`lighthubert units fit`: codebooks of one or more layers, learnt from speech that streams by once for all of them.

Until it is finished, a fit keeps where it is beside the file that it writes: `.units.safetensors.6-500.fit`, the
centroids so far and the position of the stream. The same command again goes on there, and gives what it would have
given without the stop.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lighthubert_hf import __version__
from lighthubert_hf.extras import require
from lighthubert_hf.files import data_checksum, replacing_file
from lighthubert_hf.locks import locked
from lighthubert_hf.model.codebook import Codebook
from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.audio.sources import AudioSource
from lighthubert_hf.training.features.encoding import AudioWindows, Window, check_layers, encode
from lighthubert_hf.training.features.opening import EncoderOrName, as_source, open_encoder, shown
from lighthubert_hf.training.runs.stopping import StopRequest
from lighthubert_hf.training.superb.feature_store import data_fingerprint
from lighthubert_hf.training.superb.upstream import Upstream
from lighthubert_hf.units.files import check_not_there, codebooks_file

from .clustering import StreamedKMeans, frames_per_step
from .recording import put_codebooks

logger = logging.getLogger(__name__)

_SAVE_EVERY = 60.0  # seconds
# Inertia is smoothed over about ten steps, and counts as better when it has fallen by a thousandth.
_SMOOTHING, _BETTER = 0.1, 1e-3


@dataclass(frozen=True)
class FitSettings:
    """How codebooks are learnt.

    Args:
        layers: of which hidden states: 0 is the input of the first layer, N the output of the Nth.
        clusters: units of each codebook.
        steps: mini-batches at most, of 10,000 frames (200 s) each, or of ten frames for each cluster. Data that end
            before begin again, in another order.
        patience: stop after so many steps in which no layer's smoothed inertia fell; 0 never does.
        seed: of the order of the data and the first centroids.
        crop_seconds: recordings of twice this length and more are read in pieces.
        max_broken_share: a larger share of files that cannot be read is an error.

    Raises:
        ValueError: for numbers that make no sense.
    """

    layers: tuple[int, ...]
    clusters: int = 500
    steps: int = 200
    patience: int = 20
    seed: int = 0
    crop_seconds: float = 30.0
    max_broken_share: float = 0.05

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 100_000:
            raise ValueError(f"--clusters must be from 2 to 100,000, usually 100 to 2,000; got {self.clusters}")
        if self.steps < 1 or self.patience < 0:
            raise ValueError(f"--steps must be at least 1 and --patience 0, got {self.steps} and {self.patience}")


@dataclass(frozen=True)
class FitResult:
    """Codebooks, where they are, and what they were made of."""

    codebooks: tuple[Codebook, ...]
    output: Path | None
    steps: int
    seconds: float
    stopped: str
    left_out: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output and str(self.output),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "stopped": self.stopped,
            "left_out": self.left_out,
            "codebooks": [one.to_dict() for one in self.codebooks],
        }

    def __str__(self) -> str:
        lines = [
            f"layer {one.layer}: {one.clusters} units of {one.facts['frames']:,} frames, mean squared distance "
            f"{one.facts['inertia']:.4g}" + (f", {one.facts['unused']} never met" if one.facts["unused"] else "")
            for one in self.codebooks
        ]
        lines.append(f"{self.steps} steps over {self.seconds / 3600:.2f} h of speech; {self.stopped}")
        if self.left_out:
            lines.append(f"left out, over all passes through the data: {self.left_out}")
        return "\n".join([*lines, *([str(self.output)] if self.output else [])])


def fit_codebooks(
    model: EncoderOrName,
    data: Any,
    layers: int | Sequence[int],
    clusters: int = 500,
    *,
    output: str | Path | None = None,
    save: bool = True,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    device: str | torch.device | None = None,
    source: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> FitResult:
    """Learn codebooks of one or more layers, all at one pass through the data.

    Args:
        model: folder or Hub id, a live model, or an `Upstream`.
        data: folder, files, Hub id, `datasets.Dataset`, or an `AudioSource`.
        layers: which hidden states.
        clusters: units of each codebook.
        output: file (`.safetensors`) or folder to put the codebooks into; by default the model's folder.
        save: `False` writes nothing, the progress neither.
        revision, subnet: of a model on the Hub, and of a supernet.
        source: options of `AudioSource`, such as `{"split": "train", "audio_column": "wav"}`.
        overwrite: replace codebooks of the same layer and size, and a fit that was interrupted.
        settings: others of `FitSettings`.

    Returns:
        The codebooks; `result.codebooks[0]`, for example.

    Raises:
        FileNotFoundError: there is no such model or data set.
        ValueError: no such layer, fewer frames than clusters, an interrupted fit with other settings there.
    """
    require("train", what="fitting units")
    layers = (layers,) if isinstance(layers, int) else tuple(dict.fromkeys(layers))
    options = FitSettings(layers=layers, clusters=clusters, **settings)
    if save:
        path = codebooks_file(model if isinstance(model, str | Path) else "the live model", output)
        check_not_there(path, [f"layer{layer}-{clusters}" for layer in layers], overwrite)
    speech = as_source(data, **(source or {}))
    upstream = open_encoder(model, revision=revision, subnet=subnet, device=device)
    check_layers(upstream, layers)
    if not save:
        return _Fit(upstream, speech, options, None, progress).run()
    with locked(path):
        kept = path.with_name(f".{path.name}.{'+'.join(map(str, layers))}-{clusters}.fit")
        if overwrite:
            kept.unlink(missing_ok=True)
        result = _Fit(upstream, speech, options, kept, progress).run()
        put_codebooks(path, list(result.codebooks))
        kept.unlink(missing_ok=True)
    return FitResult(result.codebooks, path, result.steps, result.seconds, result.stopped, result.left_out)


@dataclass
class _Progress:
    """Where a fit is, besides its centroids."""

    steps: int = 0
    frames: int = 0
    samples: int = 0
    stream: dict[str, Any] | None = None
    inertia: dict[str, float] = field(default_factory=dict)  # smoothed, of each layer
    best: dict[str, float] = field(default_factory=dict)
    since_better: int = 0


class _Fit:
    """One fit, from where its file says it was."""

    def __init__(
        self, upstream: Upstream, source: AudioSource, settings: FitSettings, kept: Path | None, progress: bool
    ):
        self.upstream, self.source, self.settings, self.kept = upstream, source, settings, kept
        self.show = progress
        self.kmeans = {layer: StreamedKMeans(settings.clusters, settings.seed) for layer in settings.layers}
        window = frames_per_step(settings.clusters) * upstream.stride / SAMPLING_RATE
        self.windows = AudioWindows(
            source,
            window,
            seed=settings.seed,
            crop_seconds=settings.crop_seconds,
            max_broken_share=settings.max_broken_share,
        )
        self.at = _Progress()
        self.key = {
            "model": upstream.fingerprint,
            "data": [source.name, source.split, data_fingerprint(source)],
            **json.loads(json.dumps(vars(settings))),
        }

    def run(self) -> FitResult:
        self._load()
        stopped, saved = f"as many as --steps {self.settings.steps}", time.monotonic()
        bar = progress_bar(
            None, "fitting units", total=self.settings.steps, done=self.at.steps, unit="steps", shown=self.show
        )
        with StopRequest() as stop, bar:
            windows = self.windows.iterate(self.at.stream) if self.at.steps < self.settings.steps else iter(())
            for window in windows:
                self._step(window)
                bar.set_postfix_str(self._said(), refresh=False)
                bar.update()
                if stop:
                    break
                if self.settings.patience and self.at.since_better >= self.settings.patience:
                    stopped = f"inertia has not fallen for {self.settings.patience} steps"
                    break
                if self.at.steps >= self.settings.steps:
                    break
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        if stop:
            self._save()
            where = "the same command goes on there" if self.kept else "nothing was kept of it"
            stop.follow(f"stopped after step {self.at.steps}; {where}")
        seconds = self.at.samples / SAMPLING_RATE
        return FitResult(self._codebooks(), None, self.at.steps, seconds, stopped, self.windows.said())

    def _step(self, window: Window) -> None:
        features = encode(self.upstream, window.waveforms, self.settings.layers)
        frames = np.concatenate(features)
        if not np.isfinite(frames).all():
            raise ValueError(f"features of {self.upstream.name or 'the model'} are not finite; check it and its input")
        if not self.at.steps and len(frames) < self.settings.clusters:
            raise ValueError(
                f"{self.source.name} has {len(frames)} frames of speech ({window.seconds:.1f} s), fewer than the "
                f"{self.settings.clusters} clusters; give more speech, or fewer --clusters"
            )
        at, better = self.at, False
        for place, (layer, kmeans) in enumerate(self.kmeans.items()):
            now, name = kmeans.step(np.ascontiguousarray(frames[:, place])), str(layer)
            at.inertia[name] = now if at.steps < 2 else at.inertia[name] + _SMOOTHING * (now - at.inertia[name])
            if at.inertia[name] < at.best.get(name, np.inf) * (1 - _BETTER):
                at.best[name], better = at.inertia[name], True
        at.since_better = 0 if better or at.steps < 2 else at.since_better + 1
        at.steps, at.frames, at.stream = at.steps + 1, at.frames + len(frames), window.state
        at.samples += round(window.seconds * SAMPLING_RATE)

    def _said(self) -> str:
        inertia = ", ".join(f"layer {layer} {value:.4g}" for layer, value in self.at.inertia.items())
        return f"{self.at.samples / SAMPLING_RATE / 3600:.2f} h, inertia: {inertia}"

    def _codebooks(self) -> tuple[Codebook, ...]:
        facts = {
            "encoder": weights_fingerprint(self.upstream.model),
            "subnet": self.upstream.subnet and self.upstream.subnet.to_dict(),
            "normalised": self.upstream.normalised,
            "source": shown(self.upstream.name),
            "revision": self.upstream.revision,
            "data": shown(self.source.name),
            "made": "k-means",
            "frames": self.at.frames,
            "steps": self.at.steps,
            "seed": self.settings.seed,
            "package_version": __version__,
        }
        facts = {name: value for name, value in facts.items() if value is not None}
        return tuple(
            Codebook(
                torch.from_numpy(kmeans.centroids),
                layer,
                {**facts, "inertia": round(self.at.inertia[str(layer)], 6), "unused": kmeans.unused},
            )
            for layer, kmeans in self.kmeans.items()
        )

    def _save(self) -> None:
        if self.kept is None:
            return
        tensors, plain = {}, {}
        for layer, kmeans in self.kmeans.items():
            arrays, plain[str(layer)] = kmeans.state()
            tensors |= {f"{layer}/{name}": array for name, array in arrays.items()}
        said = {"settings": self.key, "progress": vars(self.at), "kmeans": plain, "counts": self.windows.counts}
        metadata = {"fit": json.dumps(said), "checksum": _checksum(tensors, said)}
        with replacing_file(self.kept) as new:
            save_file(tensors, new, metadata)

    def _load(self) -> None:
        if self.kept is None or not self.kept.is_file():
            return
        try:
            with safe_open(self.kept, framework="np") as file:
                said = json.loads(file.metadata()["fit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                if file.metadata()["checksum"] != _checksum(tensors, said):
                    raise ValueError("it is not what was written")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.kept} is damaged ({error}); start over with --overwrite") from None
        for name, value in json.loads(json.dumps(self.key)).items():
            before = said["settings"].get(name)
            if before != value and name not in ("steps", "patience"):
                other = f"other {name}" if name in ("model", "data") else f"{name} {before!r} instead of {value!r}"
                raise ValueError(
                    f"{self.kept.parent} has an interrupted fit with {other}; finish that, or start over with "
                    "--overwrite (overwrite=True)"
                )
        for layer, kmeans in self.kmeans.items():
            own = {name.partition("/")[2]: array for name, array in tensors.items() if name.startswith(f"{layer}/")}
            kmeans.load_state(own, said["kmeans"][str(layer)])
        self.at = _Progress(**said["progress"])
        self.windows.counts |= said["counts"]
        logger.info("going on after step %d", self.at.steps)


def _checksum(tensors: dict[str, np.ndarray], said: dict[str, Any]) -> str:
    arrays = {name: hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest() for name, array in tensors.items()}
    return data_checksum([arrays, said])

"""`lighthubert units map`: the units of one model, its teacher's for example, said by another.

A subnet's features lie in another basis than its teacher's, or than those of another subnet, so a codebook cannot be
taken over as it is. Mapped, unit k of the model is the mean of the model's features over all frames whose unit the
teacher calls k: the label is transferred, and the centroid estimated anew. The numbers then mean the same in both.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lighthubert_hf import __version__
from lighthubert_hf.extras import require
from lighthubert_hf.model.codebook import Codebook
from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.features.encoding import AudioWindows, check_layers, encode
from lighthubert_hf.training.features.opening import EncoderOrName, as_source, open_encoder, shown
from lighthubert_hf.units.files import check_not_there, codebooks_file

from .agreement import WINDOW_SECONDS, check_same_frames, units_of
from .choosing import codebook_for
from .recording import put_codebooks

logger = logging.getLogger(__name__)

# Centroids of units that were never met, in largest features: further from all speech than any other.
_FAR = 1e3


@dataclass(frozen=True)
class MapResult:
    """A mapped codebook, where it is, and what was left out of the data."""

    codebook: Codebook
    output: Path | None
    left_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        output = self.output and str(self.output)
        return {"output": output, "left_out": self.left_out, "codebook": self.codebook.to_dict()}

    def __str__(self) -> str:
        one = self.codebook
        lines = [
            f"layer {one.layer}: {one.clusters} units of {one.facts['source_of_units'] or 'the teacher'}, from "
            f"{one.facts['frames']:,} frames" + (f"; {one.facts['unused']} never met" if one.facts["unused"] else "")
        ]
        lines += [f"left out: {self.left_out}"] if self.left_out else []
        return "\n".join([*lines, *([str(self.output)] if self.output else [])])


def map_codebook(
    teacher: EncoderOrName,
    model: EncoderOrName,
    data: Any,
    layer: int,
    *,
    codebook: Codebook | str | Path | None = None,
    teacher_layer: int | None = None,
    clusters: int | None = None,
    output: str | Path | None = None,
    save: bool = True,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    device: str | torch.device | None = None,
    source: dict[str, Any] | None = None,
    max_hours: float = 10.0,
    max_broken_share: float = 0.05,
    overwrite: bool = False,
    progress: bool = True,
) -> MapResult:
    """Estimate the centroids of a teacher's units among another model's features.

    Args:
        teacher: whose units they are.
        model: that shall say them. `revision` and `subnet` are its.
        data: speech that both hear; an hour is enough for 500 units.
        layer: of the model.
        codebook: the teacher's, or a file of some; by default those beside the teacher. `teacher_layer` and `clusters`
            choose among several.
        output: file (`.safetensors`) or folder to put the codebook into; by default the model's folder.
        save: `False` writes nothing.
        max_hours: of speech, taken in random order.

    Raises:
        ValueError: models with other frames, no such layer or codebook.
    """
    require("train", what="mapping units")
    if save:
        path = codebooks_file(model if isinstance(model, str | Path) else "the live model", output)
    upstream = open_encoder(model, revision=revision, subnet=subnet, device=device)
    other = open_encoder(teacher, device=device)
    check_layers(upstream, (layer,))
    check_same_frames(upstream, other)
    theirs = codebook_for(other, codebook, layer=teacher_layer, clusters=clusters)
    if save:
        check_not_there(path, [f"layer{layer}-{theirs.clusters}"], overwrite)
    speech = as_source(data, **(source or {}))
    windows = AudioWindows(speech, WINDOW_SECONDS, repeat=False, max_broken_share=max_broken_share)
    sums, counts = _sums(upstream, layer, other, theirs, windows, max_hours * 3600, progress)
    mapped = Codebook(
        torch.from_numpy(_means(sums, counts)),
        layer,
        {
            "made": "mapped from",
            "mapped_from": theirs.fingerprint,
            "source_of_units": shown(other.name),
            "encoder": weights_fingerprint(upstream.model),
            "normalised": upstream.normalised,
            "data": shown(speech.name),
            "frames": int(counts.sum()),
            "unused": int((counts == 0).sum()),
            "package_version": __version__,
            **({"source": shown(upstream.name)} if upstream.name else {}),
            **({"subnet": upstream.subnet.to_dict()} if upstream.subnet else {}),
        },
    )
    if not save:
        return MapResult(mapped, None, windows.said())
    put_codebooks(path, [mapped])
    return MapResult(mapped, path, windows.said())


def _sums(
    upstream, layer: int, other, theirs: Codebook, windows: AudioWindows, most_seconds: float, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """For each of the teacher's units the sum of the model's features, `(units, width)` float64, and its frames."""
    sums, counts = np.zeros((theirs.clusters, upstream.width)), np.zeros(theirs.clusters, np.int64)
    seconds = 0.0
    with progress_bar(None, "mapping units", unit="recordings", shown=progress) as bar:
        for window in windows.iterate():
            units = np.concatenate(units_of(other, theirs, window.waveforms))
            features = np.concatenate(encode(upstream, window.waveforms, (layer,)))[:, 0]
            np.add.at(sums, units, features)
            counts += np.bincount(units, minlength=len(counts))
            seconds += window.seconds
            bar.update(len(window.recordings))
            if seconds >= most_seconds:
                break
    return sums, counts


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means, and for units without a frame a place that no frame is nearest to."""
    met = counts > 0
    if not met.all():
        logger.warning(
            "%d of %d units never occur in this speech, so the model will never say them; give more speech",
            int((~met).sum()),
            len(met),
        )
    means = np.zeros_like(sums)
    means[met] = sums[met] / counts[met, None]
    means[~met] = _FAR * max(float(np.abs(means[met]).max()), 1.0)
    return means.astype(np.float32)

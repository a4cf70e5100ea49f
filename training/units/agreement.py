"""How well the units of a model agree with another's, its teacher's above all, and with phones, on held-out speech."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lighthubert_hf.extras import require
from lighthubert_hf.model.codebook import Codebook
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.training.features.encoding import AudioWindows, encode
from lighthubert_hf.training.features.opening import EncoderOrName, as_source, open_encoder, shown
from lighthubert_hf.training.superb.upstream import Upstream

from .choosing import codebook_for
from .phones import PhoneFrames

WINDOW_SECONDS = 200.0


@dataclass(frozen=True)
class UnitAgreement:
    """How two ways to cut the same frames into units agree. All but the counts lie between 0 and 1, the rate aside.

    Args:
        frames, seconds: compared.
        units, reference_units: which of the codebooks' units were met.
        purity: share of frames whose reference unit is the most frequent one of their unit: how much a unit says about
            the reference.
        reference_purity: the other way round.
        nmi: normalised mutual information, `I / ((H_1 + H_2) / 2)`.
        unit_error_rate: edits per reference unit between the sequences without repeats. Codebooks that were not mapped
            name units by chance; theirs are renamed one to one as agrees best on these frames (`renamed`).
        renamed: whether they were.
        phone_purity, reference_phone_purity: share of frames whose phone is the most frequent one of their unit, of
            this model and of the reference; `None` without alignments.
        phone_nmi, reference_phone_nmi: the mutual information with phones, normalised in the same way.
        phone_frames: frames with a phone.
        data, reference: what was compared, and with which model.
    """

    frames: int
    seconds: float
    units: int
    reference_units: int
    purity: float
    reference_purity: float
    nmi: float
    unit_error_rate: float
    renamed: bool
    phone_purity: float | None = None
    reference_phone_purity: float | None = None
    phone_nmi: float | None = None
    reference_phone_nmi: float | None = None
    phone_frames: int = 0
    data: str | None = None
    reference: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        lines = [
            f"{self.frames:,} frames of {self.data or 'speech'}, compared with {self.reference or 'the reference'}",
            f"purity {self.purity:.3f}, the other way {self.reference_purity:.3f}; NMI {self.nmi:.3f}",
            f"unit edit distance {100 * self.unit_error_rate:.1f} %"
            + (" (units renamed one to one as agrees best)" if self.renamed else ""),
        ]
        if self.phone_purity is not None:
            lines.append(
                f"phone purity {self.phone_purity:.3f} (reference {self.reference_phone_purity:.3f}), phone NMI "
                f"{self.phone_nmi:.3f} (reference {self.reference_phone_nmi:.3f}), {self.phone_frames:,} frames"
            )
        return "\n".join(lines)


def compare_units(
    model: EncoderOrName,
    reference: EncoderOrName,
    data: Any,
    *,
    codebook: Codebook | str | Path | None = None,
    reference_codebook: Codebook | str | Path | None = None,
    layer: int | None = None,
    reference_layer: int | None = None,
    clusters: int | None = None,
    reference_clusters: int | None = None,
    alignments: str | None = None,
    max_hours: float = 10.0,
    source: dict[str, Any] | None = None,
    revision: str | None = None,
    subnet: str | Subnet | None = None,
    device: str | torch.device | None = None,
    max_broken_share: float = 0.05,
    progress: bool = True,
) -> UnitAgreement:
    """Compare the units of a model with those of a reference, its teacher for example, on speech that neither saw.

    Args:
        model, reference: folders or Hub ids, live models, or `Upstream`s. `revision` and `subnet` are the model's.
        data: folder, files, Hub id, `datasets.Dataset`, or an `AudioSource`.
        codebook, reference_codebook: codebooks, or files of some; by default those beside the models.
        layer, clusters, reference_layer, reference_clusters: which ones, if there are several.
        alignments: column with phones, `{start, end, phone}` in seconds each; none: no phones are compared.
        max_hours: of speech; the names of all units are kept in memory.
        source: options of `AudioSource`.

    Raises:
        ValueError: codebooks that do not fit, models with another number of frames per second, no usable speech.
    """
    require("train", what="comparing units")
    upstream = open_encoder(model, revision=revision, subnet=subnet, device=device)
    other = open_encoder(reference, device=device)
    own = codebook_for(upstream, codebook, layer=layer, clusters=clusters)
    theirs = codebook_for(other, reference_codebook, layer=reference_layer, clusters=reference_clusters)
    check_same_frames(upstream, other)
    speech = as_source(data, **(source or {}))
    speech = replace(speech, all_columns=True) if alignments else speech
    windows = AudioWindows(speech, WINDOW_SECONDS, shuffle=False, repeat=False, max_broken_share=max_broken_share)
    first, second, phones, seconds = [], [], [], 0.0
    aligned = PhoneFrames(alignments, other.stride, other.field) if alignments else None
    with progress_bar(None, "comparing units", unit="recordings", shown=progress) as bar:
        for window in windows.iterate():
            first += units_of(upstream, own, window.waveforms)
            second += units_of(other, theirs, window.waveforms)
            seconds += window.seconds
            if aligned is not None:
                for recording, units in zip(window.recordings, first[len(phones) :], strict=True):
                    phones.append(aligned.of(recording, len(units)))
            bar.update(len(window.recordings))
            if seconds >= max_hours * 3600:
                break
    facts = {"seconds": round(seconds, 1), "data": shown(speech.name), "reference": shown(other.name)}
    # A mapped codebook, and a reference that it was mapped from, call the same units the same.
    same_names = theirs.fingerprint in (own.fingerprint, own.facts.get("mapped_from"))
    return agreement(first, second, phones or None, same_names=same_names, **facts)


def units_of(upstream: Upstream, codebook: Codebook, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The units of each waveform, `(frames,)` int32."""

    def convert(states: torch.Tensor) -> np.ndarray:
        return codebook.assign(states[:, 0]).cpu().numpy().astype(np.int32)

    return encode(upstream, waveforms, (codebook.layer,), convert)


def check_same_frames(first: Upstream, second: Upstream) -> None:
    """Raise a ValueError unless both models put out the same number of frames."""
    if (first.stride, first.field) != (second.stride, second.field):
        raise ValueError(
            f"a frame of one model is {first.stride} samples after another and sees {first.field}, of the other "
            f"{second.stride} and {second.field}; compare models with the same frames"
        )


def agreement(
    units: Sequence[np.ndarray],
    other_units: Sequence[np.ndarray],
    phones: Sequence[np.ndarray] | None = None,
    *,
    same_names: bool = False,
    **facts: Any,
) -> UnitAgreement:
    """The measures of two sequences of units for each of some recordings, `(frames,)` each.

    Args:
        units, other_units: the model's and the reference's.
        phones: of every frame, -1 where there is none.
        same_names: whether equal numbers mean the same unit.
        facts: other fields of `UnitAgreement`.
    """
    own, theirs = np.concatenate(units), np.concatenate(other_units)
    table = contingency(own, theirs)
    names = np.arange(max(table.shape)) if same_names else best_names(table)
    renamed = [names[sequence] for sequence in units]
    known = {} if phones is None else _phone_measures(own, theirs, np.concatenate(phones))
    return UnitAgreement(
        frames=len(own),
        units=int((table.sum(1) > 0).sum()),
        reference_units=int((table.sum(0) > 0).sum()),
        purity=purity(table),
        reference_purity=purity(table.T),
        nmi=mutual_information(own, theirs),
        unit_error_rate=unit_error_rate(renamed, other_units),
        renamed=not same_names,
        **{"seconds": 0.0} | facts | known,
    )


def _phone_measures(own: np.ndarray, theirs: np.ndarray, phones: np.ndarray) -> dict[str, Any]:
    said = phones >= 0
    if not said.any():
        raise ValueError("the alignments name no phone of any frame; check their times, which are in seconds")
    own, theirs, phones = own[said], theirs[said], phones[said]
    return {
        "phone_purity": purity(contingency(own, phones)),
        "reference_phone_purity": purity(contingency(theirs, phones)),
        "phone_nmi": mutual_information(own, phones),
        "reference_phone_nmi": mutual_information(theirs, phones),
        "phone_frames": int(said.sum()),
    }


def contingency(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How many frames have each pair of labels: `(labels, labels)`."""
    from sklearn.metrics.cluster import contingency_matrix

    # Labels that are never met have empty rows, so that a row's number is its label.
    found = contingency_matrix(first, second)
    table = np.zeros((first.max() + 1, second.max() + 1), dtype=np.int64)
    table[np.ix_(np.unique(first), np.unique(second))] = found
    return table


def purity(table: np.ndarray) -> float:
    """`Σ_k max_j n_kj / n`."""
    return float(table.max(1).sum() / table.sum())


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised by the arithmetic mean of both entropies."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(first, second))


def best_names(table: np.ndarray) -> np.ndarray:
    """For each unit the one of the reference's that it is called by, one to one, so that most frames agree.

    Units beyond the reference's number get names of their own.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    names = np.arange(table.shape[0]) + table.shape[1]
    names[rows] = columns
    return names


def unit_error_rate(units: Iterable[np.ndarray], reference: Iterable[np.ndarray]) -> float:
    """Edits per unit of the reference, both without repeats, summed over all recordings."""
    from lighthubert_hf.metrics.error_rates import PhoneErrorRate

    written = [[_written(sequence) for sequence in sequences] for sequences in (units, reference)]
    return float(PhoneErrorRate().compute(predictions=written[0], references=written[1])["per"])


def _written(sequence: np.ndarray) -> str:
    kept = np.append(True, sequence[1:] != sequence[:-1])
    return " ".join(map(str, sequence[kept]))

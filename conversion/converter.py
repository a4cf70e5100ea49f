"""`lighthubert convert`: recognise a checkpoint, convert it, verify the result, and only then put it in its place."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lighthubert_hf import SearchSpace, Subnet
from lighthubert_hf.files import WriteError
from lighthubert_hf.hub.output import written_beside
from lighthubert_hf.subnets import named_subnets

from .checkpoints.errors import ConversionError, listed
from .checkpoints.reading import folder_weights, read_torch_file, torch_weights
from .checkpoints.writing import check_free, file_written_beside
from .layout.spaces import read_space
from .layout.supernet import Layout, write_supernet
from .original.forward import Outputs, original_forward
from .original.reading import layout_original
from .original.writing import layout_supernet, write_original
from .provenance import origin_facts
from .sources import resolve
from .transformers_family import layout_family
from .verification import family_outputs, largest_difference, probe_waveform, supernet_outputs


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Args:
        source, output: from where to where.
        kind: what the source is, in words.
        num_parameters: numbers in the weights written.
        dropped: weights left out on purpose, by the source's names.
        notes: what else the reader should know.
        verified: the subnets whose outputs were compared; empty without verification.
        max_difference: the largest absolute difference found, in double precision.
    """

    source: str
    output: str
    kind: str
    num_parameters: int
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verified: tuple[str, ...] = ()
    max_difference: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.source} → {self.output} ({self.num_parameters / 1e6:.2f}M parameters)"]
        if self.dropped:
            lines.append(f"left out on purpose: {listed(self.dropped)}")
        lines += self.notes
        if self.max_difference is None:
            lines.append("not verified")
        else:
            names = ", ".join(self.verified)
            lines.append(
                f"verified on audio ({names}): largest difference {self.max_difference:.2g} in double precision"
            )
        return "\n".join(lines)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    search_space: SearchSpace | Mapping | str | Path | None = None,
    to_original: bool = False,
    importance_sorting: bool = False,
    verify: bool = True,
    revision: str | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert a checkpoint to a supernet folder, or a supernet folder back to a checkpoint of the original.

    Args:
        source: a `.pt` of the original or of fairseq's pre-trained HuBERT; a folder of transformers' HuBERT, wav2vec
            2.0 or WavLM; with `to_original` a supernet folder; or one of these on the Hub, as `owner/name[:file]`.
        output: the folder, or with `to_original` the file, to write. It must not exist yet (an empty folder may),
            unless `overwrite`.
        search_space: the supernet's space or a file that holds it; by default what the checkpoint says.
        to_original: write the original's format.
        importance_sorting: put important heads and FFN units first. The largest subnet's function stays as it is.
        verify: compare the result's outputs with the source's on audio, before it is put in its place.
        revision: branch, tag or commit, for a source on the Hub.
        overwrite: replace another model, or another checkpoint, in `output`; never the source.

    Raises:
        FileNotFoundError, ConversionError: with one line that says why. Nothing is left behind.
    """
    output = Path(output)
    if to_original and (search_space is not None or importance_sorting):
        raise ConversionError(
            "to_original writes a supernet as it is; search_space and importance_sorting do not apply"
        )
    check_free(output, str(source), overwrite)
    space = None if search_space is None else read_space(search_space)
    path = resolve(source, revision, "checkpoint")
    try:
        if to_original:
            return _to_original(path, output, str(source), verify, overwrite)
        return _to_supernet(path, output, str(source), space, importance_sorting, verify, overwrite)
    except WriteError as error:
        raise ConversionError(str(error)) from None


def _to_supernet(
    path: Path,
    output: Path,
    source: str,
    space: SearchSpace | None,
    importance_sorting: bool,
    verify: bool,
    overwrite: bool,
) -> ConversionReport:
    if path.is_dir():
        layout, cfg = layout_family(path, space), None
    else:
        layout, cfg = layout_original(path, space)
    if importance_sorting:
        layout = layout.sorted_by_importance()
    card = origin_facts(source, path)
    with written_beside(output, source=path, by="convert", overwrite=overwrite) as new:
        num_parameters = write_supernet(layout, new, card)
        subnets = _subnets_to_verify(layout, full_only=cfg is None or importance_sorting) if verify else {}
        difference = _verify_supernet(new, layout, path, cfg, subnets) if verify else None
    return ConversionReport(
        source, str(output), layout.kind, num_parameters, layout.dropped, layout.notes, tuple(subnets), difference
    )


def _subnets_to_verify(layout: Layout, full_only: bool) -> dict[str, Subnet]:
    """The full weights where only they have a counterpart in the source, else the extremes and the default.

    Each with the whole front end: no source has another.
    """
    space = replace(SearchSpace.from_dict(layout.config.search_space), conv_dim=None)
    if full_only:
        largest = space.largest() if layout.rearranged else layout.config.architecture
        return {"the largest subnet" if layout.rearranged else "the full model": largest}
    return {name: replace(subnet, conv_dim=None) for name, subnet in named_subnets(layout.config).items()}


def _verify_supernet(
    folder: Path, layout: Layout, path: Path, cfg: Mapping | None, subnets: Mapping[str, Subnet]
) -> float:
    wave = probe_waveform().double()
    if cfg is None:
        reference = [family_outputs(path, wave)]
    else:
        reference = original_forward(_double_precision(layout.weights), cfg, list(subnets.values()), wave)
    found = supernet_outputs(folder, subnets.values(), folder_weights(folder), wave)
    return _compare(found, reference, subnets)


def _compare(found: list[Outputs], reference: list[Outputs], subnets: Mapping[str, Subnet]) -> float:
    return max(largest_difference(ours, theirs, name) for ours, theirs, name in zip(found, reference, subnets))


def _double_precision(weights: Mapping):
    return lambda name: weights[name].double()


def _to_original(folder: Path, output: Path, source: str, verify: bool, overwrite: bool) -> ConversionReport:
    layout = layout_supernet(folder)
    with file_written_beside(output, folder, overwrite) as new:
        cfg, num_parameters = write_original(layout, new)
        subnets = _subnets_to_verify(layout, full_only=False) if verify else {}
        difference = None
        if verify:
            written = _double_precision(torch_weights(new, read_torch_file(new)["model"]))
            wave = probe_waveform().double()
            found = original_forward(written, cfg, list(subnets.values()), wave)
            difference = _compare(found, supernet_outputs(folder, subnets.values(), layout.weights, wave), subnets)
    return ConversionReport(source, str(output), layout.kind, num_parameters, (), (), tuple(subnets), difference)

"""A conversion laid out, and the supernet folder written from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, LightHubertModel
from lighthubert_hf.conversion.checkpoints.errors import ConversionError, first_line, listed
from lighthubert_hf.conversion.checkpoints.reading import MappedWeights
from lighthubert_hf.conversion.checkpoints.writing import write_safetensors
from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.hub.folder import complete_folder
from lighthubert_hf.preprocessing import build_feature_extractor
from lighthubert_hf.progress import progress_bar
from lighthubert_hf.rearrangement import Rearrangement

from .importance import rearrangements

HEAD = "prediction_head.weight"
"""Our name of the weight that predicts the distillation target; a supernet without it has no such head."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Layout:
    """What a supernet is made from.

    Args:
        kind: what the source is, in words.
        config: the supernet's.
        weights: the source's.
        names: the source's name for each of the supernet's weights, by our name (without a head class's prefix).
        dropped: names of the source that are left out on purpose.
        do_normalize, sampling_rate: how the source wants its audio.
        made: weights that the source lacks, by our name.
        trained_subnets: whether its subnets have been trained, so that its units must stay in their order.
        notes: what the caller should know.
    """

    kind: str
    config: LightHubertConfig
    weights: MappedWeights
    names: dict[str, str]
    dropped: tuple[str, ...]
    do_normalize: bool
    sampling_rate: int
    made: dict[str, torch.Tensor] = field(default_factory=dict)
    trained_subnets: bool = False
    notes: tuple[str, ...] = ()
    rearranged: dict[str, Rearrangement] = field(default_factory=dict)

    @property
    def model_class(self) -> type:
        return LightHubertForPreTraining if HEAD in self.names else LightHubertModel

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtypes[next(iter(self.names.values()))]

    def tensor(self, name: str) -> torch.Tensor:
        """The supernet's weight called `name`.

        Raises:
            ConversionError: if the source's has NaN or infinite values.
        """
        if name in self.made:
            return self.made[name].to(self.dtype)
        tensor = self.weights[self.names[name]]
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # both are NaN if any value is
            raise ConversionError(f"{self.weights.where}: {self.names[name]} has NaN or infinite values")
        return self.rearranged[name](tensor) if name in self.rearranged else tensor

    def sorted_by_importance(self) -> "Layout":
        """The same supernet, its heads and FFN units reordered so that narrower subnets get the important ones.

        Raises:
            ConversionError: if its subnets have been trained.
        """
        if self.trained_subnets:
            raise ConversionError(
                f"{self.weights.where}: its subnets were trained with heads and FFN units in their present order, "
                "which importance sorting would undo; it is for models whose subnets are still to be trained"
            )
        return replace(self, rearranged=rearrangements(self.config, self.tensor))


def check_layout(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names (in full) and shapes of the supernet's weights, after checking that the source has exactly these.

    Raises:
        ConversionError: which lists missing and unknown weights, wrong shapes, or mixed or unsupported number formats.
    """
    where = layout.weights.where
    shapes = supernet_shapes(layout)
    expected = {_bare(name): shape for name, shape in shapes.items()}
    have = layout.names.keys() | layout.made.keys()
    if missing := expected.keys() - have:
        raise ConversionError(f"{where} lacks weights: {listed(missing)}")
    if unknown := [layout.names[name] for name in have - expected.keys()]:
        raise ConversionError(f"{where} has weights that a model of its settings has not: {listed(unknown)}")
    wrong = [
        f"{source} is {layout.weights.shapes[source]}, must be {expected[name]}"
        for name, source in layout.names.items()
        if layout.weights.shapes[source] != expected[name]
    ]
    if wrong:
        raise ConversionError(f"{where}: shapes that do not fit its settings: {listed(wrong, 3)}")
    dtypes = {layout.weights.dtypes[source] for source in layout.names.values()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        raise ConversionError(
            f"{where}: weights must be all of one type out of {listed(map(str, _DTYPES))}, not "
            f"{listed(map(str, dtypes))}"
        )
    return shapes


def supernet_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the state dict of the supernet."""
    try:
        with torch.device("meta"):
            model = layout.model_class(layout.config)
    except (ValueError, TypeError, RuntimeError, OverflowError, KeyError) as error:
        raise ConversionError(f"{layout.weights.where}: its settings make no model: {first_line(error)}") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _bare(name: str) -> str:
    return name.removeprefix(f"{LightHubertForPreTraining.base_model_prefix}.")


def write_supernet(layout: Layout, folder: Path, card: CardFacts | None = None) -> int:
    """Write the supernet into the empty `folder`, complete with code, feature extractor and model card.

    Args:
        card: what is known about the weights.

    Returns:
        The number of its parameters.
    """
    shapes = check_layout(layout)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in progress_bar(shapes, "converting", unit="tensors"):
            yield name, layout.tensor(_bare(name))

    write_safetensors(folder / "model.safetensors", shapes, layout.dtype, tensors())
    config = layout.config
    config.architectures = [layout.model_class.__name__]
    config.dtype = str(layout.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    extractor = build_feature_extractor(do_normalize=layout.do_normalize, sampling_rate=layout.sampling_rate)
    extractor.save_pretrained(folder)
    complete_folder(folder, card)
    return sum(torch.Size(shape).numel() for shape in shapes.values())

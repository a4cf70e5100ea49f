"""Subnets, the space they are drawn from, and the rules by which a subnet is cut out of a supernet.

No torch in here: the command line, the search and the model card read these without loading a framework.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# Convolutions of HuBERT's front end.
NUM_CONV_LAYERS = 7


def kept_layers(depth: int, num_hidden_layers: int) -> tuple[int, ...]:
    """Which layers of a supernet of `num_hidden_layers` layers a subnet of `depth` layers runs (0-based, ascending).

    Layers are thought of in groups of four; the last layer of each group goes first, the topmost group before the
    others, then the third of each, and so on. For twelve layers this is the original's depth map: 11 layers drop
    layer 11, 10 layers drop 7 and 11, 9 drop 3, 7 and 11.
    """
    if not 1 <= depth <= num_hidden_layers:
        raise ValueError(
            f"a subnet of {depth} layers cannot be cut from {num_hidden_layers}; allowed: 1 to {num_hidden_layers}"
        )
    drop_order = sorted(range(num_hidden_layers), key=lambda i: (i % 4, i), reverse=True)
    return tuple(sorted(drop_order[num_hidden_layers - depth :]))


def ffn_ranges(hidden_size: int, intermediate_size: int, full_hidden_size: int) -> tuple[tuple[int, int], ...]:
    """The hidden units of a full FFN that a subnet uses, as half-open ranges.

    FFN units of the supernet come in blocks of `full_hidden_size`; a subnet of width E takes the first E of each
    block until it has `intermediate_size` units (512 wide, 1792 units of 768-blocks: 0–512, 768–1280, 1536–2048,
    2304–2560). At full width the blocks touch and one range is returned.
    """
    if hidden_size == full_hidden_size:
        return ((0, intermediate_size),)
    num_blocks = math.ceil(intermediate_size / hidden_size)
    return tuple(
        (
            block * full_hidden_size,
            block * full_hidden_size + min(hidden_size, intermediate_size - block * hidden_size),
        )
        for block in range(num_blocks)
    )


class Chooser(Protocol):
    """What draws subnets: `random.Random`, or numpy's `Generator`."""

    def choice(self, values: Any, /) -> Any: ...


def _integers(name: str, values: Any) -> tuple[int, ...]:
    try:
        out = tuple(int(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a sequence of positive integers, got {values!r}") from None
    if not out or any(v < 1 or v != w or isinstance(w, bool) for v, w in zip(out, values)):
        raise ValueError(f"{name} must be a non-empty sequence of positive integers, got {values!r}")
    return out


def _channel_choices(values: Any) -> tuple[tuple[int, ...], ...]:
    """One ascending tuple of choices for each convolution, from that or from one list for all of HuBERT's."""
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable) or not (layers := list(values)):
        raise ValueError(
            f"conv_dim must be a sequence of numbers of channels, or one such sequence for each layer, got {values!r}"
        )
    listed = [isinstance(layer, Iterable) for layer in layers]
    if not any(listed):
        return (_choices_once("conv_dim", _integers("conv_dim", layers)),) * NUM_CONV_LAYERS
    if not all(listed):
        single = listed.index(False)
        raise ValueError(
            f"conv_dim lists choices for some layers and the single number {layers[single]!r} for layer {single}; "
            f"give [{layers[single]!r}] where there is no choice"
        )
    names = [f"conv_dim of layer {index}" for index in range(len(layers))]
    return tuple(_choices_once(name, _integers(name, layer)) for name, layer in zip(names, layers))


def _choices_once(name: str, values: tuple) -> tuple:
    """In ascending order."""
    if len(set(values)) != len(values):
        raise ValueError(f"{name} lists a choice twice: {values}")
    return tuple(sorted(values))


def _from_mapping(cls: type[T], data: Mapping[str, Any]) -> T:
    required = {f.name for f in fields(cls) if f.default is MISSING}
    names = [f.name if f.name in required else f"{f.name} (optional)" for f in fields(cls)]
    if not isinstance(data, Mapping):
        raise ValueError(f"a {cls.__name__} is a mapping with the keys {names}, got {data!r}")
    if not required <= set(data) <= {f.name for f in fields(cls)}:
        raise ValueError(f"a {cls.__name__} has exactly the keys {names}, got {sorted(data)}")
    return cls(**data)


def _from_any(cls: type[T], value: Any) -> T:
    """A mapping, or an object with the same fields, such as one of another copy of this code."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        required = [f.name for f in fields(cls) if f.default is MISSING]
        if isinstance(value, type) or not all(hasattr(value, name) for name in required):
            raise ValueError(f"expected a {cls.__name__} or a dict of its fields, got {value!r}")
        value = {f.name: getattr(value, f.name) for f in fields(cls) if hasattr(value, f.name)}
    return _from_mapping(cls, value)


@dataclass(frozen=True)
class Subnet:
    """One architecture that can be cut out of a supernet. Hashable; its depth is the length of the per-layer tuples.

    Args:
        hidden_size: width of the residual stream.
        num_attention_heads: heads of each kept layer; the attention is `head_dim` (64) times this wide.
        intermediate_size: FFN units of each kept layer.
        conv_dim: channels of each convolution of the front end. `None`: as many as the weights have.
    """

    hidden_size: int
    num_attention_heads: tuple[int, ...]
    intermediate_size: tuple[int, ...]
    conv_dim: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_size", _integers("hidden_size", (self.hidden_size,))[0])
        per_layer = ["num_attention_heads", "intermediate_size"]
        for name in per_layer if self.conv_dim is None else [*per_layer, "conv_dim"]:
            object.__setattr__(self, name, _integers(name, getattr(self, name)))
        if len(self.num_attention_heads) != len(self.intermediate_size):
            raise ValueError(
                f"a subnet needs as many num_attention_heads as intermediate_size entries (one a layer), "
                f"got {len(self.num_attention_heads)} and {len(self.intermediate_size)}"
            )

    @property
    def num_hidden_layers(self) -> int:
        return len(self.num_attention_heads)

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the same shape."""
        return len(set(self.num_attention_heads)) == 1 and len(set(self.intermediate_size)) == 1

    @property
    def key(self) -> str:
        """A short name that is the same for equal subnets and different for different ones (SHA-256, 16 digits)."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Without `conv_dim` where it is `None`, so that such a subnet is written as it always was."""
        data = {
            "hidden_size": self.hidden_size,
            "num_attention_heads": list(self.num_attention_heads),
            "intermediate_size": list(self.intermediate_size),
        }
        return data if self.conv_dim is None else data | {"conv_dim": list(self.conv_dim)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Subnet":
        return _from_mapping(cls, data)

    @classmethod
    def of(cls, value: Any) -> "Subnet":
        """`value` as a subnet: one already, one of another copy of this code (`trust_remote_code` loads a copy from
        a model's repository), or a mapping.

        Raises:
            ValueError: if it describes no subnet.
        """
        return _from_any(cls, value)

    def __str__(self) -> str:
        def short(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "-".join(map(str, values))

        encoder = (
            f"{self.num_hidden_layers} layers, {self.hidden_size} wide, "
            f"heads {short(self.num_attention_heads)}, FFN {short(self.intermediate_size)}"
        )
        return encoder if self.conv_dim is None else f"{encoder}, front end {short(self.conv_dim)}"


@dataclass(frozen=True)
class SearchSpace:
    """The choices a supernet offers. Width and depth are chosen once, heads and FFN ratio for every layer, channels
    for every convolution of the front end.

    Args:
        hidden_size: widths of the residual stream.
        num_attention_heads: heads a layer may have.
        ffn_ratio: FFN units per unit of width; `intermediate_size = int(ffn_ratio * hidden_size)`.
        num_hidden_layers: depths.
        conv_dim: numbers of channels that each of the seven convolutions of HuBERT's front end may have, `(128, 512)`,
            or such a list for each convolution, `((64, 128), (96, 128), …)`. `None`: there is no choice, the front end
            is whole. Kept as one list for each.

    Raises:
        ValueError: if a choice is empty, not positive, or listed twice.
    """

    hidden_size: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    ffn_ratio: tuple[float, ...]
    num_hidden_layers: tuple[int, ...]
    conv_dim: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
            object.__setattr__(self, name, _integers(name, getattr(self, name)))
        try:
            ratios = tuple(float(r) for r in self.ffn_ratio)
        except (TypeError, ValueError):
            ratios = ()
        if not ratios or not all(math.isfinite(r) and r > 0 for r in ratios):
            raise ValueError(f"ffn_ratio must be a non-empty sequence of positive numbers, got {self.ffn_ratio!r}")
        object.__setattr__(self, "ffn_ratio", ratios)
        for name in ("hidden_size", "num_attention_heads", "ffn_ratio", "num_hidden_layers"):
            object.__setattr__(self, name, _choices_once(name, getattr(self, name)))
        if self.conv_dim is not None:
            object.__setattr__(self, "conv_dim", _channel_choices(self.conv_dim))

    @classmethod
    def small(cls) -> "SearchSpace":
        """The published `small` space: 951,892,141,473 subnets of 11 to 44M parameters."""
        return cls((256, 384, 512), (4, 6, 8), (3.0, 3.5, 4.0), (10, 11, 12))

    @classmethod
    def base(cls) -> "SearchSpace":
        """The published `base` space: 6,530,347,008 subnets of 41 to 94M parameters."""
        return cls((512, 640, 768), (8, 10, 12), (3.5, 4.0), (12,))

    @classmethod
    def small_elastic(cls) -> "SearchSpace":
        """`small` with choices of channels in the front end, from a twelfth of its arithmetic to all of it.

        The front end's second and third convolution hold three quarters of its arithmetic: they, and the first, can
        be a quarter and less as wide. The later ones cost little and stay wide; the last is whole, so that the
        encoder reads as many features as ever.
        """
        channels = (
            (64, 128, 256, 512),
            (96, 128, 256, 512),
            (128, 192, 256, 512),
            (192, 256, 384, 512),
            (256, 384, 512),
            (384, 512),
            (512,),
        )
        return replace(cls.small(), conv_dim=channels)

    @classmethod
    def base_elastic(cls) -> "SearchSpace":
        """`base` with choices of channels in the front end, down to a ninth of its arithmetic; see `small_elastic`."""
        channels = (
            (128, 256, 512),
            (128, 256, 512),
            (192, 256, 512),
            (256, 384, 512),
            (256, 384, 512),
            (384, 512),
            (512,),
        )
        return replace(cls.base(), conv_dim=channels)

    @property
    def has_elastic_front_end(self) -> bool:
        """Whether channels of the front end are chosen. If not, what it makes of audio is the same for all subnets."""
        return self.conv_dim is not None

    def count(self) -> int:
        """Number of subnets."""
        per_layer = len(self.ffn_ratio) * len(self.num_attention_heads)
        encoders = len(self.hidden_size) * sum(per_layer**depth for depth in self.num_hidden_layers)
        return encoders * math.prod(len(choices) for choices in self.conv_dim or ())

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, subnet: object) -> bool:
        try:
            subnet = Subnet.of(subnet)
        except ValueError:
            return False
        sizes = {int(ratio * subnet.hidden_size) for ratio in self.ffn_ratio}
        return (
            subnet.hidden_size in self.hidden_size
            and subnet.num_hidden_layers in self.num_hidden_layers
            and set(subnet.num_attention_heads) <= set(self.num_attention_heads)
            and set(subnet.intermediate_size) <= sizes
            and self._offers_channels(subnet.conv_dim)
        )

    def _offers_channels(self, conv_dim: tuple[int, ...] | None) -> bool:
        if self.conv_dim is None or conv_dim is None:
            return conv_dim is self.conv_dim
        return len(conv_dim) == len(self.conv_dim) and all(
            channels in choices for channels, choices in zip(conv_dim, self.conv_dim)
        )

    def uniform(
        self,
        hidden_size: int,
        num_attention_heads: int,
        ffn_ratio: float,
        num_hidden_layers: int,
        conv_dim: Sequence[int] | None = None,
    ) -> Subnet:
        """A subnet whose layers are all alike. `conv_dim`: by default the most channels there are to choose."""
        size = int(ffn_ratio * hidden_size)
        if conv_dim is None:
            conv_dim = self._channels(max)
        return Subnet(hidden_size, (num_attention_heads,) * num_hidden_layers, (size,) * num_hidden_layers, conv_dim)

    def smallest(self) -> Subnet:
        return self.uniform(*(min(choices) for choices in self._choices()), conv_dim=self._channels(min))

    def largest(self) -> Subnet:
        return self.uniform(*(max(choices) for choices in self._choices()))

    def default(self) -> Subnet:
        """Middle width, heads and channels, largest ratio and depth, as both published default subnets have them."""

        def middle(choices: tuple[int, ...]) -> int:
            return choices[len(choices) // 2]

        encoder = middle(self.hidden_size), middle(self.num_attention_heads)
        sizes = max(self.ffn_ratio), max(self.num_hidden_layers)
        return self.uniform(*encoder, *sizes, self._channels(middle))

    def _channels(self, choose: Callable[[tuple[int, ...]], int]) -> tuple[int, ...] | None:
        return None if self.conv_dim is None else tuple(map(choose, self.conv_dim))

    def sample(self, rng: Chooser) -> Subnet:
        """Draw a subnet: depth, width, FFN ratios, heads, and channels if they are chosen, in this order.

        Args:
            rng: `random.Random` or `numpy.random.Generator`.
        """
        depth = int(rng.choice(self.num_hidden_layers))
        width = int(rng.choice(self.hidden_size))
        sizes = tuple(int(float(rng.choice(self.ffn_ratio)) * width) for _ in range(depth))
        heads = tuple(int(rng.choice(self.num_attention_heads)) for _ in range(depth))
        return Subnet(width, heads, sizes, self._channels(lambda choices: int(rng.choice(choices))))

    def _choices(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
        return self.hidden_size, self.num_attention_heads, self.ffn_ratio, self.num_hidden_layers

    def to_dict(self) -> dict[str, list]:
        """For JSON. Without `conv_dim` where it is `None`, so that such a space is written as it always was."""
        names = ("hidden_size", "num_attention_heads", "ffn_ratio", "num_hidden_layers")
        data = {name: list(getattr(self, name)) for name in names}
        return data if self.conv_dim is None else data | {"conv_dim": list(map(list, self.conv_dim))}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SearchSpace":
        return _from_mapping(cls, data)

    @classmethod
    def of(cls, value: Any) -> "SearchSpace":
        """`value` as a search space; see `Subnet.of`."""
        return _from_any(cls, value)


PUBLISHED_SPACES: dict[str, Callable[[], SearchSpace]] = {
    "small": SearchSpace.small,
    "base": SearchSpace.base,
    "small_elastic": SearchSpace.small_elastic,
    "base_elastic": SearchSpace.base_elastic,
}


def check_cuttable(
    subnet: Subnet,
    *,
    hidden_size: int,
    num_attention_heads: int,
    intermediate_size: int,
    num_hidden_layers: int,
    width_step: int,
    conv_dim: Sequence[int],
    elastic_front_end: bool,
) -> None:
    """Raise a ValueError that names the reason if `subnet` cannot be cut out of weights of the given full sizes.

    Every width is a multiple of `width_step`, which follows from the groups of the positional convolution. Without an
    `elastic_front_end` its channels are all of `conv_dim`.
    """
    if subnet.hidden_size > hidden_size:
        raise ValueError(f"hidden_size {subnet.hidden_size} exceeds the supernet's {hidden_size}")
    if subnet.hidden_size % width_step:
        raise ValueError(
            f"hidden_size {subnet.hidden_size} is not a multiple of {width_step}, which the groups of the positional "
            "convolution need (num_conv_pos_embedding_groups, whole_position_groups)"
        )
    if subnet.num_hidden_layers > num_hidden_layers:
        raise ValueError(f"num_hidden_layers {subnet.num_hidden_layers} exceeds the supernet's {num_hidden_layers}")
    if max(subnet.num_attention_heads) > num_attention_heads:
        raise ValueError(
            f"num_attention_heads {max(subnet.num_attention_heads)} exceeds the supernet's {num_attention_heads}"
        )
    for size in set(subnet.intermediate_size):
        stop = max(stop for _, stop in ffn_ranges(subnet.hidden_size, size, hidden_size))
        if stop > intermediate_size:
            raise ValueError(
                f"intermediate_size {size} at width {subnet.hidden_size} needs FFN units up to {stop}, "
                f"the supernet has {intermediate_size}; choose a ratio of at most {intermediate_size / hidden_size:g}"
            )
    if subnet.conv_dim is not None:
        _check_channels(subnet.conv_dim, tuple(conv_dim), elastic_front_end)


def _check_channels(conv_dim: tuple[int, ...], full: tuple[int, ...], elastic: bool) -> None:
    if len(conv_dim) != len(full):
        raise ValueError(
            f"conv_dim has {len(conv_dim)} entries, the front end {len(full)} convolutions; give one entry for each"
        )
    for index, (channels, available) in enumerate(zip(conv_dim, full)):
        if channels > available:
            raise ValueError(f"conv_dim {channels} of layer {index} exceeds the supernet's {available}")
    if not elastic and conv_dim != full:
        raise ValueError(
            f"conv_dim {list(conv_dim)} differs from the front end's {list(full)}, which has no choice of channels; "
            "load the supernet with a search_space that has conv_dim"
        )

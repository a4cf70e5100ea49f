"""Subnets, the space they are drawn from, and the rules by which a subnet is cut out of a supernet.

No torch in here: the command line, the search and the model card read these without loading a framework.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


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
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a sequence of positive integers, got {values!r}") from None
    if not out or any(v < 1 or v != w for v, w in zip(out, values)):
        raise ValueError(f"{name} must be a non-empty sequence of positive integers, got {values!r}")
    return out


def _from_mapping(cls: type[T], data: Mapping[str, Any]) -> T:
    names = [f.name for f in fields(cls)]
    if not isinstance(data, Mapping):
        raise ValueError(f"a {cls.__name__} is a mapping with the keys {names}, got {data!r}")
    if set(data) != set(names):
        raise ValueError(f"a {cls.__name__} has exactly the keys {names}, got {sorted(data)}")
    return cls(**data)


@dataclass(frozen=True)
class Subnet:
    """One architecture that can be cut out of a supernet. Hashable; its depth is the length of the per-layer tuples.

    Args:
        hidden_size: width of the residual stream.
        num_attention_heads: heads of each kept layer; the attention is `head_dim` (64) times this wide.
        intermediate_size: FFN units of each kept layer.
    """

    hidden_size: int
    num_attention_heads: tuple[int, ...]
    intermediate_size: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_size", _integers("hidden_size", (self.hidden_size,))[0])
        for name in ("num_attention_heads", "intermediate_size"):
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
        return {
            "hidden_size": self.hidden_size,
            "num_attention_heads": list(self.num_attention_heads),
            "intermediate_size": list(self.intermediate_size),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Subnet":
        return _from_mapping(cls, data)

    def __str__(self) -> str:
        def short(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "-".join(map(str, values))

        return (
            f"{self.num_hidden_layers} layers, {self.hidden_size} wide, "
            f"heads {short(self.num_attention_heads)}, FFN {short(self.intermediate_size)}"
        )


@dataclass(frozen=True)
class SearchSpace:
    """The choices a supernet offers. Width and depth are chosen once, heads and FFN ratio for every layer.

    Args:
        hidden_size: widths of the residual stream.
        num_attention_heads: heads a layer may have.
        ffn_ratio: FFN units per unit of width; `intermediate_size = int(ffn_ratio * hidden_size)`.
        num_hidden_layers: depths.

    Raises:
        ValueError: if a choice is empty, not positive, or listed twice.
    """

    hidden_size: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    ffn_ratio: tuple[float, ...]
    num_hidden_layers: tuple[int, ...]

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
        for field in fields(self):
            values = getattr(self, field.name)
            if len(set(values)) != len(values):
                raise ValueError(f"{field.name} lists a choice twice: {values}")
            object.__setattr__(self, field.name, tuple(sorted(values)))

    @classmethod
    def small(cls) -> "SearchSpace":
        """The published `small` space: 951,892,141,473 subnets of 11 to 44M parameters."""
        return cls((256, 384, 512), (4, 6, 8), (3.0, 3.5, 4.0), (10, 11, 12))

    @classmethod
    def base(cls) -> "SearchSpace":
        """The published `base` space: 6,530,347,008 subnets of 41 to 94M parameters."""
        return cls((512, 640, 768), (8, 10, 12), (3.5, 4.0), (12,))

    def count(self) -> int:
        """Number of subnets."""
        per_layer = len(self.ffn_ratio) * len(self.num_attention_heads)
        return len(self.hidden_size) * sum(per_layer**depth for depth in self.num_hidden_layers)

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, subnet: object) -> bool:
        if not isinstance(subnet, Subnet):
            return False
        sizes = {int(ratio * subnet.hidden_size) for ratio in self.ffn_ratio}
        return (
            subnet.hidden_size in self.hidden_size
            and subnet.num_hidden_layers in self.num_hidden_layers
            and set(subnet.num_attention_heads) <= set(self.num_attention_heads)
            and set(subnet.intermediate_size) <= sizes
        )

    def uniform(self, hidden_size: int, num_attention_heads: int, ffn_ratio: float, num_hidden_layers: int) -> Subnet:
        """A subnet whose layers are all alike."""
        size = int(ffn_ratio * hidden_size)
        return Subnet(hidden_size, (num_attention_heads,) * num_hidden_layers, (size,) * num_hidden_layers)

    def smallest(self) -> Subnet:
        return self.uniform(*(min(choices) for choices in self._choices()))

    def largest(self) -> Subnet:
        return self.uniform(*(max(choices) for choices in self._choices()))

    def default(self) -> Subnet:
        """Middle width and heads, largest ratio and depth: the rule behind both published default subnets."""
        width, heads = (v[len(v) // 2] for v in (self.hidden_size, self.num_attention_heads))
        return self.uniform(width, heads, max(self.ffn_ratio), max(self.num_hidden_layers))

    def sample(self, rng: Chooser) -> Subnet:
        """Draw a subnet: depth, width, FFN ratios and heads, in this order.

        Args:
            rng: `random.Random` or `numpy.random.Generator`.
        """
        depth = int(rng.choice(self.num_hidden_layers))
        width = int(rng.choice(self.hidden_size))
        sizes = tuple(int(float(rng.choice(self.ffn_ratio)) * width) for _ in range(depth))
        heads = tuple(int(rng.choice(self.num_attention_heads)) for _ in range(depth))
        return Subnet(width, heads, sizes)

    def _choices(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
        return self.hidden_size, self.num_attention_heads, self.ffn_ratio, self.num_hidden_layers

    def to_dict(self) -> dict[str, list]:
        return {field.name: list(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SearchSpace":
        return _from_mapping(cls, data)


def check_cuttable(
    subnet: Subnet,
    *,
    hidden_size: int,
    num_attention_heads: int,
    intermediate_size: int,
    num_hidden_layers: int,
    groups: int,
) -> None:
    """Raise a ValueError that names the reason if `subnet` cannot be cut out of weights of the given full sizes.

    `groups` is the number of groups of the positional convolution, which must divide every width.
    """
    if subnet.hidden_size > hidden_size:
        raise ValueError(f"hidden_size {subnet.hidden_size} exceeds the supernet's {hidden_size}")
    if subnet.hidden_size % groups:
        raise ValueError(
            f"hidden_size {subnet.hidden_size} is not a multiple of num_conv_pos_embedding_groups ({groups})"
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

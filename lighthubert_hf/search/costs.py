"""What a subnet may cost: names, units and limits as a user writes them, and the functions that price a subnet.

A cost is written `NAME[@[BATCHx]SECONDSs]`, a limit `NUMBER UNIT[@[BATCHx]SECONDSs]`: `latency@10s`, `30M`,
`60ms@10s`, `400MB@4x10s`.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lighthubert_hf.costs.latency import LatencyTable
from lighthubert_hf.costs.profiling import CLIP_SECONDS, MOST_SECONDS, count_parameters, macs_per_second
from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.search_space import SearchSpace, Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE

_COUNT = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "parameters": _COUNT,
    "macs": _COUNT,
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "memory": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
}
"""The costs there are, and for each its units in terms of the one it is computed in (ms, bytes, one)."""

_ALIASES = {"params": "parameters"}
_EXAMPLES = {"parameters": "30M", "macs": "3.5G@10s", "latency": "60ms@10s", "memory": "400MB@10s"}


@dataclass(frozen=True)
class Cost:
    """One thing to keep small.

    Args:
        name: "parameters" (of the extracted model), "macs" (multiply-accumulates per second of audio), "latency" (ms
            of one forward pass on this machine), or "memory" (peak bytes of weights and activations).
        seconds: audio length of the forward pass; of no concern to parameters.
        batch: rows of the forward pass; of concern to latency and memory.
    """

    name: str
    seconds: float = CLIP_SECONDS
    batch: int = 1

    def __post_init__(self):
        if self.name not in UNITS:
            raise ValueError(f"unknown cost {self.name!r}; allowed: {', '.join(UNITS)}")
        if not (math.isfinite(self.seconds) and self.seconds * SAMPLING_RATE >= 1) or self.batch < 1:
            raise ValueError(f"a cost needs a positive length and batch, got {self.batch} x {self.seconds} s")
        if self.batch * self.seconds > MOST_SECONDS:
            raise ValueError(
                f"{self.name} at {self.batch} x {self.seconds:g} s of audio is too much; at most {MOST_SECONDS:,} s "
                "are measured"
            )

    @property
    def is_measured(self) -> bool:
        return self.name in ("latency", "memory")

    @classmethod
    def parse(cls, text: str) -> "Cost":
        """`latency`, `latency@10s`, `latency@4x10s`."""
        name, _, setting = text.strip().partition("@")
        return cls(_ALIASES.get(name, name), **_parse_setting(text, setting))

    def __str__(self) -> str:
        if self.name == "parameters":
            return self.name
        batch = f"{self.batch}x" if self.batch > 1 and self.is_measured else ""
        return f"{self.name}@{batch}{self.seconds:g}s"


@dataclass(frozen=True)
class Limit:
    """A cost and the most it may be (in ms, bytes or one)."""

    cost: Cost
    maximum: float

    @classmethod
    def parse(cls, name: str, text: str) -> "Limit":
        """`Limit.parse("latency", "60ms@10s")`."""
        name = _ALIASES.get(name, name)
        cost = Cost(name)
        value, _, setting = text.strip().partition("@")
        match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)", value.strip())
        if not match or match[2] not in UNITS[name]:
            units = ", ".join(unit for unit in UNITS[name] if unit)
            raise ValueError(
                f"cannot read the {name} limit {text!r}; write it like {_EXAMPLES[name]} (units: {units})"
            )
        cost = Cost(name, **_parse_setting(text, setting))
        if not 0 < float(match[1]) * UNITS[name][match[2]] < math.inf:
            raise ValueError(f"the {name} limit {text!r} must be above 0 and finite; leave it out for no limit")
        return cls(cost, float(match[1]) * UNITS[name][match[2]])

    def __str__(self) -> str:
        return f"{self.cost} <= {format_cost(self.cost.name, self.maximum)}"


def _parse_setting(text: str, setting: str) -> dict[str, float | int]:
    if not setting and "@" not in text:
        return {}
    match = re.fullmatch(r"(?:([0-9]+)x)?([0-9]*\.?[0-9]+)s", setting.strip())
    if not match:
        raise ValueError(f"cannot read the audio length in {text!r}; write @10s, or @4x10s for a batch of 4")
    return {"seconds": float(match[2]), "batch": int(match[1] or 1)}


def format_cost(name: str, value: float) -> str:
    """`value` (in ms, bytes or one) with the unit a person would choose."""
    unusual = ("K", "B", "KiB", "MiB", "GiB")
    units = sorted((factor, unit) for unit, factor in UNITS[name].items() if unit not in unusual)
    fitting = [(factor, unit) for factor, unit in units if value >= factor] or units[:1]
    factor, unit = fitting[-1]
    return f"{value / factor:.4g}{unit}"


def cost_function(
    cost: Cost, config: LightHubertConfig, tables: Mapping[tuple[float, int], LatencyTable]
) -> Callable[[Subnet], float]:
    """What prices a subnet of `config`. `tables` holds the measurements by (seconds, batch)."""
    if cost.name == "parameters":
        return lambda subnet: count_parameters(config, subnet)
    if cost.name == "macs":
        return lambda subnet: macs_per_second(config, subnet, cost.seconds)
    table = tables[cost.seconds, cost.batch]
    return table.latency_ms if cost.name == "latency" else table.peak_memory


class Limits:
    """Tells whether a subnet keeps all limits.

    Raises:
        ValueError: if no subnet of `space` can, naming the smallest possible value.
    """

    def __init__(
        self, limits: Sequence[Limit], functions: Mapping[Cost, Callable[[Subnet], float]], space: SearchSpace
    ):
        self._limits = [(limit, functions[limit.cost]) for limit in limits]
        uniform = list(uniform_subnets(space))
        for limit, function in self._limits:
            # Every cost adds up, or takes the maximum, over parts of which each depends on one layer's choice, so the
            # cheapest subnet is among those whose layers are alike. No cost falls with the front end's channels.
            cheapest = min(uniform, key=function)
            if function(cheapest) > limit.maximum:
                raise ValueError(
                    f"no subnet meets {limit}: the smallest possible value is "
                    f"{format_cost(limit.cost.name, function(cheapest))} ({cheapest})"
                )
        self.feasible_uniform = [subnet for subnet in uniform if self.allow(subnet)]
        if not self.feasible_uniform:
            raise ValueError(
                f"each of the limits {', '.join(map(str, limits))} can be met, but not all at once; loosen one of them"
            )

    def allow(self, subnet: Subnet) -> bool:
        return all(function(subnet) <= limit.maximum for limit, function in self._limits)

    def excess(self, subnet: Subnet) -> dict[str, float]:
        """For every limit by how much (as a share of it) `subnet` exceeds it; negative where it does not."""
        return {str(limit): function(subnet) / limit.maximum - 1 for limit, function in self._limits}


def uniform_subnets(space: SearchSpace):
    """All subnets whose layers are alike, with front ends from the narrowest to the widest: every layer's next choice,
    as far as it has one."""
    choices = (space.hidden_size, space.num_attention_heads, space.ffn_ratio, space.num_hidden_layers)
    front_ends = [None]
    if space.conv_dim is not None:
        levels = range(max(map(len, space.conv_dim)))
        front_ends = [tuple(sizes[min(level, len(sizes) - 1)] for sizes in space.conv_dim) for level in levels]
    return itertools.starmap(space.uniform, itertools.product(*choices, front_ends))

"""Measured costs of a supernet's layers, and what a whole subnet costs by them."""

import itertools
import logging
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from lighthubert_hf.extras import importing
from lighthubert_hf.files import read_checked, with_checksum, write_json
from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.extraction import subnet_config
from lighthubert_hf.model.front_end import FrontEnd
from lighthubert_hf.model.modeling_lighthubert import LightHubertModel
from lighthubert_hf.model.search_space import SearchSpace, Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar

from .measuring import describe_machine, peak_memory, stopwatch, time_modules
from .profiling import count_parameters

logger = logging.getLogger(__name__)

_Key = tuple[int, ...]

# Times that every choice of channels occurs among the front ends that are measured, at least.
_ROUNDS_OF_FRONT_ENDS = 6

MAX_ERROR = 0.1
"""Median error above which a table is measured again, and if it stays so, is not to be relied on."""


@dataclass(frozen=True)
class LatencyTable:
    """What the parts of a supernet's subnets cost on one machine, for one audio length and batch.

    Every part was measured where it stands in a running model, after whatever runs before it has filled the caches,
    and its median over the rounds is kept. A subnet's latency is the sum over its parts; its peak memory is that of
    its weights and the greatest activations any part needs. Front ends whose channels are chosen are too many to
    measure: those measured are fitted by a [`FrontEndFit`], which prices the others.

    Args:
        config: the supernet's config.
        seconds, batch: what was run.
        milliseconds, activations: for "front_end" `{(): value}`, or where its channels are chosen the values of some
            front ends by their channels; for "outside" (feature projection, positional convolution and the rest of
            what is no layer) and "around" (a layer's norms and residuals) by `(width,)`; for "attention" by
            `(width, heads)`; for "feed_forward" by `(width, units)`. Milliseconds and bytes.
        machine: see `measuring.describe_machine`.
        errors: of the subnets that were also measured as a whole, prediction / measurement - 1.
        bytes_per_weight: of the dtype that was run.
    """

    config: LightHubertConfig
    seconds: float
    batch: int
    milliseconds: dict[str, dict[_Key, float]]
    activations: dict[str, dict[_Key, float]]
    machine: dict[str, Any]
    errors: tuple[float, ...] = ()
    bytes_per_weight: int = 4

    @classmethod
    def measure(
        cls,
        model: LightHubertModel | LightHubertConfig,
        seconds: float = 10.0,
        batch: int = 1,
        *,
        rounds: int = 7,
        checks: int = 5,
        attempts: int = 3,
        progress: bool = True,
    ) -> "LatencyTable":
        """Measure the table on the device of `model` (of a config: on the CPU, with random weights).

        Where it errs by more than `MAX_ERROR`, as it does when other programs take the processor meanwhile, it is
        measured again, and the best of these tables is returned.

        Args:
            rounds: how often everything is run, in turn; medians are kept.
            checks: random subnets measured as a whole in the same rounds, to know by how much the table errs.
            attempts: how often to measure at most.
        """
        measurement = _Measurement(model, seconds, batch, checks)
        tables = []
        for attempt in range(max(1, attempts)):
            if attempt:
                logger.warning("latencies err by %.0f%%, so they are measured again", 100 * tables[-1].median_error)
            tables.append(measurement.table(rounds, progress))
            if tables[-1].is_reliable:
                break
        return min(tables, key=lambda table: table.median_error or 0.0)

    def _parts(self, subnet: Subnet) -> Iterator[tuple[str, _Key]]:
        width = subnet.hidden_size
        if not self.config.has_elastic_front_end:
            yield "front_end", ()
        yield "outside", (width,)
        for heads, units in zip(subnet.num_attention_heads, subnet.intermediate_size):
            yield from (("around", (width,)), ("attention", (width, heads)), ("feed_forward", (width, units)))

    def _look_up(self, values: dict[str, dict[_Key, float]], fit: "FrontEndFit | None", subnet: Subnet) -> list[float]:
        try:
            found = [values[part][key] for part, key in self._parts(subnet) if part in values]
        except KeyError:
            raise ValueError(f"{subnet} is not in the search space this latency table was measured for") from None
        return found if fit is None else [*found, fit(self.config.conv_channels(subnet))]

    @cached_property
    def _latency_fit(self) -> "FrontEndFit | None":
        elastic = self.config.has_elastic_front_end
        return FrontEndFit.of_latency(self.config, self.milliseconds["front_end"]) if elastic else None

    @cached_property
    def _memory_fit(self) -> "FrontEndFit | None":
        elastic = self.config.has_elastic_front_end
        return FrontEndFit.of_memory(self.config, self.activations["front_end"]) if elastic else None

    def latency_ms(self, subnet: Subnet) -> float:
        """Milliseconds of one forward pass of the extracted `subnet`, predicted."""
        subnet = Subnet.of(subnet)
        return sum(self._look_up(self.milliseconds, self._latency_fit, subnet))

    def peak_memory(self, subnet: Subnet) -> int:
        """Bytes of the extracted `subnet`'s weights and its activations where they need most, predicted."""
        subnet = Subnet.of(subnet)
        weights = count_parameters(self.config, subnet) * self.bytes_per_weight
        return int(weights + max(self._look_up(self.activations, self._memory_fit, subnet)))

    @property
    def median_error(self) -> float | None:
        """Median of the absolute relative errors over the subnets measured as a whole; `None` without any."""
        return median(map(abs, self.errors)) if self.errors else None

    @property
    def is_reliable(self) -> bool:
        """Whether `median_error` is at most `MAX_ERROR`; also if it is not known."""
        return self.median_error is None or self.median_error <= MAX_ERROR

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as JSON."""

        def listed(values):
            return {part: [[*key, value] for key, value in entries.items()] for part, entries in values.items()}

        data = {
            "machine": self.machine,
            "seconds": self.seconds,
            "batch": self.batch,
            "bytes_per_weight": self.bytes_per_weight,
            "median_error": self.median_error,
            "errors": self.errors,
            "milliseconds": listed(self.milliseconds),
            "activations": listed(self.activations),
            "config": self.config.to_dict(),
        }
        write_json(path, with_checksum(data), indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LatencyTable":
        """Read what `save` wrote."""

        def keyed(values):
            return {part: {tuple(key): value for *key, value in entries} for part, entries in values.items()}

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no latency table at {path}; LatencyTable.measure makes one")
        try:
            data = read_checked(path, "delete it to measure again")
            return cls(
                LightHubertConfig.from_dict(data["config"]),
                data["seconds"],
                data["batch"],
                keyed(data["milliseconds"]),
                keyed(data["activations"]),
                data["machine"],
                tuple(data["errors"]),
                data["bytes_per_weight"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no latency table ({error}); delete it to measure anew") from None


class FrontEndFit:
    """Prices front ends of any channels by some that were measured: a sum of terms, none of them negative, whose
    relative errors on those are least in the square.

    Milliseconds: of every convolution its multiply-accumulates and its outputs, and what is the same for all. Bytes:
    the largest outputs of an even and of an odd layer, of two neighbours, the last layer's, and what is the same.
    """

    def __init__(self, terms: Callable[[Sequence[int]], list[float]], measured: Mapping[_Key, float]):
        import numpy as np

        with importing("search", what="pricing a front end of any channels"):
            from scipy.optimize import nnls

        self._terms = terms
        rows = np.array([terms(channels) for channels in measured])
        values = np.array(list(measured.values()))
        self._scale = np.abs(rows).max(0)
        factors, _ = nnls(rows / self._scale / values[:, None], np.ones(len(rows)))
        self._factors = factors / self._scale

    def __call__(self, channels: Sequence[int]) -> float:
        return float(self._factors @ self._terms(channels))

    @classmethod
    def of_latency(cls, config: LightHubertConfig, measured: Mapping[_Key, float]) -> "FrontEndFit":
        rates = _output_rates(config)

        def terms(channels: Sequence[int]) -> list[float]:
            layers = list(zip(rates, (1, *channels), channels, config.conv_kernel))
            macs = [rate * inputs * outputs * kernel for rate, inputs, outputs, kernel in layers]
            return [1.0, *macs, *(rate * outputs for rate, _, outputs, _ in layers)]

        return cls(terms, measured)

    @classmethod
    def of_memory(cls, config: LightHubertConfig, measured: Mapping[_Key, float]) -> "FrontEndFit":
        rates = _output_rates(config)

        def terms(channels: Sequence[int]) -> list[float]:
            sizes = [rate * outputs for rate, outputs in zip(rates, channels)]
            even, odd = max(sizes[::2]), max(sizes[1::2], default=0.0)
            return [1.0, even, odd, max(map(sum, itertools.pairwise([0.0, *sizes]))), sizes[-1]]

        return cls(terms, measured)


def _output_rates(config: LightHubertConfig) -> list[float]:
    """Outputs of each convolution for one of the last."""
    return [float(math.prod(config.conv_stride[index + 1 :])) for index in range(len(config.conv_stride))]


class _Measurement:
    """The models that are run to fill a table: one of every width, whose layers take turns through all shapes."""

    def __init__(self, model: LightHubertModel | LightHubertConfig, seconds: float, batch: int, checks: int):
        self._supernet = model if isinstance(model, LightHubertModel) else None
        self._config = model if self._supernet is None else model.config
        if self._config.search_space is None:
            raise ValueError("a latency table is of a supernet, this config has no search_space; profile the model")
        space, rng = SearchSpace.from_dict(self._config.search_space), random.Random(0)
        self._models = {subnet: self._build(subnet) for subnet in _covering_subnets(space)}
        self._checks = {subnet: self._build(subnet) for subnet in (space.sample(rng) for _ in range(checks))}
        weight = next(iter(self._models.values())).masked_spec_embed
        samples = torch.randn(batch, round(seconds * SAMPLING_RATE), generator=torch.Generator().manual_seed(0))
        self._device, self._input = weight.device, samples.to(weight)
        self._seconds, self._batch = seconds, batch
        self._front_ends = {channels: self._build_front_end(channels) for channels in _covering_front_ends(space, rng)}

    def _build(self, subnet: Subnet) -> LightHubertModel:
        if self._supernet is None:
            return LightHubertModel(subnet_config(self._config, subnet)).eval()
        return self._supernet.extract_subnet(subnet).eval()

    def _build_front_end(self, channels: tuple[int, ...]) -> FrontEnd:
        subnet = replace(Subnet.from_dict(self._config.default_subnet), conv_dim=channels)
        return FrontEnd(subnet_config(self._config, subnet)).eval().to(self._input)

    @torch.inference_mode()
    def table(self, rounds: int, progress: bool) -> LatencyTable:
        times: dict[str, dict[_Key, list[float]]] = {}
        whole: dict[Subnet, list[float]] = {subnet: [] for subnet in self._checks}
        for index in progress_bar(range(rounds + 1), "measuring latencies", unit="rounds", shown=progress):
            if index == 1:  # the first round warmed up
                times, whole = {}, {subnet: [] for subnet in self._checks}
            for subnet, model in self._models.items():
                modules = _modules(model) | {f"layer {i}": layer for i, layer in enumerate(model.encoder.layers)}
                found = time_modules(lambda model=model: model(self._input), modules.items(), self._device)
                _collect(self._kept(_exclusive_times(subnet, found)), times)
            for channels, front_end in self._front_ends.items():
                time = stopwatch(lambda front_end=front_end: front_end(self._input), self._device)
                _collect([("front_end", channels, time)], times)
            for subnet, model in self._checks.items():
                whole[subnet].append(stopwatch(lambda model=model: model(self._input), self._device))
        table = LatencyTable(
            self._config,
            self._seconds,
            self._batch,
            {part: {key: median(values) for key, values in entries.items()} for part, entries in times.items()},
            self._activations(),
            describe_machine(self._device),
            bytes_per_weight=self._input.dtype.itemsize,
        )
        errors = tuple(table.latency_ms(subnet) / median(values) - 1 for subnet, values in whole.items())
        return replace(table, errors=errors)

    def _activations(self) -> dict[str, dict[_Key, int]]:
        peaks: dict[str, dict[_Key, list[int]]] = {}
        for subnet, model in self._models.items():
            found = peak_memory(lambda model=model: model(self._input), _modules(model).items(), self._device)
            found["outside"] = max(found.pop("feature_projection"), found.pop("pos_conv_embed"))
            _collect(self._kept((*_part(subnet, name), value) for name, value in found.items() if name), peaks)
        for channels, front_end in self._front_ends.items():
            found = peak_memory(lambda front_end=front_end: front_end(self._input), [], self._device)
            _collect([("front_end", channels, found[""])], peaks)
        return {part: {key: max(values) for key, values in entries.items()} for part, entries in peaks.items()}

    def _kept(self, found: Iterable[tuple[str, _Key, float]]) -> Iterator[tuple[str, _Key, float]]:
        """Where front ends are measured by themselves, without those of the models."""
        return (entry for entry in found if not self._front_ends or entry[0] != "front_end")


def _covering_front_ends(space: SearchSpace, rng: random.Random) -> list[tuple[int, ...]]:
    """Front ends in which every choice of channels occurs several times, the narrowest and the widest among them."""
    if space.conv_dim is None:
        return []
    found = {tuple(map(min, space.conv_dim)), tuple(map(max, space.conv_dim))}
    most = max(map(len, space.conv_dim))
    for _ in range(_ROUNDS_OF_FRONT_ENDS):
        columns = [list(itertools.islice(itertools.cycle(choices), most)) for choices in space.conv_dim]
        for column in columns:
            rng.shuffle(column)
        found |= set(zip(*columns))
    return sorted(found)


def _covering_subnets(space: SearchSpace) -> Iterator[Subnet]:
    """For every width subnets as deep as possible in which every number of heads and every FFN ratio occurs."""
    depth = max(space.num_hidden_layers)
    num_layers = depth * math.ceil(max(len(space.num_attention_heads), len(space.ffn_ratio)) / depth)
    for width in space.hidden_size:
        heads = list(itertools.islice(itertools.cycle(space.num_attention_heads), num_layers))
        units = list(itertools.islice(itertools.cycle(int(ratio * width) for ratio in space.ffn_ratio), num_layers))
        for start in range(0, num_layers, depth):
            layers = tuple(heads[start : start + depth]), tuple(units[start : start + depth])
            yield Subnet(width, *layers, space.smallest().conv_dim)


def _modules(model: LightHubertModel) -> dict[str, nn.Module]:
    """The modules measured by themselves; none contains another."""
    modules = {
        "front_end": model.feature_extractor,
        "feature_projection": model.feature_projection,
        "pos_conv_embed": model.encoder.pos_conv_embed,
    }
    for index, layer in enumerate(model.encoder.layers):
        modules |= {f"attention {index}": layer.attention, f"feed_forward {index}": layer.feed_forward}
    return modules


def _part(subnet: Subnet, module: str) -> tuple[str, _Key]:
    """Part and key under which the costs of `module` of `subnet` are kept."""
    part, _, index = module.partition(" ")
    width = subnet.hidden_size
    keys = {
        "attention": lambda: (width, subnet.num_attention_heads[int(index)]),
        "feed_forward": lambda: (width, subnet.intermediate_size[int(index)]),
        "front_end": lambda: (),
    }
    return part, keys.get(part, lambda: (width,))()


def _exclusive_times(subnet: Subnet, times: dict[str, float]) -> Iterator[tuple[str, _Key, float]]:
    """Times of the parts, of which none contains another and which add up to the whole."""
    layers = range(subnet.num_hidden_layers)
    yield *_part(subnet, "front_end"), times["front_end"]
    yield *_part(subnet, "outside"), times[""] - times["front_end"] - sum(times[f"layer {i}"] for i in layers)
    for i in layers:
        inner = [f"attention {i}", f"feed_forward {i}"]
        yield *_part(subnet, "around"), times[f"layer {i}"] - sum(times[name] for name in inner)
        yield from ((*_part(subnet, name), times[name]) for name in inner)


def _collect(found: Iterable[tuple[str, _Key, float]], into: dict[str, dict[_Key, list[float]]]) -> None:
    for part, key, value in found:
        into.setdefault(part, {}).setdefault(key, []).append(value)

"""What a model costs: parameters and multiply-accumulates by its config, time and memory measured on this machine."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from lighthubert_hf.model.configuration_lighthubert import LightHubertConfig
from lighthubert_hf.model.front_end import conv_output_lengths, receptive_field
from lighthubert_hf.model.search_space import Subnet
from lighthubert_hf.preprocessing import SAMPLING_RATE
from lighthubert_hf.progress import progress_bar

from .measuring import MATMUL_FLOP, describe_machine, matmul_contender, peak_memory, stopwatch, time_modules

CLIP_SECONDS = 10.0
"""Length of the clip that multiply-accumulates per second of audio are counted in, unless another is said."""
MOST_SECONDS = 36_000
"""Audio in one measured pass at most: ten hours are 2.3 GB of samples alone."""
_MODULES = {
    "front end": r"feature_extractor",
    "positional convolution": r"encoder\.pos_conv_embed",
    "attention": r"encoder\.layers\.\d+\.attention",
    "FFN": r"encoder\.layers\.\d+\.feed_forward",
}
PARTS = (*_MODULES, "other")


def count_parameters(config: LightHubertConfig, subnet: Subnet | None = None) -> int:
    """Parameters of the `LightHubertModel` that extracting `subnet` gives: `sum(p.numel() for p in parameters())`.

    Args:
        config: of a supernet or of a static model.
        subnet: `None` for the weights of `config` as they are.
    """
    count = _own_norm_parameters(config) if subnet is None else 0
    config, subnet = _checked(config, subnet)
    width, kernel = subnet.hidden_size, config.num_conv_pos_embeddings
    channels = config.conv_channels(subnet)
    features = channels[-1]
    count += _front_end_parameters(config, channels)
    count += (2 * features if config.feat_proj_layer_norm else 0) + features * width + width
    count += width  # mask embedding
    count += width * (width // config.position_groups(width)) * kernel + width + kernel
    count += 2 * width
    for heads, units in zip(subnet.num_attention_heads, subnet.intermediate_size):
        attention = heads * config.head_dim
        count += 4 * width * attention + 3 * attention + width
        count += 2 * width * units + units + width
        count += 2 * 2 * width
    return count


def paper_parameter_count(config: LightHubertConfig, subnet: Subnet | None = None) -> int:
    """Parameters as the LightHuBERT paper counts them.

    Its mask embedding keeps the supernet's width, the magnitude of the positional convolution's weight norm is left
    out, and so is the prediction head.
    """
    config, subnet = _checked(config, subnet)
    magnitude = config.num_conv_pos_embeddings
    return count_parameters(config, subnet) - magnitude - subnet.hidden_size + config.hidden_size


def count_macs(config: LightHubertConfig, subnet: Subnet | None = None, samples: int = SAMPLING_RATE) -> int:
    """Multiply-accumulates of one forward pass over `samples` samples.

    Counted are convolutions, linear layers and the two matrix products of the attention (over all pairs of frames,
    also where a sliding window masks most of them), as `torch.utils.flop_counter` counts them at 2 FLOP each.
    """
    return sum(macs_by_part(config, subnet, samples).values())


def macs_per_second(config: PreTrainedConfig, subnet: Subnet | None = None, seconds: float = CLIP_SECONDS) -> int:
    """Multiply-accumulates per second of audio, in a clip of `seconds`: attention makes longer clips dearer.

    Args:
        config: of a LightHuBERT or of another HuBERT-like encoder.
        subnet: of a supernet; `None` for the weights of `config` as they are.
    """
    return round(count_macs(_nominal_config(config), subnet, round(seconds * SAMPLING_RATE)) / seconds)


def shape(config: PreTrainedConfig, subnet: Subnet | None = None) -> dict[str, Any]:
    """What a drawing shows of a subnet, or of the weights of `config` as they are, for JSON.

    Returns:
        "hidden_size"; "layers", the attention width and the FFN units of each; "convolutions", channels, kernel and
        stride of each.
    """
    config, subnet = _checked(_nominal_config(config), subnet)
    heads, channels = subnet.num_attention_heads, config.conv_channels(subnet)
    return {
        "hidden_size": subnet.hidden_size,
        "layers": [[config.head_dim * count, units] for count, units in zip(heads, subnet.intermediate_size)],
        "convolutions": [list(sizes) for sizes in zip(channels, config.conv_kernel, config.conv_stride)],
    }


def macs_by_part(
    config: LightHubertConfig, subnet: Subnet | None = None, samples: int = SAMPLING_RATE
) -> dict[str, int]:
    """What `count_macs` counts, for each of `PARTS`."""
    config, subnet = _checked(config, subnet)
    width, channels = subnet.hidden_size, config.conv_channels(subnet)
    kernel, groups = config.num_conv_pos_embeddings, config.position_groups(width)
    frames, front_end = _front_end_macs(config, channels, samples)
    attention = sum(
        4 * frames * width * heads * config.head_dim + 2 * frames**2 * heads * config.head_dim
        for heads in subnet.num_attention_heads
    )
    feed_forward = sum(2 * frames * width * units for units in subnet.intermediate_size)
    positions = frames * width * (width // groups) * kernel
    return dict(zip(PARTS, (front_end, positions, attention, feed_forward, frames * channels[-1] * width)))


def _checked(config: LightHubertConfig, subnet: Subnet | None) -> tuple[LightHubertConfig, Subnet]:
    if subnet is None:
        return config, config.architecture
    subnet = Subnet.of(subnet)
    config.check_subnet(subnet)
    return config, subnet


def _front_end_parameters(config: LightHubertConfig, channels: Sequence[int]) -> int:
    count = 0
    for index, (inputs, outputs, kernel) in enumerate(zip((1, *channels), channels, config.conv_kernel)):
        count += inputs * outputs * kernel + (outputs if config.conv_bias else 0)
        if config.feat_extract_norm == "layer" or index == 0:
            count += 2 * outputs
    return count


def _own_norm_parameters(config: LightHubertConfig) -> int:
    """Scale and shift that a supernet has for each width of front end and encoder, beside those of the whole."""
    count = 0
    if config.norm_per_width:
        widths = [width for width in config.search_space["hidden_size"] if width < config.hidden_size]
        count = 2 * sum(widths) * (1 + 2 * config.num_hidden_layers)
    if not config.conv_norm_per_width:
        return count
    layers = list(zip(config.search_space["conv_dim"], config.conv_dim))
    normed = layers if config.feat_extract_norm == "layer" else []
    normed = [*normed, layers[-1]] if config.feat_proj_layer_norm else normed
    return count + 2 * sum(size for choices, full in normed for size in choices if size < full)


def _front_end_macs(config: LightHubertConfig, channels: Sequence[int], samples: int) -> tuple[int, int]:
    """Frames out, and what they cost."""
    macs = 0
    for index, (inputs, outputs, kernel) in enumerate(zip((1, *channels), channels, config.conv_kernel)):
        macs += conv_output_lengths(samples, config, index + 1) * inputs * outputs * kernel
    return conv_output_lengths(samples, config), macs


@dataclass(frozen=True)
class PartProfile:
    """One of `PARTS`: median milliseconds, multiply-accumulates, and the resulting rate."""

    milliseconds: float
    macs: int
    gflops: float


@dataclass(frozen=True)
class ProfileRow:
    """One audio length and batch.

    Args:
        seconds, batch: what was run: `batch` rows of `seconds` each, nothing padded.
        milliseconds: of a forward pass, median.
        real_time_factor: seconds of computing per second of audio; below 1 is faster than real time.
        macs: multiply-accumulates of the pass.
        gflops: at 2 FLOP per multiply-accumulate.
        share_of_matmul: `gflops` over what a plain matrix product reaches in the same run.
        peak_memory: bytes of weights and of the activations alive at once, see `measuring.peak_memory`; on a CPU
            without what is kept between passes: the convolutions' weights twice, once arranged and once to compare.
        parts: where the time goes. Timed in passes of their own, so they add up to `milliseconds` only roughly.
    """

    seconds: float
    batch: int
    milliseconds: float
    real_time_factor: float
    macs: int
    gflops: float
    share_of_matmul: float
    peak_memory: int
    parts: dict[str, PartProfile]


@dataclass(frozen=True)
class Profile:
    """What `profile` measured.

    Args:
        model: its class.
        parameters: of the encoder.
        machine: see `measuring.describe_machine`.
        matmul_gflops: what a plain matrix product reached in the same run.
        rows: one for each audio length and batch.
        subnet: of a supernet, which subnet was extracted and measured.
    """

    model: str
    parameters: int
    machine: dict[str, Any]
    matmul_gflops: float
    rows: tuple[ProfileRow, ...]
    subnet: Subnet | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    def table(self) -> str:
        """For people, as Markdown."""
        name = self.model if self.subnet is None else f"{self.model}, its active subnet ({self.subnet})"
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        lines = [
            f"{name}: {self.parameters:,} parameters",
            f"Machine: {machine}; matmul {self.matmul_gflops:.0f} GFLOP/s",
            "",
            "| audio | ms | real-time factor | GMAC of the pass | of matmul rate | peak MB | "
            + " | ".join(f"{part}, ms (of matmul)" for part in PARTS)
            + " |",
            "|" + "---|" * (6 + len(PARTS)),
        ]
        for row in self.rows:
            cells = [
                f"{row.batch} x {row.seconds:g} s",
                f"{row.milliseconds:.1f}",
                f"{row.real_time_factor:.4f}",
                f"{row.macs / 1e9:.2f}",
                f"{row.share_of_matmul:.0%}",
                f"{row.peak_memory / 1e6:.0f}",
            ]
            for part in row.parts.values():
                cells.append(f"{part.milliseconds:.1f} ({part.gflops / self.matmul_gflops:.0%})")
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def profile(
    model,
    seconds: Sequence[float] = (1.0, 10.0),
    batches: Sequence[int] = (1,),
    *,
    repeats: int = 7,
    progress: bool = True,
) -> Profile:
    """Measure a model on the device it is on, for every combination of audio length and batch.

    Args:
        model: a LightHuBERT, HuBERT or wav2vec 2.0 model of any head, of which the encoder is measured. Of a supernet
            the active subnet is extracted and measured.
        seconds: audio lengths.
        batches: batch sizes.
        repeats: how often model and matrix product are run, in turn; medians are reported.

    Raises:
        ValueError: for less than one frame, row or repeat, or a model without a HuBERT-like encoder.
    """
    if not 1 <= repeats <= 10_000:
        raise ValueError(f"repeats must be from 1 to 10,000, got {repeats}")
    encoder, subnet = model.base_model, None
    if getattr(encoder.config, "search_space", None) is not None:
        subnet = encoder.active_subnet
        encoder = encoder.extract_subnet(subnet)
    weight = next(encoder.parameters())
    rounds = _Rounds(encoder.eval(), matmul_contender(weight.device, weight.dtype), repeats)
    settings = [(length, batch) for length in seconds for batch in batches]
    for setting in settings:
        rounds.check(*setting)
    rows = [rounds.row(*setting) for setting in progress_bar(settings, "profiling", unit="settings", shown=progress)]
    matmul = median(rounds.matmul_gflops)
    return Profile(
        type(model).__name__,
        sum(parameter.numel() for parameter in encoder.parameters()),
        describe_machine(weight.device),
        matmul,
        tuple(rows),
        subnet,
    )


def _nominal_config(config) -> LightHubertConfig:
    """The config that counts the multiply-accumulates of a LightHuBERT or of another HuBERT-like encoder."""
    if isinstance(config, LightHubertConfig):
        return config
    known = LightHubertConfig().to_dict().keys() - {"model_type", "architectures", "per_layer_config"}
    data = {key: value for key, value in config.to_dict().items() if key in known}
    return LightHubertConfig(**data | {"head_dim": config.hidden_size // config.num_attention_heads})


def _part_modules(encoder) -> dict[str, list[tuple[str, nn.Module]]]:
    found = {
        part: [(name, module) for name, module in encoder.named_modules() if re.fullmatch(pattern, name)]
        for part, pattern in _MODULES.items()
    }
    missing = [part for part, modules in found.items() if not modules]
    if missing:
        raise ValueError(f"a {type(encoder).__name__} cannot be profiled: it lacks HuBERT's {', '.join(missing)}")
    return found


class _Rounds:
    """Runs model and matrix product in turn, so that both meet the machine in the same state."""

    def __init__(self, encoder, matmul: Callable[[], Any], repeats: int):
        self._modules = _part_modules(encoder)
        self._config = _nominal_config(encoder.config)
        self._encoder, self._matmul, self._repeats = encoder, matmul, repeats
        self.matmul_gflops: list[float] = []

    def check(self, seconds: float, batch: int) -> None:
        """Refuse what cannot be run, before anything is."""
        if batch < 1:
            raise ValueError(f"the batch must be at least 1, got {batch}")
        if not seconds * batch <= MOST_SECONDS:
            raise ValueError(
                f"a pass of {batch} x {seconds:g} s of audio is too long; at most {MOST_SECONDS:,} s are measured"
            )
        if conv_output_lengths(round(max(seconds, 0) * SAMPLING_RATE), self._config) < 1:
            least = receptive_field(self._config) / SAMPLING_RATE
            raise ValueError(f"audio of {seconds:g} s is not one frame, which needs {least:g} s")

    @torch.inference_mode()
    def row(self, seconds: float, batch: int) -> ProfileRow:
        weight = next(self._encoder.parameters())
        samples = round(seconds * SAMPLING_RATE)
        audio = torch.randn(batch, samples, generator=torch.Generator().manual_seed(0)).to(weight)
        modules = [entry for entries in self._modules.values() for entry in entries]

        def run():
            self._encoder(audio)

        for warm_up in (self._matmul, run):
            warm_up()
        matmul, whole, parts = [], [], []
        for _ in range(self._repeats):
            matmul.append(stopwatch(self._matmul, weight.device))
            whole.append(stopwatch(run, weight.device))
            parts.append(self._by_part(time_modules(run, modules, weight.device)))
        rate = MATMUL_FLOP / median(matmul) / 1e6
        self.matmul_gflops.append(rate)
        macs = {part: batch * count for part, count in macs_by_part(self._config, samples=samples).items()}
        milliseconds, total = median(whole), sum(macs.values())
        weights = sum(parameter.nbytes for parameter in self._encoder.parameters())
        times = {part: median(found[part] for found in parts) for part in PARTS}
        return ProfileRow(
            seconds,
            batch,
            milliseconds,
            milliseconds / 1e3 / (batch * seconds),
            total,
            2 * total / milliseconds / 1e6,
            2 * total / milliseconds / 1e6 / rate,
            weights + peak_memory(run, [], weight.device)[""],
            {part: PartProfile(times[part], macs[part], 2 * macs[part] / times[part] / 1e6) for part in PARTS},
        )

    def _by_part(self, times: dict[str, float]) -> dict[str, float]:
        found = {part: sum(times[name] for name, _ in entries) for part, entries in self._modules.items()}
        return found | {"other": times[""] - sum(found.values())}

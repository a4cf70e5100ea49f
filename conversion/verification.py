"""Compares what a converted model computes with what its source computes.

In double precision, layer by layer, whatever the weights are stored in: there rounding is far below anything a wrong
weight or setting does, on any processor, and layers that amplify it change nothing about that.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lighthubert_hf import LightHubertForPreTraining, LightHubertModel
from lighthubert_hf.loading import load, load_encoder
from lighthubert_hf.preprocessing import SAMPLING_RATE

from .checkpoints.errors import ConversionError
from .original.forward import Outputs

# Largest difference that passes, in units of the largest magnitude (at least 1). Rounding gives 1e-16, some thousand
# times that behind many layers. One weight of a tiny model that is wrong in its last bit of half precision gives 3e-7.
TOLERANCE = 1e-8


def probe_waveform(seconds: float = 0.5, sampling_rate: int = SAMPLING_RATE) -> torch.Tensor:
    """A rising tone with harmonics, a pause and noise, normalised: `(1, samples)`, float32. The same on every call."""
    time = torch.arange(int(seconds * sampling_rate)) / sampling_rate
    phase = 2 * torch.pi * (120 * time + 200 * time**2)
    tone = sum(torch.sin(k * phase) / k for k in range(1, 6)) * (torch.sin(6 * torch.pi * time) > -0.3)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    wave = tone + 0.05 * noise
    return ((wave - wave.mean()) / wave.std())[None]


def _parts(base: nn.Module) -> list[nn.Module]:
    """The modules of an encoder that run one after the other."""
    parts = [base.feature_extractor, base.feature_projection, base.encoder.pos_conv_embed, base.encoder.layer_norm]
    return [*parts, *base.encoder.layers]


def stream_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Make `model` take each part's weights from `weights`, in double precision, when it runs, and drop them then.

    So a supernet can be run that would not fit into memory beside its source. As parts run one after the other, one
    stretch of memory serves all.
    """
    model.to("meta").double()
    names = {part: name for name, part in model.named_modules()}
    parts = [*_parts(model.base_model), getattr(model, "prediction_head", None)]
    parts = [part for part in parts if part is not None]
    sizes = [sum(tensor.numel() for tensor in part.state_dict().values()) for part in parts]
    memory = torch.empty(max(sizes), dtype=torch.float64)

    def read(part, _) -> None:
        state, start = {}, 0
        for name, empty in part.state_dict().items():
            place = memory[start : start + empty.numel()].view(empty.shape)
            state[name] = place.copy_(weights[f"{names[part]}.{name}"])
            start += empty.numel()
        part.load_state_dict(state, strict=True, assign=True)

    def release(part, *_) -> None:
        part.to("meta")

    for part in parts:
        part.register_forward_pre_hook(read)
        part.register_forward_hook(release)
    return model


@torch.inference_mode()
def supernet_outputs(folder: Path, subnets, weights: Mapping[str, torch.Tensor], wave: torch.Tensor) -> list[Outputs]:
    """What the supernet in `folder` computes with each of `subnets`, in double precision as all that follow.

    Raises:
        WeightsError: if it does not load as it was written.
    """
    head = "prediction_head.weight" in weights
    cls = LightHubertForPreTraining if head else LightHubertModel
    model = load(cls, folder, dtype=torch.float32, read_values=False).model  # they have just been written, one by one
    model = stream_weights(model, weights)
    base, found, front_ends = model.base_model, [], {}
    for subnet in subnets:
        model.set_active_subnet(subnet)
        channels = model.config.conv_channels(subnet)
        if channels not in front_ends:
            front_ends[channels] = base.extract_features(wave)
        features = front_ends[channels]
        out = base.encode(features, output_hidden_states=True)
        prediction = model.prediction_head(out.last_hidden_state)[0] if head else None
        states = tuple(state[0] for state in out.hidden_states[1:-1])
        found.append(Outputs(states, out.last_hidden_state[0], prediction))
    return found


def largest_difference(ours: Outputs, theirs: Outputs, what: str) -> float:
    """The largest absolute difference between two models' outputs.

    Raises:
        ConversionError: if it exceeds `TOLERANCE`, is NaN, or the outputs differ in number or shape.
    """
    pairs = [*zip(ours.hidden_states, theirs.hidden_states), (ours.last, theirs.last)]
    if theirs.prediction is not None and ours.prediction is not None:
        pairs.append((ours.prediction, theirs.prediction))
    same = len(ours.hidden_states) == len(theirs.hidden_states) and all(a.shape == b.shape for a, b in pairs)
    if not same or (ours.prediction is None) != (theirs.prediction is None):
        raise ConversionError(f"{what}: the converted model's outputs have other shapes than its source's")
    worst = 0.0
    for a, b in pairs:
        difference, scale = (a - b).abs().max().item(), max(1.0, b.abs().max().item())
        if not difference <= TOLERANCE * scale:  # also for NaN
            raise ConversionError(
                f"{what}: the converted model differs from its source by {difference:.2g} (values up to {scale:.2g}); "
                "nothing was written"
            )
        worst = max(worst, difference)
    return worst


@torch.inference_mode()
def family_outputs(folder: Path, wave: torch.Tensor) -> Outputs:
    """What the transformers model in `folder` computes, loaded by transformers.

    Raises:
        WeightsError: if weights of the encoder are not what they should be (see `lighthubert_hf.loading`).
    """
    model = load_encoder(folder, dtype=torch.float32)
    out = stream_weights(model, model.state_dict())(wave, output_hidden_states=True)
    return Outputs(tuple(state[0] for state in out.hidden_states[1:-1]), out.last_hidden_state[0])

"""How far this package and the original implementation are apart, full size, random weights.

    git clone https://github.com/mechanicalsea/lighthubert CHECKOUT     # commit d53e545
    python benchmarks/original_parity.py CHECKOUT [--output results.json]

For subnets of both published spaces: all hidden states but the first (the original's is taken before the positional
convolution), the prediction head, a padded batch against each utterance alone in the original, masked frames, a
sliding window per layer, the extracted model against the active slice, and the parameter count.

Both compute in single precision, and differ by what each rounds, on the processor that this runs on. Ours in double
precision is the yardstick: the original has to agree with it up to its own rounding, and ours in single precision
has to be about as exact as the original. The program ends with an error where either is not so.

The windows are compared with the original's own mask (`slide_mode` "mask"): its default, strided form mixes heads up
when there is more than one, because it assumes contiguous tensors that are not.
"""

import argparse
import copy
import json
import logging
import random
import sys
import warnings

import torch
from torch.nn import functional as F

from lighthubert_hf import LightHubertConfig, LightHubertForPreTraining, LightHubertModel, SearchSpace, Subnet
from lighthubert_hf.conversion.original.names import from_original

SAMPLES = (16_080, 15_680, 9_999)  # 50, 48 and 30 frames; 48 is a whole multiple of the windows
WINDOWS = (None, 8, 16, 24)
# Relative to the size of what is compared, all in root mean squares. What is further from ours in double precision
# than SAME is no rounding. Ours may be FACTOR times as far off as the original, plus FLOOR: other orders of
# summation.
SAME, FACTOR, FLOOR = 1e-4, 4, 2e-6


def original_model(kind: str):
    from lighthubert import LightHuBERT, LightHuBERTConfig

    config = LightHuBERTConfig()
    config.supernet_type = kind
    model = LightHuBERT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=generator)
            if name.endswith("weight_g"):
                weight.abs_().add_(0.5)
            elif weight.ndim == 1:
                weight.mul_(0.1).add_(name.endswith("weight"))
            else:
                weight.mul_((1.4 if "feature_extractor" in name else 1.0) * weight[0].numel() ** -0.5)
    return model


def our_model(original, space: SearchSpace) -> LightHubertForPreTraining:
    model = LightHubertForPreTraining(LightHubertConfig(search_space=space)).eval()
    state = {from_original(name): weight for name, weight in original.state_dict().items()}
    head = "prediction_head."
    model.load_state_dict({name if name.startswith(head) else f"lighthubert.{name}": w for name, w in state.items()})
    return model


def activate(original, subnet: Subnet, windows=None) -> None:
    depth = subnet.num_hidden_layers
    original.set_sample_config(
        {
            "layer_num": depth,
            "embed_dim": subnet.hidden_size,
            "heads_num": list(subnet.num_attention_heads),
            "atten_dim": [64 * heads for heads in subnet.num_attention_heads],
            "ffn_embed": list(subnet.intermediate_size),
            "slide_wsz": [window or "global" for window in windows or [None] * depth],
        }
    )


def with_windows(static: LightHubertModel, windows) -> LightHubertModel:
    layers = {
        i: {"num_attention_heads": shape.num_attention_heads, "intermediate_size": shape.intermediate_size}
        | {"attention_window": window}
        for i, (shape, window) in enumerate(zip(static.config.layer_shapes, windows, strict=True))
    }
    model = LightHubertModel(type(static.config).from_dict(static.config.to_dict() | {"per_layer_config": layers}))
    model.load_state_dict(static.state_dict())
    return model.eval()


def rms(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


class Comparison:
    """Of one thing that is compared: the largest difference, and both sides' largest relative errors."""

    def __init__(self):
        self.difference = self.ours = self.original = 0.0
        self.holds = True

    def add(self, original: torch.Tensor, found: torch.Tensor, exact: torch.Tensor) -> None:
        ours, theirs, size = rms(found - exact), rms(original - exact), rms(exact)
        self.difference = max(self.difference, (original - found).abs().max().item())
        self.ours, self.original = max(self.ours, ours / size), max(self.original, theirs / size)
        self.holds &= theirs <= SAME * size and ours <= FACTOR * theirs + FLOOR * size


@torch.no_grad()
def compare(original, ours, subnet: Subnet, rng: random.Random) -> dict[str, dict | bool]:
    """Of each thing that is compared its differences; activations are of about unit size."""
    activate(original, subnet)
    ours.set_active_subnet(subnet)
    exact = copy.deepcopy(ours).double()
    static, exact_static = ours.extract_subnet(), exact.extract_subnet()
    waves = [F.layer_norm(torch.randn(n), (n,)) for n in SAMPLES]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(wave) for wave in waves], batch_first=True)
    together = ours(batch, mask).last_hidden_state
    found = {
        name: Comparison() for name in ("hidden states", "prediction", "padded batch", "masked frames", "windows")
    }
    same_bits = True
    for i, wave in enumerate(waves):
        theirs = original(wave[None], mask=False)
        out, precise = (model(wave[None], output_hidden_states=True) for model in (ours, exact))
        for states in zip(theirs["hidden_states"][1:], out.hidden_states[1:], precise.hidden_states[1:], strict=True):
            found["hidden states"].add(*states)
        found["prediction"].add(theirs["layer_heads"][-1][0], out.predictions, precise.predictions)
        padded = together[i : i + 1, : theirs["x"].shape[1]]
        found["padded batch"].add(theirs["x"], padded, precise.last_hidden_state)
        same_bits &= torch.equal(static(wave[None]).predictions, out.predictions)
    frames = torch.rand(1, theirs["x"].shape[1]) < 0.5
    theirs = original(wave[None], mask=True, mask_indices=frames)
    masked = (model(wave[None], mask_time_indices=frames).last_hidden_state for model in (ours, exact))
    found["masked frames"].add(theirs["x"], *masked)
    windows = [rng.choice(WINDOWS) for _ in range(subnet.num_hidden_layers)]
    activate(original, subnet, windows)
    original._switch_slide_attention("mask")
    theirs = original(waves[1][None], mask=False)["x"]
    windowed = (with_windows(model.lighthubert, windows).to(model.dtype) for model in (static, exact_static))
    found["windows"].add(theirs, *(model(waves[1][None]).last_hidden_state for model in windowed))
    count = static.lighthubert.num_parameters() + 768 - subnet.hidden_size - 128
    agree = count == original.calc_sampled_param_num()
    rows = {name: vars(comparison) for name, comparison in found.items()}
    return rows | {"the extracted model's bits are the active slice's": same_bits, "parameter counts agree": agree}


def describe(item: tuple[str, dict | bool]) -> str:
    name, value = item
    if isinstance(value, bool):
        return f"{name}: {'yes' if value else 'NO'}"
    text = "largest difference {difference:.0e}; relative error of ours {ours:.0e}, of the original {original:.0e}"
    return f"{name}: {text.format(**value)}{'' if value['holds'] else ' TOO MUCH'}"


def holds(row: dict) -> bool:
    """Whether everything that is compared agrees; a subnet's name is no comparison."""
    values = [value for name, value in row.items() if name not in ("space", "subnet")]
    return all(value if isinstance(value, bool) else value["holds"] for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="the original implementation")
    parser.add_argument("--random", type=int, default=3, help="random subnets per space")
    parser.add_argument("--output", help="write the rows as JSON to this file")
    options = parser.parse_args()
    sys.path.insert(0, options.checkout)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rows, rng = [], random.Random(0)
    for kind, space in {"small": SearchSpace.small(), "base": SearchSpace.base()}.items():
        original = original_model(kind)
        ours = our_model(original, space)
        subnets = [space.smallest(), space.default(), space.largest()]
        for subnet in [*subnets, *(space.sample(rng) for _ in range(options.random))]:
            compared = compare(original, ours, subnet, rng)
            rows.append({"space": kind, "subnet": subnet.to_dict(), **compared})
            print(f"{kind}, {subnet}:", *map(describe, compared.items()), sep="\n  ", flush=True)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    if not all(map(holds, rows)):
        sys.exit("ours and the original do not agree: see NO and TOO MUCH above")


if __name__ == "__main__":
    main()

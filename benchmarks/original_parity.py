"""Largest differences between this package and the original implementation, full size, random weights.

    git clone https://github.com/mechanicalsea/lighthubert CHECKOUT     # commit d53e545
    python benchmarks/original_parity.py CHECKOUT [--output results.json]

For subnets of both published spaces: all hidden states but the first (the original's is taken before the positional
convolution), the prediction head, a padded batch against each utterance alone in the original, masked frames, a
sliding window per layer, the extracted model against the active slice, and the parameter count.

The windows are compared with the original's own mask (`slide_mode` "mask"): its default, strided form mixes heads up
when there is more than one, because it assumes contiguous tensors that are not.
"""

import argparse
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


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def compare(original, ours, subnet: Subnet, rng: random.Random) -> dict[str, float | bool]:
    """Largest absolute differences; activations are of about unit size."""
    activate(original, subnet)
    ours.set_active_subnet(subnet)
    static = ours.extract_subnet()
    waves = [F.layer_norm(torch.randn(n), (n,)) for n in SAMPLES]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(wave) for wave in waves], batch_first=True)
    together = ours(batch, mask).last_hidden_state
    found = {"hidden states": 0.0, "prediction": 0.0, "padded batch": 0.0, "extracted": 0.0}

    def note(what: str, value: float) -> None:
        found[what] = max(found.get(what, 0.0), value)

    for i, wave in enumerate(waves):
        theirs, out = original(wave[None], mask=False), ours(wave[None], output_hidden_states=True)
        for a, b in zip(theirs["hidden_states"][1:], out.hidden_states[1:], strict=True):
            note("hidden states", difference(a, b))
        note("prediction", difference(theirs["layer_heads"][-1][0], out.predictions))
        note("padded batch", difference(theirs["x"][0], together[i, : theirs["x"].shape[1]]))
        note("extracted", difference(static(wave[None]).predictions, out.predictions))
    frames = torch.rand(1, theirs["x"].shape[1]) < 0.5
    theirs = original(wave[None], mask=True, mask_indices=frames)
    note("masked frames", difference(theirs["x"], ours(wave[None], mask_time_indices=frames).last_hidden_state))
    windows = [rng.choice(WINDOWS) for _ in range(subnet.num_hidden_layers)]
    activate(original, subnet, windows)
    original._switch_slide_attention("mask")
    theirs = original(waves[1][None], mask=False)["x"]
    note("windows", difference(theirs, with_windows(static.lighthubert, windows)(waves[1][None]).last_hidden_state))
    count = static.lighthubert.num_parameters() + 768 - subnet.hidden_size - 128
    return found | {"parameters agree": count == original.calc_sampled_param_num()}


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
            rows.append({"space": kind, "subnet": subnet.to_dict(), **compare(original, ours, subnet, rng)})
            numbers = ", ".join(f"{k} {v:.0e}" for k, v in rows[-1].items() if isinstance(v, float))
            agree = "parameters agree" if rows[-1]["parameters agree"] else "PARAMETERS DIFFER"
            print(f"{kind}, {subnet}:\n  {numbers}, {agree}", flush=True)
    if options.output:
        with open(options.output, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

"""Which subnets a training step trains: a pure function of (seed, step)."""

import random
from dataclasses import replace

from lighthubert_hf.model.search_space import SearchSpace, Subnet

from .recipe import PhaseSection, SamplerSection

KNOBS = ("ffn_ratio", "num_attention_heads", "hidden_size", "num_hidden_layers")


class StepSubnets:
    """Draws the subnets of each step.

    - `largest`: the largest subnet (stage 1).
    - `random`: `num_random` independent draws (stage 2 of LightHuBERT with one).
    - `sandwich`: the largest, the smallest and `num_random` draws, in this order (Yu & Huang 2019,
      https://huggingface.co/papers/1903.05134).

    `phases` open the knobs of the space one after another (progressive shrinking, Cai et al. 2020,
    https://huggingface.co/papers/1908.09791): a knob that is not open stays at its largest choice.

    Nothing is remembered between calls, so every rank and every resumed run draws the same.
    """

    def __init__(self, space: SearchSpace, settings: SamplerSection, seed: int):
        self.space, self.settings, self.seed = space, settings, seed

    def space_at(self, step: int) -> SearchSpace:
        """The part of the space that is open at `step`."""
        phases = [phase for phase in self.settings.phases if phase.from_step <= step]
        return narrowed(self.space, phases[-1]) if phases else self.space

    def subnets(self, step: int) -> tuple[Subnet, ...]:
        """The subnets of `step`, to be trained one after another on the same batches."""
        space = self.space_at(step)
        if self.settings.kind == "largest":
            return (space.largest(),)
        rng = random.Random(f"subnets of seed {self.seed} step {step}")
        drawn = tuple(space.sample(rng) for _ in range(self.settings.num_random))
        if self.settings.kind == "random":
            return drawn
        return (space.largest(), space.smallest(), *drawn)


def narrowed(space: SearchSpace, phase: PhaseSection) -> SearchSpace:
    """`space` with every knob that `phase` leaves closed fixed at its largest choice."""
    closed = {knob: (max(getattr(space, knob)),) for knob in KNOBS if knob not in phase.open}
    if space.conv_dim is not None and "conv_dim" not in phase.open:
        closed["conv_dim"] = tuple((max(choices),) for choices in space.conv_dim)
    return replace(space, **closed)

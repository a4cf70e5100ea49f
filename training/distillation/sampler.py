"""Which subnets a training step trains: a pure function of (seed, step)."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from lighthubert_hf.model.search_space import SearchSpace, Subnet

from .recipe import PhaseSection, SamplerSection, SubspaceSection

Choice = TypeVar("Choice", int, float)

KNOBS = ("ffn_ratio", "num_attention_heads", "hidden_size", "num_hidden_layers")


class StepSubnets:
    """Draws the subnets of each step.

    - `largest`: the largest subnet (stage 1).
    - `random`: `num_random` independent draws (stage 2 of LightHuBERT with one).
    - `sandwich`: the largest, the smallest and `num_random` draws, in this order (Yu & Huang 2019,
      https://huggingface.co/papers/1903.05134).

    `phases` open the knobs of the space one after another (progressive shrinking, Cai et al. 2020,
    https://huggingface.co/papers/1908.09791): a knob that is not open stays at its largest choice.

    `subspaces`: a random subnet comes from one of them, drawn by its weight; the paper's `small` and `base`, say.
    `spread`: its knobs are drawn near one share of the way from smallest to largest, see `near_diagonal`.

    Nothing is remembered between calls, so every rank and every resumed run draws the same.
    """

    def __init__(self, space: SearchSpace, settings: SamplerSection, seed: int):
        self.space, self.settings, self.seed = space, settings, seed
        self.subspaces = [restricted(space, subspace) for subspace in settings.subspaces]

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
        drawn = tuple(self._draw(space, rng) for _ in range(self.settings.num_random))
        if self.settings.kind == "random":
            return drawn
        return (space.largest(), space.smallest(), *drawn)

    def _draw(self, space: SearchSpace, rng: random.Random) -> Subnet:
        if self.subspaces:
            weights = [subspace.weight for subspace in self.settings.subspaces]
            (space,) = rng.choices(self.subspaces, weights)
        if self.settings.spread is None:
            return space.sample(rng)
        return near_diagonal(space, self.settings.spread, rng)


def near_diagonal(space: SearchSpace, spread: float, rng: random.Random) -> Subnet:
    """A random subnet that keeps proportions: wide ones tend to be deep, with many heads and large FFNs.

    Networks scaled in all dimensions together are better for their cost than those scaled in one (Tan & Le 2019,
    https://huggingface.co/papers/1905.11946). One share of the way from smallest to largest, uniform in [0, 1], is
    drawn for the subnet, and for every knob of every layer a place near it, `spread` off (standard deviation),
    reflected at the ends. So every choice of every knob is drawn as often as without.
    """
    share = rng.random()

    def near(choices: Sequence[Choice]) -> Choice:
        place = (share + rng.gauss(0, spread)) % 2
        place = min(place, 2 - place)
        return sorted(choices)[min(int(place * len(choices)), len(choices) - 1)]

    depth, width = near(space.num_hidden_layers), near(space.hidden_size)
    units = tuple(int(near(space.ffn_ratio) * width) for _ in range(depth))
    heads = tuple(near(space.num_attention_heads) for _ in range(depth))
    channels = None if space.conv_dim is None else tuple(near(choices) for choices in space.conv_dim)
    return Subnet(width, heads, units, channels)


def loss_weight(subnet: Subnet, space: SearchSpace, exponent: float) -> float:
    """What a subnet's loss counts: its width to the power of `exponent`, 1 in the mean over the widths of `space`."""
    return subnet.hidden_size**exponent * len(space.hidden_size) / sum(width**exponent for width in space.hidden_size)


def restricted(space: SearchSpace, subspace: SubspaceSection) -> SearchSpace:
    """The part of `space` that `subspace` names.

    Raises:
        ValueError: It names a choice that `space` does not have.
    """
    choices = subspace.model_dump(exclude={"weight"}, exclude_none=True)
    for knob, values in choices.items():
        if missing := set(values) - set(getattr(space, knob)):
            raise ValueError(
                f"sampler.subspaces names {knob} {min(missing)}, the search space offers {list(getattr(space, knob))}"
            )
    return replace(space, **choices)


def narrowed(space: SearchSpace, phase: PhaseSection) -> SearchSpace:
    """`space` with every knob that `phase` leaves closed fixed at its largest choice."""
    closed = {knob: (max(getattr(space, knob)),) for knob in KNOBS if knob not in phase.open}
    if space.conv_dim is not None and "conv_dim" not in phase.open:
        closed["conv_dim"] = tuple((max(choices),) for choices in space.conv_dim)
    return replace(space, **closed)

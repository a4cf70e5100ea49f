"""How candidates are proposed: the genes of a subnet and the sampler that draws them inside an optuna study.

A study holds one trial per distinct subnet. What the sampler draws depends on the seed and on the trials finished so
far, not on its own past: a search that was stopped goes on as if it had not been, and several processes can draw from
one study.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from lighthubert_hf.extras import importing
from lighthubert_hf.model.search_space import SearchSpace, Subnet, kept_layers

from .pareto import dominates

with importing("search", what="the search"):
    from optuna.distributions import CategoricalDistribution
    from optuna.samplers import NSGAIISampler
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState

Genes = dict[str, int | float]

# Draws before a candidate that is new and allowed is looked for in another way.
MAX_DRAWS = 50
# Spaces up to this size are listed in full to find the last subnets that were not drawn yet.
MAX_LISTED = 20_000
CROSSOVER_PROBABILITY = 0.9  # as in Deb et al. 2002


class Genome:
    """The choices that make a subnet, as a flat dictionary: width, depth, heads and FFN ratio of every layer, and
    channels of every convolution of the front end if there is a choice.

    Layers are numbered as in the supernet, so a gene means the same weights at every depth. The genes of a layer that
    is not kept are silent: they make no difference, and are inherited.
    """

    def __init__(self, space: SearchSpace, num_hidden_layers: int):
        self.space = space
        self._num_hidden_layers = num_hidden_layers
        self.choices: dict[str, tuple] = {
            "hidden_size": space.hidden_size,
            "num_hidden_layers": space.num_hidden_layers,
        }
        for index in kept_layers(max(space.num_hidden_layers), num_hidden_layers):
            self.choices[f"num_attention_heads_{index}"] = space.num_attention_heads
            self.choices[f"ffn_ratio_{index}"] = space.ffn_ratio
        self._conv_genes = [f"conv_dim_{index}" for index in range(len(space.conv_dim or ()))]
        self.choices |= dict(zip(self._conv_genes, space.conv_dim or ()))
        self.distributions = {name: CategoricalDistribution(choices) for name, choices in self.choices.items()}

    def decode(self, genes: Genes) -> Subnet:
        width = genes["hidden_size"]
        kept = kept_layers(genes["num_hidden_layers"], self._num_hidden_layers)
        heads = tuple(genes[f"num_attention_heads_{index}"] for index in kept)
        sizes = tuple(int(genes[f"ffn_ratio_{index}"] * width) for index in kept)
        return Subnet(width, heads, sizes, tuple(genes[name] for name in self._conv_genes) or None)

    def encode(self, subnet: Subnet, rng: random.Random) -> Genes:
        """Genes of `subnet`; silent ones are drawn."""
        ratios = {int(ratio * subnet.hidden_size): ratio for ratio in self.space.ffn_ratio}
        genes = {name: rng.choice(choices) for name, choices in self.choices.items()}
        genes |= {"hidden_size": subnet.hidden_size, "num_hidden_layers": subnet.num_hidden_layers}
        kept = kept_layers(subnet.num_hidden_layers, self._num_hidden_layers)
        for index, heads, size in zip(kept, subnet.num_attention_heads, subnet.intermediate_size):
            genes |= {f"num_attention_heads_{index}": heads, f"ffn_ratio_{index}": ratios[size]}
        return genes | dict(zip(self._conv_genes, subnet.conv_dim or ()))

    def mutate(self, genes: Genes, rng: random.Random) -> Genes:
        """Change every gene with probability one over their number, and at least one."""
        open_genes = [name for name, choices in self.choices.items() if len(choices) > 1]
        changed = [name for name in open_genes if rng.random() < 1 / len(open_genes)]
        changed = changed or rng.sample(open_genes, min(1, len(open_genes)))
        return genes | {
            name: rng.choice([choice for choice in self.choices[name] if choice != genes[name]]) for name in changed
        }

    def cross(self, mother: Genes, father: Genes, rng: random.Random) -> Genes:
        """Every gene from either parent, with equal chances."""
        return {name: rng.choice((mother[name], father[name])) for name in self.choices}

    def approach(self, genes: Genes, goal: Genes, rng: random.Random):
        """Yield `genes` with more and more of `goal`'s, in random order, up to `goal` itself."""
        for name in rng.sample(list(self.choices), len(self.choices)):
            genes = genes | {name: goal[name]}
            yield genes

    def subnets(self):
        """All subnets, one by one."""
        space = self.space
        front_ends = [None] if space.conv_dim is None else list(itertools.product(*space.conv_dim))
        for depth, width in itertools.product(space.num_hidden_layers, space.hidden_size):
            sizes = sorted({int(ratio * width) for ratio in space.ffn_ratio})
            layers = list(itertools.product(space.num_attention_heads, sizes))
            for shape, channels in itertools.product(itertools.product(layers, repeat=depth), front_ends):
                yield Subnet(width, *zip(*shape), channels)


class SubnetSampler(NSGAIISampler):
    """Draws subnets that are new to the study and allowed.

    First the `anchors`, then random subnets; with a `population_size`, after that many the children of NSGA-II's
    parents (Deb et al. 2002, as optuna selects them) by binary tournament, crossover and mutation.

    Args:
        genome: the genes.
        allowed: whether a subnet may be drawn; anchors are drawn in any case.
        anchors: subnets to try before all others.
        refuges: allowed subnets, towards which a candidate is moved when drawing anew finds no allowed one.
        seed: with the finished trials it determines what is drawn.
        population_size: `None`: random search.
    """

    def __init__(
        self,
        genome: Genome,
        allowed: Callable[[Subnet], bool],
        anchors: Sequence[Subnet],
        refuges: Sequence[Subnet],
        seed: int,
        population_size: int | None,
    ):
        super().__init__(population_size=population_size or 2)
        self._genome, self._allowed, self._anchors, self._refuges = genome, allowed, anchors, refuges
        self._seed, self._evolves = seed, population_size is not None
        self.exhausted = False

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._genome.distributions

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]) -> Genes:
        parents = []
        if self._evolves:
            parents = self.get_parent_population(study, self.get_trial_generation(study, trial))
        trials = study.get_trials(deepcopy=False)
        finished = [t for t in trials if t.state == TrialState.COMPLETE]
        running = [t for t in trials if t.state == TrialState.RUNNING and t.number != trial.number]
        # Processes that draw at the same time differ in how many drew before them.
        rank = sum(t.number < trial.number for t in running)
        rng = random.Random(f"{self._seed}/{len(finished)}/{rank}")
        done = {t.user_attrs["key"] for t in finished}
        missing = [anchor for anchor in self._anchors if anchor.key not in done]
        if rank < len(missing):
            return self._genome.encode(missing[rank], rng)
        taken = done | {t.user_attrs.get("key") for t in running} | {anchor.key for anchor in self._anchors}
        genes = self._draw(study, parents, taken, rng)
        self.exhausted = genes is None
        return genes or {}

    def _draw(self, study: Study, parents: list[FrozenTrial], taken: set[str], rng: random.Random) -> Genes | None:
        """New genes that are allowed; `None` if none could be found."""

        def usable(genes: Genes) -> bool:
            subnet = self._genome.decode(genes)
            return subnet.key not in taken and self._allowed(subnet)

        refused = []
        for attempt in range(2 * MAX_DRAWS):
            from_parents = parents and attempt < MAX_DRAWS
            genes = self._child(study, parents, rng) if from_parents else self._random(rng)
            if usable(genes):
                return genes
            refused.append(genes)
        for genes in refused:
            refuge = self._genome.encode(rng.choice(self._refuges), rng)
            for nearer in self._genome.approach(genes, refuge, rng):
                if usable(nearer):
                    return nearer
        if self._genome.space.count() <= MAX_LISTED:
            for subnet in self._genome.subnets():
                if subnet.key not in taken and self._allowed(subnet):
                    return self._genome.encode(subnet, rng)
        return None

    def _random(self, rng: random.Random) -> Genes:
        return self._genome.encode(self._genome.space.sample(rng), rng)

    def _child(self, study: Study, parents: list[FrozenTrial], rng: random.Random) -> Genes:
        genes = self._tournament(study, parents, rng).params
        if rng.random() < CROSSOVER_PROBABILITY:
            genes = self._genome.cross(genes, self._tournament(study, parents, rng).params, rng)
        return self._genome.mutate(genes, rng)

    @staticmethod
    def _tournament(study: Study, parents: list[FrozenTrial], rng: random.Random) -> FrozenTrial:
        one, other = rng.choice(parents), rng.choice(parents)
        return other if _beats(other, one, study) else one


def minimised_values(trial: FrozenTrial, study: Study) -> tuple[float, ...]:
    """The trial's values, those to be maximised negated."""
    maximise = (direction == StudyDirection.MAXIMIZE for direction in study.directions)
    return tuple(-value if negate else value for value, negate in zip(trial.values, maximise))


def _beats(one: FrozenTrial, other: FrozenTrial, study: Study) -> bool:
    """Constrained domination: nearer to the limits or, where both keep or miss them alike, dominating."""
    excess, other_excess = (sum(max(0.0, value) for value in t.constraints.values()) for t in (one, other))
    if excess != other_excess:
        return excess < other_excess
    return dominates(minimised_values(one, study), minimised_values(other, study))

"""Genes and the sampler, in memory: every subnet can be written as genes, all that is drawn is new and allowed."""

import functools
import itertools
import random
from dataclasses import replace

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighthubert_hf import LightHubertModel, SearchSpace
from lighthubert_hf.model.search_space import kept_layers
from lighthubert_hf.search.pareto import hypervolume, pareto_front
from lighthubert_hf.search.sampler import Genome, SubnetSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
seeds = st.integers(0, 2**32)
TINY_SPACE = SearchSpace((32, 48, 64), (1, 2, 4), (1.5, 2.0, 3.0), (2, 3, 4))
TINIEST = SearchSpace((32, 48), (1, 2), (1.5, 2.0), (1, 2))
CHANNELS = ((8, 16), (4, 12, 16), (16,))
ELASTIC = replace(TINY_SPACE, conv_dim=CHANNELS)


@given(seeds)
@pytest.mark.parametrize("space", [TINY_SPACE, ELASTIC], ids=["fixed", "elastic"])
def test_genes_and_back(space, seed):
    rng = random.Random(seed)
    genome, subnet = Genome(space, 4), space.sample(rng)
    genes = genome.encode(subnet, rng)
    assert genome.decode(genes) == subnet
    assert set(genes) == set(genome.choices)
    assert all(genes[name] in choices for name, choices in genome.choices.items())


def test_genes_of_layers_beyond_the_depth_are_silent():
    genome, rng = Genome(SearchSpace.small(), 12), random.Random(0)
    subnet = SearchSpace.small().uniform(256, 4, 3.0, 10)
    genes = genome.encode(subnet, rng)
    for index in {7, 11}:
        assert genome.decode(genes | {f"num_attention_heads_{index}": 8, f"ffn_ratio_{index}": 4.0}) == subnet
    # The same gene means the same layer of the supernet at every depth.
    deeper = genome.decode(genes | {"num_hidden_layers": 11, "num_attention_heads_8": 6})
    assert [i for i, heads in zip(kept_layers(11, 12), deeper.num_attention_heads) if heads == 6] == [8]


def test_a_space_shallower_than_the_weights():
    space = SearchSpace((32,), (1, 2), (2.0,), (2, 3))
    genome, rng = Genome(space, 8), random.Random(1)
    for _ in range(20):
        subnet = space.sample(rng)
        assert genome.decode(genome.encode(subnet, rng)) == subnet
    assert len(genome.choices) == 2 + 2 * 3


def test_channels_are_genes():
    fixed, elastic = Genome(TINY_SPACE, 4), Genome(ELASTIC, 4)
    added = {"conv_dim_0": (8, 16), "conv_dim_1": (4, 12, 16), "conv_dim_2": (16,)}
    assert elastic.choices == fixed.choices | added
    genes = elastic.encode(ELASTIC.largest(), random.Random(0))
    assert elastic.decode(genes | {"conv_dim_1": 4}).conv_dim == (16, 4, 16)


@given(seeds)
@pytest.mark.parametrize("space", [TINY_SPACE, ELASTIC], ids=["fixed", "elastic"])
def test_children_are_subnets_of_the_space(space, seed):
    rng = random.Random(seed)
    genome = Genome(space, 4)
    mother, father = (genome.encode(space.sample(rng), rng) for _ in range(2))
    child = genome.cross(mother, father, rng)
    assert all(child[name] in (mother[name], father[name]) for name in genome.choices)
    mutant = genome.mutate(child, rng)
    assert mutant != child
    assert genome.decode(mutant) in space
    path = list(genome.approach(mutant, mother, rng))
    assert path[-1] == mother
    assert all(genome.decode(step) in space for step in path)


@pytest.mark.parametrize("space", [TINIEST, replace(TINIEST, conv_dim=CHANNELS)], ids=["fixed", "elastic"])
def test_all_subnets_are_listed_once(space):
    found = list(Genome(space, 2).subnets())
    assert len(found) == len(set(found)) == space.count()
    assert all(subnet in space for subnet in found)


def draw(space, trials, population_size, score, cost, allowed=lambda subnet: True, seed=0, num_layers=4):
    """The subnets drawn, with score and cost."""
    genome = Genome(space, num_layers)
    anchors = [space.smallest(), space.default(), space.largest()]
    refuges = [subnet for subnet in [space.smallest()] if allowed(subnet)]
    sampler = SubnetSampler(genome, allowed, anchors, refuges, seed, population_size)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    drawn = []
    while len(drawn) < trials:
        trial = study.ask(genome.distributions)
        if sampler.exhausted:
            break
        subnet = genome.decode(trial.params)
        drawn.append((subnet, score(subnet), cost(subnet)))
        trial.set_user_attr("key", subnet.key)
        study.tell(trial, drawn[-1][1:])
    return drawn


def size(subnet):
    return subnet.hidden_size * sum(
        64 * heads + units for heads, units in zip(subnet.num_attention_heads, subnet.intermediate_size)
    )


def landscape(space, num_layers, seed):
    """A loss like those of supernets: every choice helps, with diminishing returns, some layers matter far more."""
    rng = random.Random(seed)
    heads_matter, units_matter = ([rng.lognormvariate(0, 1) for _ in range(num_layers)] for _ in range(2))
    most_heads, most_units = max(space.num_attention_heads), max(space.ffn_ratio)

    def loss(subnet):
        kept = kept_layers(subnet.num_hidden_layers, num_layers)
        shapes = dict(zip(kept, zip(subnet.num_attention_heads, subnet.intermediate_size)))
        total = 0.25 * (1 - subnet.hidden_size / max(space.hidden_size)) ** 1.3
        for index in range(num_layers):
            heads, units = shapes.get(index, (0, 0))
            without = (1 - heads / most_heads) ** 1.2, (1 - units / subnet.hidden_size / most_units) ** 1.2
            total += 0.2 * heads_matter[index] / sum(heads_matter) * without[0]
            total += 0.2 * units_matter[index] / sum(units_matter) * without[1]
        return total

    return loss


@pytest.mark.parametrize("population_size", [None, 6])
def test_anchors_first_then_nothing_twice(population_size):
    drawn = [subnet for subnet, *_ in draw(TINY_SPACE, 60, population_size, landscape(TINY_SPACE, 4, 0), size)]
    assert drawn[:3] == [TINY_SPACE.smallest(), TINY_SPACE.default(), TINY_SPACE.largest()]
    assert len(set(drawn)) == 60


@pytest.mark.parametrize("population_size", [None, 6])
def test_small_spaces_are_exhausted(population_size):
    drawn = draw(TINIEST, 10_000, population_size, landscape(TINIEST, 2, 0), size, num_layers=2)
    assert {subnet for subnet, *_ in drawn} == set(Genome(TINIEST, 2).subnets())
    assert len(drawn) == TINIEST.count()


@pytest.mark.parametrize("population_size", [None, 6])
def test_rare_allowed_subnets_are_found(population_size):
    space = SearchSpace.small()
    score, limit = landscape(space, 12, 0), 1.05 * size(space.smallest())
    assert not any(size(space.sample(random.Random(i))) <= limit for i in range(1000))
    drawn = draw(space, 15, population_size, score, size, allowed=lambda s: size(s) <= limit, num_layers=12)
    assert len(drawn) == 15
    assert all(cost <= limit for subnet, _, cost in drawn[3:])


def test_the_seed_determines_what_is_drawn():
    first, same, other = (
        [subnet for subnet, *_ in draw(TINY_SPACE, 25, 6, landscape(TINY_SPACE, 4, 0), size, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


def test_first_generation_is_that_of_random_search():
    score = landscape(TINY_SPACE, 4, 0)
    evolved, drawn = (draw(TINY_SPACE, 10, population, score, size) for population in (10, None))
    assert evolved == drawn


def volumes(runs):
    """Hypervolumes of several runs' (score, cost), in the box that holds them all."""
    points = [[point for _, *point in run] for run in runs]
    best, worst = ([choose(column) for column in zip(*itertools.chain(*points))] for choose in (min, max))
    scaled = [[[(x - b) / (w - b) for x, b, w in zip(p, best, worst)] for p in run] for run in points]
    return [hypervolume([run[i] for i in pareto_front(run)], (1, 1)) for run in scaled]


def test_evolution_beats_random_search_on_a_supernet(make_model):
    """A tiny model's distance from its own largest subnet, channels it lacks being zero; the mean over seeds, as a
    single search may be lucky."""
    model = make_model(LightHubertModel)
    with torch.inference_mode():
        features = model.extract_features(torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)))

    @functools.cache
    @torch.inference_mode()
    def states(subnet):
        with model.subnet_activated(subnet):
            found = model.encode(features).last_hidden_state
        return torch.nn.functional.pad(found, (0, 64 - subnet.hidden_size))

    def loss(subnet):
        return (states(subnet) - states(TINY_SPACE.largest())).abs().mean().item()

    gains = []
    for seed in range(4):
        evolved, drawn = volumes([draw(TINY_SPACE, 80, size_, loss, size, seed=seed) for size_ in (10, None)])
        gains.append(evolved - drawn)
    assert sum(gains) > 0


def test_evolution_beats_random_search():
    """Same budget, the published `small` space, on every one of three landscapes."""
    space = SearchSpace.small()
    for seed in range(3):
        score = landscape(space, 12, seed)
        evolved, drawn = volumes(
            [draw(space, 100, population, score, size, seed=seed, num_layers=12) for population in (10, None)]
        )
        assert evolved > drawn + 0.02

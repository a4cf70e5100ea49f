"""Tiny teachers, a tiny corpus and a tiny recipe for the tests of distillation."""

from pathlib import Path

import pytest
import torch
from transformers import HubertConfig, HubertModel

from lighthubert_hf.training.distillation.recipe import DistillationRecipe
from lighthubert_hf.training.recipes.loading import parse_recipe
from lighthubert_hf.training.synthetic.speech import synthesise_corpus

from ...conftest import NUM_THREADS
from .tiny import TINY, TINY_SPACE


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Under a minute of synthetic speech in parquet shards, with a validation split."""
    folder = tmp_path_factory.mktemp("corpora") / "corpus"
    synthesise_corpus(folder, minutes=0.7, held_out_minutes=0.15, num_shards=4)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A randomly initialised HuBERT of the layer-norm kind, as a folder."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    torch.manual_seed(0)
    HubertModel(HubertConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_recipe(tiny_corpus, tiny_teacher):
    """Makes recipes that take seconds; sections given as keywords are merged into the defaults."""

    def make(output_dir: Path, **sections) -> DistillationRecipe:
        data = {
            "name": "tiny",
            "output_dir": str(output_dir),
            "teacher": {"path": str(tiny_teacher)},
            "student": {"init": "teacher", "search_space": TINY_SPACE},
            "objective": {"name": "lighthubert", "num_target_layers": 2},
            "data": {
                "sources": [{"path": str(tiny_corpus)}],
                "batch_seconds": 4,
                "crop_seconds": 2,
                "num_workers": 0,
                "window_size": 8,
                "shuffle_window": 20,
            },
            "training": {"steps": 6},
            "checkpoint": {"every": 2},
            "logging": {"every": 1},
        }
        for name, section in sections.items():
            old = data.get(name)
            replaced = not isinstance(section, dict) or not isinstance(old, dict) or name == "objective"
            data[name] = section if replaced else old | section
        return parse_recipe(DistillationRecipe, data)

    return make


@pytest.fixture
def tiny_recipe(make_recipe, tmp_path):
    """`make_recipe` with an output folder of the test's own."""
    return lambda **sections: make_recipe(tmp_path / "run", **sections)

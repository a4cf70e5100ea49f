"""What models made out of another say of themselves: the same, however they were made."""

import math

import pytest
from transformers import Wav2Vec2FeatureExtractor

from lighthubert_hf.costs.profiling import macs_per_second
from lighthubert_hf.hub.card import CardFacts, Latency
from lighthubert_hf.hub.derived import Parent, completed_facts, same_function_facts, subnet_facts
from lighthubert_hf.hub.folder import load_facts, save_model_folder
from lighthubert_hf.hub.publishing import extract_to_folder
from lighthubert_hf.search.costs import Cost
from lighthubert_hf.search.score import Score

ORIGIN = {
    "teacher": "acme/teacher",
    "datasets": ("acme/speech",),
    "languages": ("en",),
    "license": "cc-by-nc-4.0",
    "converted_from": "acme/original",
    "converted_revision": "0123abc",
}
NUMBERS = {
    "parameters": 1,
    "macs_per_second": 2,
    "latency": Latency(3.0, "a laptop", "lighthubert profile"),
    "loss": 0.5,
    "loss_data": "held-out speech",
}
FACTS = CardFacts(**ORIGIN, **NUMBERS)


@pytest.fixture
def supernet_folder(tiny_supernet, tmp_path):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    return save_model_folder(tiny_supernet, tmp_path / "supernet", card=FACTS, processor=extractor)


def origin(facts: CardFacts) -> dict:
    return {name: getattr(facts, name) for name in ORIGIN}


def test_extract_and_search_say_the_same(tiny_supernet, supernet_folder, tmp_path):
    search = pytest.importorskip("lighthubert_hf.search.run").search
    score = Score(lambda subnet: 1 / sum(subnet.intermediate_size), description="nothing heard")
    options = {"trials": 4, "population_size": 2, "extract": 1, "progress": False}
    (found,) = [
        subnet
        for subnet in search(tiny_supernet, score, tmp_path / "out", supernet=str(supernet_folder), **options).subnets
        if subnet.folder
    ]
    searched = load_facts(tmp_path / "out" / found.folder)
    extracted = load_facts(extract_to_folder(supernet_folder, tmp_path / "cut", subnet=found.subnet))
    assert origin(searched) == origin(extracted) == ORIGIN
    assert searched.supernet == extracted.supernet == "supernet"
    for name in ("parameters", "macs_per_second", "subnet"):
        assert getattr(searched, name) == getattr(extracted, name)
    assert (
        searched.macs_per_second
        == macs_per_second(tiny_supernet.config, found.subnet)
        == found.costs[str(Cost("macs"))]
    )
    assert (searched.loss, searched.loss_data) == (pytest.approx(found.score), "nothing heard")
    assert extracted.loss is None
    for folder in (tmp_path / "out" / found.folder, tmp_path / "cut"):
        assert Parent.read(folder).processor.do_normalize is False


def test_no_number_of_another_model_is_taken_over():
    facts = subnet_facts(Parent("acme/super", "fedcba", FACTS))
    assert origin(facts) == ORIGIN
    assert (facts.supernet, facts.revision) == ("acme/super", "fedcba")
    assert all(getattr(facts, name) is None for name in NUMBERS)


def test_the_same_function_has_the_same_quality():
    facts = same_function_facts(FACTS)
    assert origin(facts) == ORIGIN
    assert (facts.loss, facts.loss_data) == (0.5, "held-out speech")
    assert facts.parameters is facts.macs_per_second is facts.latency is None


def test_what_a_subnet_knows_itself_stands():
    own = CardFacts(teacher="acme/other", loss=0.1)
    facts = completed_facts(own, Parent("acme/super", None, FACTS), parameters=7)
    assert (facts.teacher, facts.loss, facts.parameters) == ("acme/other", 0.1, 7)
    assert facts.license == "cc-by-nc-4.0"


def test_a_parent_that_cannot_be_read_is_said(hub, caplog):
    with pytest.raises(OSError, match="acme/nowhere"):
        Parent.read("acme/nowhere")
    assert Parent.read("acme/nowhere", required=False).facts == CardFacts()
    assert "the card of acme/nowhere cannot be read" in caplog.text


def test_operations_per_second_grow_with_the_clip(tiny_config):
    counts = [macs_per_second(tiny_config, seconds=seconds) for seconds in (1, 10, 60)]
    assert counts == sorted(counts)
    assert math.isclose(macs_per_second(tiny_config), counts[1])

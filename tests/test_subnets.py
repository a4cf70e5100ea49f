"""Which subnet a user means."""

import json

import pytest

from lighthubert_hf.model.fingerprint import weights_fingerprint
from lighthubert_hf.subnets import choose_subnet, named_subnets


def test_names_files_and_subnets(tiny_supernet, tmp_path):
    config, space = tiny_supernet.config, tiny_supernet.search_space
    assert choose_subnet("smallest", config) == space.smallest()
    assert choose_subnet("largest", config) == space.largest()
    assert choose_subnet("default", config).to_dict() == config.default_subnet
    assert list(named_subnets(config)) == ["smallest", "default", "largest"]
    (tmp_path / "one.json").write_text(json.dumps(space.smallest().to_dict()), encoding="utf-8")
    assert choose_subnet(tmp_path / "one.json", config) == space.smallest()
    assert choose_subnet(space.largest(), config) == space.largest()
    with pytest.raises(FileNotFoundError, match="'tiny' is not default, smallest, largest or a JSON file"):
        choose_subnet("tiny", config)
    (tmp_path / "one.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"one\.json describes no subnet"):
        choose_subnet(tmp_path / "one.json", config)


def test_a_fingerprint_sees_every_bit_and_fact(tiny_supernet):
    before = weights_fingerprint(tiny_supernet)
    assert before == weights_fingerprint(tiny_supernet)
    assert before != weights_fingerprint(tiny_supernet, ["other input"])
    weight = tiny_supernet.encoder.layers[0].attention.q_proj.weight
    kept = weight.data[3, 5].clone()
    weight.data[3, 5] = kept + 1e-6
    try:
        assert before != weights_fingerprint(tiny_supernet)
    finally:
        weight.data[3, 5] = kept
    assert before == weights_fingerprint(tiny_supernet)


def test_a_subnet_as_json(make_config):
    config = make_config()
    smallest = named_subnets(config)["smallest"]
    assert choose_subnet(json.dumps(smallest.to_dict()), config) == smallest
    for text in ("{", "{}", '{"hidden_size": 1}', "[" * 3):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            choose_subnet(text, config)
        assert "\n" not in str(error.value)

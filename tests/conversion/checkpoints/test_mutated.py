"""Damaged, malformed and malicious checkpoints: one clear line, or the model that the undamaged one gives."""

import copy
import io
import math
import os
import pickle
import random
import re
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from lighthubert_hf import LightHubertConfig
from lighthubert_hf.conversion import ConversionError, convert

from ...examples import examples
from ...golden import original_checkpoint

# What a model computes follows from its weights and from these; the rest is about training it.
INFERENCE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "feat_extract_norm",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "do_stable_layer_norm",
    "head_dim",
    "search_space",
    "default_subnet",
    "target_size",
    "feat_extract_activation",
    "layer_norm_eps",
)


def result(folder):
    """What decides about a converted model's outputs."""
    config = LightHubertConfig.from_pretrained(folder).to_dict()
    return {name: config[name] for name in INFERENCE}, load_file(folder / "model.safetensors")


def same(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][name], w) for name, w in b[1].items())


class Bench:
    """Converts mutated sources and judges the outcome."""

    def __init__(self, source, folder, **options):
        self.options, self.folder, self.count = options, folder, 0
        convert(source, folder / "expected", verify=False, **options)
        self.expected = result(folder / "expected")
        self.outcomes = {"refused": 0, "the same": 0}

    def judge(self, source, what, must_fail=False):
        self.count += 1
        output = self.folder / f"out-{self.count}"
        before = set(os.listdir(self.folder))
        try:
            convert(source, output, verify=False, **self.options)
        except (ConversionError, FileNotFoundError) as error:
            message = str(error)
            assert message, what
            assert "\n" not in message, (what, message)
            assert len(message) < 1500, (what, message)
            assert set(os.listdir(self.folder)) == before, (what, "something was left behind")
            self.outcomes["refused"] += 1
        else:
            assert not must_fail, (what, "was converted")
            assert same(result(output), self.expected), (what, "gave another model")
            self.outcomes["the same"] += 1


@pytest.fixture(scope="module")
def checkpoint(small_cfg):
    cfg = small_cfg | {"encoder_embed_dim": 64, "encoder_attention_heads": 1, "encoder_ffn_embed_dim": 128}
    return original_checkpoint(cfg | {"conv_pos_groups": 4})


@pytest.fixture(scope="module")
def bench(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    torch.save(checkpoint, folder / "original.pt")
    space = {"hidden_size": [32, 64], "num_attention_heads": [1], "ffn_ratio": [2.0], "num_hidden_layers": [1, 2]}
    return Bench(folder / "original.pt", folder, search_space=space)


@pytest.fixture
def judge(bench, checkpoint, tmp_path):
    """`judge(edit, what, **expectation)`: save a checkpoint that `edit` has changed and see what becomes of it."""

    def run(edit, what, **expectation):
        changed = copy.deepcopy(checkpoint)
        edit(changed)
        torch.save(changed, tmp_path / "mutated.pt")
        bench.judge(tmp_path / "mutated.pt", what, **expectation)

    return run


def test_flipped_and_missing_bytes(bench, tmp_path):
    """120 files with flipped bytes, mostly in the zip's own structures, and 40 cut short."""
    rng, data = random.Random(0), (bench.folder / "original.pt").read_bytes()
    path = tmp_path / "mutated.pt"
    headers = [match.start() for match in re.finditer(b"PK\x03\x04|PK\x01\x02|PK\x05\x06|data.pkl", data)]
    for _ in range(examples(120)):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(len(data)) if rng.random() < 0.4 else rng.choice(headers) + rng.randrange(60)
            changed[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        bench.judge(path, f"flipped byte {at}")
    for _ in range(examples(40)):
        length = rng.choice((0, 1, 10, rng.randrange(len(data)), len(data) - rng.randrange(1, 200)))
        path.write_bytes(data[:length])
        bench.judge(path, f"cut to {length} bytes", must_fail=True)
    assert bench.outcomes["refused"] > 0.8 * (examples(120) + examples(40))


def test_dropped_and_renamed_weights(judge, checkpoint):
    optional = ("label_embs_concat", "final_proj")
    for name in checkpoint["model"]:
        judge(lambda c, n=name: c["model"].pop(n), f"without {name}", must_fail=not name.startswith(optional))
    for name in list(checkpoint["model"])[::4]:

        def rename(c, name=name):
            c["model"][name + "_"] = c["model"].pop(name)

        judge(rename, f"{name} renamed", must_fail=True)

    def add(c):
        c["model"]["encoder.layers.2.fc1.weight"] = torch.zeros(128, 64)

    judge(add, "a third layer", must_fail=True)


def test_changed_weights(judge, checkpoint):
    rng = random.Random(1)
    changes = {
        "a row more": lambda t: torch.cat([t, t[:1]]),
        "a row less": lambda t: t[:-1],
        "one more dimension": lambda t: t[None],
        "no dimension": lambda t: t.sum(),
        "nothing": lambda t: t[:0],
        "NaN": lambda t: t.clone().index_fill_(0, torch.tensor([0]), math.nan),
        "infinity": lambda t: t.clone().index_fill_(0, torch.tensor([len(t) - 1]), -math.inf),
        "half precision": lambda t: t.half(),
        "integers": lambda t: t.long(),
        "complex": lambda t: t.to(torch.complex64),
        "sparse": lambda t: t.to_sparse(),
        "a list": lambda t: t.tolist(),
        "None": lambda t: None,
    }
    names = [name for name in checkpoint["model"] if not name.startswith(("label_embs", "final_proj"))]
    for what, change in changes.items():
        for name in rng.sample(names, 4):

            def edit(c, name=name, change=change):
                c["model"][name] = change(c["model"][name])

            judge(edit, f"{name}: {what}", must_fail=True)


def test_views_are_written_as_they_look(judge, checkpoint):
    def edit(c):
        whole = torch.stack([c["model"]["encoder.layers.0.fc1.weight"].T] * 2)
        c["model"]["encoder.layers.0.fc1.weight"] = whole[1].T

    judge(edit, "a transposed view into a larger tensor")


def test_changed_settings(judge, checkpoint):
    model = checkpoint["cfg"]["model"]
    for name in model:
        judge(lambda c, n=name: c["cfg"]["model"].pop(n), f"without {name}")
    needed = [name for name in model if name.startswith(("encoder_e", "encoder_a", "encoder_f", "conv_", "extractor"))]
    rng = random.Random(3)
    for name in needed:
        for value in rng.sample((None, "x", -1, 0, 10**30, math.nan, math.inf, [], {}, 2.5), examples(5)):
            judge(lambda c, n=name, v=value: c["cfg"]["model"].update({n: v}), f"{name}={value}", must_fail=True)
    for name in ("mask_prob", "mask_length"):
        for value in ("x", -1, math.nan, [], 10**400):
            judge(lambda c, n=name, v=value: c["cfg"]["model"].update({n: v}), f"{name}={value}", must_fail=True)
    for normalize in (None, "yes", 1):
        judge(lambda c, v=normalize: c["cfg"]["task"].update(normalize=v), f"normalize={normalize}", must_fail=True)
    judge(lambda c: c["cfg"]["task"].pop("normalize"), "without normalize", must_fail=True)


def test_other_structures(bench, checkpoint, tmp_path):
    weights = checkpoint["model"]
    for what, other in {
        "no cfg": {"model": weights},
        "cfg is None": {"cfg": None, "model": weights},
        "no task": {"cfg": {"model": checkpoint["cfg"]["model"]}, "model": weights},
        "no model": {"cfg": checkpoint["cfg"]},
        "model is a list": {"cfg": checkpoint["cfg"], "model": list(weights.values())},
        "model is empty": {"cfg": checkpoint["cfg"], "model": {}},
        "names are numbers": {"cfg": checkpoint["cfg"], "model": dict(enumerate(weights.values()))},
        "bare weights": weights,
        "a list": [1, 2],
        "a tensor": torch.zeros(3),
        "empty": OrderedDict(),
    }.items():
        torch.save(other, tmp_path / "mutated.pt")
        bench.judge(tmp_path / "mutated.pt", what, must_fail=True)


def test_files_that_are_no_checkpoint(bench, tmp_path):
    old_format, plain = io.BytesIO(), pickle.dumps({"cfg": {}, "model": {}})
    torch.save({"cfg": {}, "model": {}}, old_format, _use_new_zipfile_serialization=False)
    for what, data in {
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "old format": old_format.getvalue(),
        "pickle": plain,
        "safetensors": (bench.folder / "expected" / "model.safetensors").read_bytes(),
    }.items():
        (tmp_path / "mutated.pt").write_bytes(data)
        bench.judge(tmp_path / "mutated.pt", what, must_fail=True)
    bench.judge(tmp_path / "nowhere.pt", "no file", must_fail=True)


def test_compressed_records_are_refused(checkpoint, tmp_path, small_space):
    """Their checksums are right, but a memory map would show the compressed bytes."""
    torch.save(checkpoint, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in plain.infolist():
            method = zipfile.ZIP_DEFLATED if "/data/" in entry.filename else zipfile.ZIP_STORED
            packed.writestr(entry.filename, plain.read(entry), compress_type=method)
    with pytest.raises(ConversionError, match="compressed records"):
        convert(tmp_path / "packed.pt", tmp_path / "supernet", search_space=small_space)
    assert sorted(os.listdir(tmp_path)) == ["packed.pt", "plain.pt"]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["model", "cfg", "extra_state"])
def test_malicious_pickle_is_refused(where, checkpoint, tmp_path, small_space):
    torch.save(checkpoint | {where: Malicious(tmp_path / "owned")}, tmp_path / "evil.pt")
    with pytest.raises(ConversionError, match=r"was not loaded: loading it would run (posix|nt)\.mkdir"):
        convert(tmp_path / "evil.pt", tmp_path / "supernet", search_space=small_space)
    assert os.listdir(tmp_path) == ["evil.pt"]


def test_objects_of_fairseq_are_let_go(checkpoint, tmp_path, bench, monkeypatch):
    """Fairseq's own checkpoints carry dictionaries and an argparse namespace beside the weights."""
    import argparse
    import sys
    import types

    dictionary = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["fairseq.data.dictionary"].Dictionary = dictionary
    entry = dictionary()
    entry.symbols = ["<s>"]
    extra = {"args": argparse.Namespace(arch="hubert"), "task_state": {"dictionaries": [entry]}}
    torch.save(checkpoint | extra, tmp_path / "fairseq.pt")
    monkeypatch.undo()
    bench.judge(tmp_path / "fairseq.pt", "a fairseq dictionary")
    assert bench.outcomes["the same"]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        num_hidden_layers=2,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
    )
    HubertModel(config).save_pretrained(folder / "source")
    Wav2Vec2FeatureExtractor().save_pretrained(folder / "source")
    return Bench(folder / "source", folder)


@pytest.fixture
def files(family):
    """The files of the transformers model, put back after each test."""
    source = family.folder / "source"
    before = {path: path.read_bytes() for path in source.iterdir()}
    yield source
    for path, data in before.items():
        path.write_bytes(data)


def test_mutated_transformers_folders(family, files):
    weights, config = files / "model.safetensors", files / "config.json"
    rng, data, text = random.Random(2), weights.read_bytes(), config.read_text()
    header = struct.unpack("<Q", data[:8])[0] + 8
    for _ in range(examples(60)):
        changed = bytearray(data)
        changed[rng.randrange(header)] ^= 1 << rng.randrange(8)
        weights.write_bytes(changed)
        family.judge(files, "flipped bit in the safetensors header")
    for length in (0, 5, 8, header // 2, header, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:length])
        family.judge(files, f"weights cut to {length} bytes", must_fail=True)
    weights.write_bytes(data)
    for old, new in (
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3'),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 1000000000'),
        ('"num_attention_heads": 2', '"num_attention_heads": 5'),
        ('"num_attention_heads": 2', '"num_attention_heads": 0'),
        ('"num_attention_heads": 2', '"num_attention_heads": -2'),
        ('"hidden_size": 32', '"hidden_size": 64'),
        ('"hidden_size": 32', '"hidden_size": "wide"'),
        ('"intermediate_size": 64', '"intermediate_size": null'),
        ('"intermediate_size": 64', '"intermediate_size": 0'),
        ('"num_conv_pos_embedding_groups": 4', '"num_conv_pos_embedding_groups": 0'),
        ('"num_conv_pos_embedding_groups": 4', '"num_conv_pos_embedding_groups": 64'),
        ('"num_conv_pos_embeddings": 8', '"num_conv_pos_embeddings": 9'),
        ('"hidden_act": "gelu"', '"hidden_act": "wiggle"'),
        ('"feat_extract_norm": "group"', '"feat_extract_norm": "batch"'),
        ('"model_type": "hubert"', '"model_type": "bert"'),
        ('"hidden_dropout": 0.1', '"hidden_dropout": 7'),
        ('"conv_bias": false', '"conv_bias": true'),
        ("{", "["),
        ("}", ""),
    ):
        assert old in text
        config.write_text(text.replace(old, new, 1) if old != "}" else text.rstrip("}\n"))
        family.judge(files, f"config with {new}", must_fail=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        data = (files / name).read_bytes()
        (files / name).unlink()
        family.judge(files, f"without {name}", must_fail=True)
        (files / name).write_bytes(data)


def test_mutated_weights_of_transformers_folders(family, files):
    from safetensors.torch import save_file

    weights = load_file(files / "model.safetensors")
    for index, name in enumerate(weights):
        changed = dict(weights)
        what = ("dropped", "a row more", "NaN", "renamed")[index % 4]
        tensor = changed.pop(name)
        if what == "a row more":
            changed[name] = torch.cat([tensor, tensor[:1]])
        elif what == "NaN":
            changed[name] = torch.full_like(tensor, math.nan)
        elif what == "renamed":
            changed[f"{name}.old"] = tensor
        save_file(changed, files / "model.safetensors")
        # A model without a mask embedding gets a new one, which does not show in what it computes.
        if name != "masked_spec_embed":
            family.judge(files, f"{name}: {what}", must_fail=True)

"""Static models as ONNX files that compute the same at every batch size and length."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lighthubert_hf import (
    LightHubertForCTC,
    LightHubertForPreTraining,
    LightHubertForSequenceClassification,
    LightHubertModel,
    Subnet,
)
from lighthubert_hf.conversion import ConversionError, export_onnx
from lighthubert_hf.conversion import onnx as exporting

from ..precision import assert_as_exact, in_double
from ..tiny import TINY_SPACE

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

UNEQUAL = Subnet(48, (1, 3, 2), (72, 96, 144))
NARROW = replace(TINY_SPACE, conv_dim=((4, 16), (7, 16), *[(12, 16)] * 5))


def save_subnet(make_model, folder, cls=LightHubertModel, subnet=UNEQUAL, **overrides):
    model = make_model(cls, **overrides)
    model = model.extract_subnet(subnet) if subnet else model
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def exported(make_model, tmp_path_factory):
    """Model, its folder, its ONNX file in single precision, and the report of its export in 8 bits.

    An export takes seconds, so there is one: the single-precision file is copied on its way to the 8-bit one.
    """
    root = tmp_path_factory.mktemp("onnx")
    model = save_subnet(make_model, root / "subnet")
    quantise = exporting._quantise

    def copy_first(exact, path):
        shutil.copy(exact, root / "exact.onnx")
        quantise(exact, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_quantise", copy_first)
        report = export_onnx(root / "subnet", root / "int8.onnx", int8=True)
    assert sorted(os.listdir(root)) == ["exact.onnx", "int8.onnx", "subnet"]
    return model, root / "subnet", root / "exact.onnx", report


def compare(path, model, output):
    """Assert that the file and the model agree on batches other than those that the export itself compares.

    onnxruntime approximates exp and erf more coarsely than PyTorch, by some 1e-6.
    """
    session = onnxruntime.InferenceSession(str(path))
    assert [found.name for found in session.get_outputs()] == [output]
    generator = torch.Generator().manual_seed(1)
    for batch, samples in ((1, 5000), (4, 12345), (2, 401)):
        values = torch.randn(batch, samples, generator=generator)
        mask = torch.ones(batch, samples, dtype=torch.long)
        mask[0, max(400, samples // 2) :] = 0
        (found,) = session.run([output], {"input_values": values.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            results = [torch.from_numpy(found), *(getattr(m(values, mask), output) for m in (model, in_double(model)))]
        if found.ndim == 3:
            valid = model._get_feature_vector_attention_mask(found.shape[1], mask)
            results = [result[valid] for result in results]
        assert_as_exact(*results, floor=100)


@pytest.mark.numerical
def test_exported_encoder_equals_pytorch(exported):
    model, _, path, _ = exported
    compare(path, model, "last_hidden_state")
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_axes_have_names_and_short_audio_an_error_that_says_so(exported):
    _, _, exact, report = exported
    for path in (exact, report.output):
        session = onnxruntime.InferenceSession(str(path))
        shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
        assert shapes["input_values"] == shapes["attention_mask"] == ["batch", "samples"]
        assert shapes["last_hidden_state"] == ["batch", "frames", 48]
        for samples in (399, 5):
            feed = {"input_values": torch.zeros(1, samples), "attention_mask": torch.ones(1, samples).long()}
            with pytest.raises(Exception, match="audio must have at least 400 samples"):
                session.run(None, {name: value.numpy() for name, value in feed.items()})


def test_int8_states_what_it_costs(exported):
    _, _, exact, report = exported
    assert 1e-3 < report.relative_error < 0.3
    assert report.pytorch_error < 1e-4
    assert report.max_difference > 1e-3
    assert report.speed > 0
    assert "times as fast" in str(report)
    assert report.num_bytes == os.path.getsize(report.output)
    assert report.num_bytes != exact.stat().st_size
    assert len({batch for batch, _ in report.checked}) > 1
    assert len({samples for _, samples in report.checked}) > 2


@pytest.mark.numerical
@pytest.mark.parametrize("spoiled", [False, True])
def test_wrong_file_is_noticed(spoiled, exported, tmp_path, monkeypatch):
    _, folder, exact, _ = exported
    shutil.copytree(folder, tmp_path / "subnet")
    if spoiled:
        other = LightHubertModel.from_pretrained(folder)
        with torch.no_grad():
            other.encoder.layers[1].feed_forward.output_dense.weight[3] += 1e-3
        other.save_pretrained(tmp_path / "subnet")
    monkeypatch.setattr(exporting, "_export", lambda model, example, path, name: shutil.copy(exact, path))
    if spoiled:
        with pytest.raises(ConversionError, match="differs from PyTorch"):
            export_onnx(tmp_path / "subnet", tmp_path / "model.onnx")
        assert os.listdir(tmp_path) == ["subnet"]
    else:
        report = export_onnx(tmp_path / "subnet", tmp_path / "model.onnx")
        assert 0 < report.pytorch_error < 1e-4
        assert report.max_difference < 1e-3
        assert report.speed is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [{"attention_window": 6}, {"feat_extract_norm": "group"}, {"search_space": NARROW}],
    ids=["window", "group norm", "narrow front end"],
)
def test_other_encoders(overrides, make_model, tmp_path):
    subnet = replace(UNEQUAL, conv_dim=NARROW.smallest().conv_dim) if "search_space" in overrides else UNEQUAL
    model = save_subnet(make_model, tmp_path / "subnet", subnet=subnet, **overrides)
    export_onnx(tmp_path / "subnet", tmp_path / "model.onnx")
    compare(tmp_path / "model.onnx", model, "last_hidden_state")


@pytest.mark.slow
@pytest.mark.parametrize("cls", [LightHubertForCTC, LightHubertForSequenceClassification], ids=["CTC", "classes"])
def test_heads(cls, make_model, tmp_path):
    model = save_subnet(make_model, tmp_path / "subnet", cls)
    export_onnx(tmp_path / "subnet", tmp_path / "model.onnx")
    compare(tmp_path / "model.onnx", model, "logits")


@pytest.mark.parametrize(
    ("cls", "subnet", "message"),
    [
        (LightHubertModel, None, "extract a subnet first"),
        (LightHubertForPreTraining, None, "extract a subnet first"),
        (LightHubertForPreTraining, UNEQUAL, "exported are"),
    ],
    ids=["supernet", "supernet with its head", "pre-training"],
)
def test_refusals(cls, subnet, message, make_model, tmp_path):
    save_subnet(make_model, tmp_path / "model", cls, subnet)
    with pytest.raises(ConversionError, match=message):
        export_onnx(tmp_path / "model", tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        export_onnx(tmp_path, tmp_path / "model.onnx")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install .*\[onnx\]'"):
        export_onnx(tmp_path, tmp_path / "model.onnx")

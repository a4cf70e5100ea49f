"""Static models as ONNX files that compute the same at every batch size and length."""

import os
import sys

import numpy as np
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

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

UNEQUAL = Subnet(48, (1, 3, 2), (72, 96, 144))


@pytest.fixture
def save_subnet(make_model, tmp_path):
    def save(cls=LightHubertModel, subnet=UNEQUAL, **overrides):
        model = make_model(cls, **overrides)
        model = model.extract_subnet(subnet) if subnet else model
        model.save_pretrained(tmp_path / "subnet")
        return tmp_path / "subnet", model

    return save


# An export takes seconds: the variants that differ least are left to the slow tests.
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"attention_window": 6}, marks=pytest.mark.slow),
        pytest.param({"feat_extract_norm": "group"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_exported_encoder_equals_pytorch(overrides, save_subnet, tmp_path):
    folder, model = save_subnet(**overrides)
    report = export_onnx(folder, tmp_path / "model.onnx")
    assert report.max_difference < 1e-4
    assert report.speed is None
    assert len({batch for batch, _ in report.checked}) > 1
    assert len({samples for _, samples in report.checked}) > 2
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    generator = torch.Generator().manual_seed(1)
    for batch, samples in ((1, 5000), (4, 12345), (2, 401)):
        values = torch.randn(batch, samples, generator=generator)
        mask = torch.ones(batch, samples, dtype=torch.long)
        mask[0, max(400, samples // 2) :] = 0
        feed = {"input_values": values.numpy(), "attention_mask": mask.numpy()}
        (found,) = session.run(["last_hidden_state"], feed)
        with torch.no_grad():
            expected = model(values, mask).last_hidden_state
        valid = model._get_feature_vector_attention_mask(expected.shape[1], mask)
        np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "cls",
    [LightHubertForCTC, pytest.param(LightHubertForSequenceClassification, marks=pytest.mark.slow)],
    ids=["CTC", "classification"],
)
def test_exported_head(cls, save_subnet, tmp_path):
    folder, _ = save_subnet(cls)
    report = export_onnx(folder, tmp_path / "model.onnx")
    assert report.max_difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["logits"]


def test_int8_states_what_it_costs(save_subnet, tmp_path):
    folder, _ = save_subnet()
    report = export_onnx(folder, tmp_path / "model.onnx", int8=True)
    assert 1e-4 < report.relative_error < 0.3
    assert report.speed > 0
    assert "times as fast" in str(report)
    assert report.num_bytes == (tmp_path / "model.onnx").stat().st_size
    assert report.num_bytes < 4 * sum(p.numel() for p in LightHubertModel.from_pretrained(folder).parameters())
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "subnet"]


def test_wrong_file_is_noticed(save_subnet, tmp_path, monkeypatch):
    folder, _ = save_subnet()
    export = exporting._export

    def spoil(model, *args):
        with torch.no_grad():
            model.model.encoder.layers[1].feed_forward.output_dense.bias[0] += 0.5
            export(model, *args)
            model.model.encoder.layers[1].feed_forward.output_dense.bias[0] -= 0.5

    monkeypatch.setattr(exporting, "_export", spoil)
    with pytest.raises(ConversionError, match="differs from PyTorch"):
        export_onnx(folder, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == ["subnet"]


@pytest.mark.parametrize(
    ("cls", "subnet", "message"),
    [(LightHubertModel, None, "extract a subnet"), (LightHubertForPreTraining, UNEQUAL, "exported are")],
    ids=["supernet", "pre-training"],
)
def test_refusals(cls, subnet, message, save_subnet, tmp_path):
    folder, _ = save_subnet(cls, subnet)
    with pytest.raises(ConversionError, match=message):
        export_onnx(folder, tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        export_onnx(tmp_path, tmp_path / "model.onnx")


def test_missing_packages_are_named(save_subnet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'lighthubert-hf\[onnx\]'"):
        export_onnx(save_subnet()[0], tmp_path / "model.onnx")

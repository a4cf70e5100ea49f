"""Units out of an ONNX file are those of PyTorch, in batches of other sizes and lengths than it was exported with."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript")

from lighthubert_hf import LightHubertModel
from lighthubert_hf.conversion.onnx_units import _Units, export_units_onnx
from lighthubert_hf.model.codebook import Codebook, encoder_fingerprint

AUDIO = 0.1 * np.random.default_rng(0).standard_normal(9000).astype(np.float32)


@pytest.fixture
def model(make_model):
    """One layer, with a codebook of half of its frames of `AUDIO`."""
    model = make_model(LightHubertModel, search_space=None, num_hidden_layers=1)
    with torch.no_grad():
        states = model(normalised()[None], output_hidden_states=True).hidden_states[1][0]
    one = Codebook(states[::2].clone(), 1, {"encoder": encoder_fingerprint(model)})
    model.codebooks = {one.name: one}
    return model


def normalised() -> torch.Tensor:
    return torch.from_numpy((AUDIO - AUDIO.mean()) / AUDIO.std())


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Twice the same audio, the second time cut."""
    mask = torch.ones(2, 9000, dtype=torch.long)
    mask[1, 5000:] = 0
    return torch.stack([normalised(), normalised()]) * mask, mask


def test_what_is_exported_says_the_models_units_and_marks_padding(model):
    with torch.no_grad():
        units = _Units(model, *model.codebooks.values())(*padded())
    assert torch.equal(units[0], model.encode_units(AUDIO))
    assert (units[1] == -1).sum() == 27 - 15 and (units[1, 15:] == -1).all()


@pytest.mark.slow  # an export, ten seconds
def test_units_of_a_file_are_those_of_the_model(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model.save_pretrained(tmp_path / "model")
    report = export_units_onnx(tmp_path / "model", tmp_path / "units.onnx")
    assert report.agreement > 0.99 and report.frames > 100 and report.codebook == "layer1-14"
    session = onnxruntime.InferenceSession(str(tmp_path / "units.onnx"), providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    assert (output.name, output.shape) == ("units", ["batch", "frames"])
    values, mask = padded()
    (units,) = session.run(None, {"input_values": values.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        assert np.array_equal(units, _Units(model, *model.codebooks.values())(values, mask).numpy())


def test_what_cannot_be_exported_is_said(make_model, tmp_path):
    make_model(LightHubertModel, search_space=None).save_pretrained(tmp_path / "static")
    make_model(LightHubertModel).save_pretrained(tmp_path / "supernet")
    with pytest.raises(FileNotFoundError, match="static has no codebook; make one with `lighthubert units fit`"):
        export_units_onnx(tmp_path / "static", tmp_path / "units.onnx")
    with pytest.raises(ValueError, match="supernet holds no static LightHuBERT; extract a subnet first"):
        export_units_onnx(tmp_path / "supernet", tmp_path / "units.onnx")
    assert not (tmp_path / "units.onnx").exists()

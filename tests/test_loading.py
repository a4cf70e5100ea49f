"""Loading by name: heads left out on purpose make no noise, missing weights an error."""

import pytest
from safetensors.torch import load_file, save_file
from transformers import logging

from lighthubert_hf import LightHubertForCTC, LightHubertForPreTraining
from lighthubert_hf.hub.publishing import load_supernet
from lighthubert_hf.loading import load_encoder
from lighthubert_hf.training.distillation.recipe import TeacherSection
from lighthubert_hf.training.distillation.teacher import load_teacher


@pytest.mark.parametrize("cls", [LightHubertForCTC, LightHubertForPreTraining])
@pytest.mark.parametrize("load", [load_encoder, load_supernet, lambda name: load_teacher(TeacherSection(path=name))])
def test_heads_are_left_out_without_a_table_and_missing_weights_are_an_error(load, cls, make_model, tmp_path, caplog):
    make_model(cls).save_pretrained(tmp_path)
    logging.enable_propagation()
    try:
        load(str(tmp_path))
    finally:
        logging.disable_propagation()
    assert not caplog.records
    state = load_file(tmp_path / "model.safetensors")
    del state["lighthubert.encoder.layers.1.attention.q_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of .*, such as encoder\.layers\.1\.attention"):
        load(str(tmp_path))

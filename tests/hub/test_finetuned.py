"""A fine-tuned recogniser is pushed like any model, with its scores on the card."""

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCTC, AutoProcessor

from lighthubert_hf import LightHubertForCTC
from lighthubert_hf.training.finetuning.recipe import CtcRecipe
from lighthubert_hf.training.finetuning.run import finetune
from lighthubert_hf.training.synthetic.speech import synthesise_corpus

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


def test_a_recipe_that_names_a_repository_publishes_its_result(hub, tmp_path):
    synthesise_corpus(tmp_path / "corpus", minutes=0.2, held_out_minutes=0.1, num_shards=1)
    source = {"path": str(tmp_path / "corpus"), "text_column": "text"}
    recipe = CtcRecipe.model_validate(
        {
            "name": "pushed",
            "output_dir": str(tmp_path / "run"),
            "model": {"random_config": TINY},
            "data": {"sources": [source], "evaluation": {"held-out": [{**source, "split": "test_voice"}]}},
            "training": {"steps": 1},
            "hub": {"repo_id": "alice/recogniser"},
        }
    )
    metrics = finetune(recipe, quiet=True)

    model = AutoModelForCTC.from_pretrained("alice/recogniser")
    assert isinstance(model, LightHubertForCTC)
    assert AutoProcessor.from_pretrained("alice/recogniser").tokenizer.get_vocab()["|"] == 2
    card = ModelCard.load("alice/recogniser")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["cer"] == pytest.approx(100 * metrics["evaluation"]["held-out"]["cer"], abs=0.01)
    assert scores.keys() == {"cer", "wer"}
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert str(tmp_path) not in card.content

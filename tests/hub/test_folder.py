"""Model folders are complete, and written as a whole or not at all."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoProcessor,
    HubertModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from lighthubert_hf import LightHubertConfig, LightHubertForCTC, LightHubertModel
from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.hub.folder import (
    complete_folder,
    is_rendered,
    save_model_folder,
    stored_parameters,
)

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="module")
def model():
    return LightHubertModel(LightHubertConfig(**SIZES)).eval()


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_saved_folder_is_complete(model, tmp_path):
    folder = save_model_folder(model, tmp_path / "deep" / "model")
    code = {"modeling_lighthubert.py", "configuration_lighthubert.py", "search_space.py", "elastic.py"}
    assert code | {"config.json", "model.safetensors", "README.md", "architecture.svg", "model_card.json"} <= {
        path.name for path in folder.iterdir()
    }
    auto_map = read(folder, "config.json")["auto_map"]
    assert auto_map["AutoModelForCTC"] == "modeling_lighthubert.LightHubertForCTC"
    assert all((folder / f"{value.split('.')[0]}.py").is_file() for value in auto_map.values())
    assert stored_parameters(folder) == sum(tensor.numel() for tensor in model.state_dict().values())
    assert CardFacts.load(folder / "model_card.json").parameters == stored_parameters(folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    assert list((tmp_path / "deep").iterdir()) == [folder]
    again = AutoModel.from_pretrained(folder)
    wav = torch.randn(1, 400)
    assert torch.equal(again.eval()(wav)[0], model(wav)[0])


def test_both_processor_files_agree(model, tmp_path):
    folder = save_model_folder(model, tmp_path / "default")
    assert read(folder, "preprocessor_config.json")["do_normalize"] is True
    assert type(AutoProcessor.from_pretrained(folder)) is Wav2Vec2FeatureExtractor
    folder = save_model_folder(model, tmp_path / "given", processor=Wav2Vec2FeatureExtractor(do_normalize=False))
    assert read(folder, "preprocessor_config.json")["do_normalize"] is False
    assert read(folder, "processor_config.json")["feature_extractor"] == read(folder, "preprocessor_config.json")


def test_tokenizer(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}))
    processor = Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True),
        tokenizer=Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
    )
    model = LightHubertForCTC(LightHubertConfig(**SIZES, vocab_size=4))
    folder = save_model_folder(model, tmp_path / "model", processor=processor)
    assert read(folder, "preprocessor_config.json")["do_normalize"] is True
    loaded = AutoProcessor.from_pretrained(folder)
    assert type(loaded) is Wav2Vec2Processor
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_contradicting_processor_files_are_refused(model, tmp_path):
    folder = save_model_folder(model, tmp_path / "model")
    data = read(folder, "preprocessor_config.json") | {"do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"says do_normalize=False, .* says True; delete"):
        complete_folder(folder)


def test_plain_hubert(model, tmp_path):
    folder = save_model_folder(model.to_hubert(), tmp_path / "plain")
    names = {path.name for path in folder.iterdir()}
    assert not any(name.endswith(".py") for name in names)
    assert "auto_map" not in read(folder, "config.json")
    assert type(AutoModel.from_pretrained(folder)) is HubertModel


def test_sharded(model, tmp_path):
    folder = save_model_folder(model, tmp_path / "model", max_shard_size="10KB")
    assert stored_parameters(folder) == sum(tensor.numel() for tensor in model.state_dict().values())
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model-0"):
        complete_folder(folder)


# All or nothing


def test_replaces_what_it_wrote_as_a_whole(model, tmp_path):
    folder = save_model_folder(model, tmp_path / "model", max_shard_size="10KB")
    save_model_folder(model, folder, card=CardFacts(loss=0.5))
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert list(tmp_path.iterdir()) == [folder]


def test_never_replaces_what_it_did_not_write(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("my thesis")
    with pytest.raises(ValueError, match="is not empty and no saved model; choose another folder"):
        save_model_folder(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        save_model_folder(model, tmp_path / "thesis.txt")


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_no_trace(model, tmp_path, monkeypatch, exists):
    folder = tmp_path / "model"
    if exists:
        save_model_folder(model, folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(Wav2Vec2FeatureExtractor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model_folder(model, folder, processor=Wav2Vec2FeatureExtractor())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == ([folder] if exists else [])


# Cards


def test_only_untouched_cards_are_rendered_again(model, tmp_path):
    folder = save_model_folder(model, tmp_path / "model")
    readme = folder / "README.md"
    assert is_rendered(readme.read_text())
    assert "PATH_OR_HUB_ID" in readme.read_text()
    complete_folder(folder, repo_id="acme/light")
    assert "PATH_OR_HUB_ID" not in readme.read_text()
    assert '"acme/light"' in readme.read_text()
    readme.write_text(readme.read_text().replace("Architecture", "Structure"))
    edited = readme.read_text()
    assert not is_rendered(edited)
    complete_folder(folder, repo_id="acme/other")
    assert readme.read_text() == edited


def test_paths_of_this_machine_stay_here(model, tmp_path, monkeypatch):
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = CardFacts(teacher="runs/teacher", supernet=str(tmp_path / "super"), datasets=(str(tmp_path / "speech"),))
    folder = save_model_folder(model, tmp_path / "model", card=card)
    for name in ("README.md", "model_card.json"):
        text = (folder / name).read_text()
        assert str(tmp_path) not in text
        assert "runs/" not in text
    facts = CardFacts.load(folder / "model_card.json")
    assert (facts.teacher, facts.supernet, facts.datasets) == ("teacher", "super", ("speech",))


@pytest.mark.parametrize("place", ["final", "model", "checkpoints/step-00000100/pretrained_model"])
def test_a_source_inside_a_run_is_called_by_the_run(model, tmp_path, place):
    source = tmp_path / "stage2" / place
    source.mkdir(parents=True)
    folder = save_model_folder(model, tmp_path / "model", card=CardFacts(supernet=str(source)))
    assert "cut out of the supernet stage2." in (folder / "README.md").read_text()


# Broken folders


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("config.json", None, FileNotFoundError, "has no config.json"),
        ("config.json", "{", ValueError, "is not JSON"),
        ("config.json", "[]", ValueError, "must hold a JSON object"),
        ("config.json", '{"model_type": "bert"}', ValueError, "model_type 'bert' is not one of"),
        ("model.safetensors", None, FileNotFoundError, "has no model.safetensors"),
        ("model.safetensors", "no weights", ValueError, "is truncated or damaged"),
        ("model_card.json", '{"loss": "low"}', ValueError, "loss must be a finite number"),
        ("README.md", "---\na: [\n---\n", ValueError, "metadata of README.md is not valid"),
    ],
)
def test_broken_folders_are_named(model, tmp_path, name, content, error, message):
    folder = save_model_folder(model, tmp_path / "model")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(error, match=message) as caught:
        complete_folder(folder)
    assert "\n" not in str(caught.value)

"""Sources on the Hub, served by the Hub-compatible server of tests/hub."""

import time

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from lighthubert_hf.conversion import ConversionError, convert
from lighthubert_hf.conversion.sources import resolve
from lighthubert_hf.hub.folder import load_facts

from ..hub.server import Account, HubServer

TOKEN = "hf_TestWriterToken0123456789"
REPO = "alice/lighthubert"


@pytest.fixture
def api(tmp_path, monkeypatch):
    with HubServer({TOKEN: Account("alice")}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        api = HfApi(endpoint=server.endpoint, token=TOKEN)
        api.create_repo(REPO)
        yield api


def test_file_of_a_repository(api, save_original, small_space, tmp_path):
    for name, seed in (("lighthubert_small.pt", 1), ("lighthubert_base.pt", 2)):
        api.upload_file(path_or_fileobj=save_original(seed=seed), path_in_repo=name, repo_id=REPO)
    with pytest.raises(ConversionError, match=rf"{REPO}:lighthubert_base\.pt, {REPO}:lighthubert_small\.pt"):
        convert(REPO, tmp_path / "supernet", search_space=small_space)
    report = convert(f"{REPO}:lighthubert_small.pt", tmp_path / "supernet", search_space=small_space)
    assert report.source == f"{REPO}:lighthubert_small.pt"
    assert report.max_difference < 1e-9
    facts = load_facts(tmp_path / "supernet")
    assert facts.converted_from == f"{REPO}:lighthubert_small.pt"
    assert facts.converted_revision == api.model_info(REPO).sha
    with pytest.raises(FileNotFoundError, match=rf"{REPO} on the Hub holds no lighthubert_large\.pt"):
        resolve(f"{REPO}:lighthubert_large.pt")
    with pytest.raises(FileNotFoundError, match="on the Hub has no revision nowhere"):
        resolve(f"{REPO}:lighthubert_small.pt", revision="nowhere")


def test_only_checkpoint_of_a_repository(api, save_original):
    api.upload_file(path_or_fileobj=save_original(), path_in_repo="only.pt", repo_id=REPO)
    assert resolve(REPO).name == "only.pt"


def test_model_folder(api, tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    HubertModel(HubertConfig(**sizes, conv_dim=[8] * 7)).save_pretrained(tmp_path / "source")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"an older copy of the weights")
    ModelCard("---\nlicense: mit\n---\n").save(tmp_path / "source" / "README.md")
    api.upload_folder(folder_path=tmp_path / "source", repo_id=REPO)
    assert convert(REPO, tmp_path / "supernet", revision="main").max_difference < 1e-9
    card = (tmp_path / "supernet" / "README.md").read_text()
    assert f"`mit`, carried on from the weights of [{REPO}](https://huggingface.co/{REPO})" in card
    assert (
        f"| Converted from | [{REPO}](https://huggingface.co/{REPO}), revision `{api.model_info(REPO).sha}` |" in card
    )
    assert not (resolve(REPO) / "pytorch_model.bin").exists()


def test_nothing_there(api, tmp_path):
    with pytest.raises(ConversionError, match="no model folder; name one of its checkpoints: none"):
        resolve(REPO)
    with pytest.raises(FileNotFoundError, match="no model alice/nothing, neither here nor, for this token"):
        resolve("alice/nothing")
    with pytest.raises(FileNotFoundError, match=r"no model nothing\.pt; check the path"):
        resolve("nothing.pt")
    (tmp_path / "here.pt").touch()
    with pytest.raises(ConversionError, match="has no revision 'main'"):
        resolve(tmp_path / "here.pt", revision="main")


def test_unreachable_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's retries
    with pytest.raises(FileNotFoundError, match="alice/nothing here, and the Hub cannot be reached"):
        resolve("alice/nothing")

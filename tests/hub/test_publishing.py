"""Pushing with the genuine client to the Hub-compatible server: what arrives, and what happens when things fail."""

import json
import logging
import threading
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load, load_file
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from lighthubert_hf import LightHubertForCTC
from lighthubert_hf.hub import publishing, upload
from lighthubert_hf.hub.card import CardFacts
from lighthubert_hf.hub.folder import save_model_folder
from lighthubert_hf.hub.publishing import push_folder, push_model
from lighthubert_hf.hub.upload import PublishingError
from lighthubert_hf.model.codebook import Codebook, encoder_fingerprint

from .accounts import ACCOUNTS, TOKEN
from .server import HubServer

READER, OTHER = list(ACCOUNTS)[1:]
REPO = "acme/light"
ALWAYS = {
    "README.md",
    "architecture.svg",
    "config.json",
    "configuration_lighthubert.py",
    "model.safetensors",
    "model_card.json",
    "modeling_lighthubert.py",
    "preprocessor_config.json",
    "processor_config.json",
    "search_space.py",
}


@pytest.fixture
def folder(model, tmp_path):
    return save_model_folder(model, tmp_path / "model", card=CardFacts(loss=0.25, teacher="acme/teacher"))


def published(hub, repo_id=REPO, revision="main"):
    """What the repository holds, without what the Hub itself puts there."""
    files = hub.files(repo_id, revision)
    files.pop(".gitattributes")
    return files


def commits(hub, repo_id=REPO, revision="main"):
    return hub.store.repos[repo_id].history(revision)


def another(model, factor=2.0):
    """The same architecture with other weights."""
    twin = type(model)(model.config).eval()
    twin.load_state_dict({key: value * factor for key, value in model.state_dict().items()})
    return twin


# What arrives


def test_one_commit_holds_everything(hub, folder, model):
    result = push_folder(folder, REPO)
    assert [commit.title for commit in commits(hub)] == ["Upload model with lighthubert_hf", "initial commit"]
    files = published(hub)
    assert set(files) >= ALWAYS
    assert set(result.files) == set(files)
    assert result.commit.oid == commits(hub)[0].oid
    weights = load(files["model.safetensors"])
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert json.loads(files["preprocessor_config.json"])["do_normalize"] is True
    assert REPO in files["README.md"].decode()


def test_push_to_hub_of_a_model(hub, supernet):
    model = supernet.extract_subnet(supernet.search_space.smallest())
    model.add_model_tags("small")
    facts = CardFacts(loss=0.25)
    info = model.push_to_hub(REPO, card=facts, commit_message="By hand", tags=["tiny"])
    assert [commit.title for commit in commits(hub)] == ["By hand", "initial commit"]
    assert info.oid == commits(hub)[0].oid
    assert set(published(hub)) >= ALWAYS
    card = ModelCard(published(hub)["README.md"].decode())
    assert {"small", "tiny"} <= set(card.data.tags)
    assert "| Distillation loss | 0.25 |" in str(card)


def test_push_to_hub_arguments_and_tokenizer(hub, config, tmp_path):
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<unk>", "|", "a", "b"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    processor = Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
        tokenizer=Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
    )
    ctc = LightHubertForCTC(config)
    info = push_model(
        ctc.extract_subnet(ctc.search_space.largest()),
        "light",
        processor=processor,
        private=True,
        commit_message="Second half of the title",
        tags=["espeak"],
        token=TOKEN,
    )
    assert info.commit_message == "Second half of the title"
    files = published(hub, "alice/light")
    assert hub.store.repos["alice/light"].private
    assert {"tokenizer_config.json", "vocab.json"} <= set(files)
    assert json.loads(files["preprocessor_config.json"])["do_normalize"] is False
    assert json.loads(files["processor_config.json"])["feature_extractor"]["do_normalize"] is False
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert "espeak" in card.data.tags


def test_a_bare_push_keeps_the_processor_that_is_there(hub, model):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    push_model(model, REPO, processor=extractor)
    push_model(another(model), REPO)
    assert json.loads(published(hub)["preprocessor_config.json"])["do_normalize"] is False


def test_dry_run_is_exactly_what_is_uploaded(hub, folder, tmp_path):
    result = push_folder(folder, REPO, dry_run=tmp_path / "dry")
    assert hub.requests == []
    dry = {path.name: path.read_bytes() for path in (tmp_path / "dry").iterdir()}
    assert set(result.files) == set(dry)
    assert not any(path.is_symlink() for path in (tmp_path / "dry").iterdir())
    push_folder(folder, REPO)
    assert published(hub) == dry


def test_a_folder_of_save_pretrained_is_completed_and_left_alone(hub, model, tmp_path):
    raw = tmp_path / "raw"
    model.save_pretrained(raw)
    (raw / "training_args.bin").write_bytes(b"pickle")
    (raw / "checkpoint-10").mkdir()
    (raw / ".hidden").write_text("")
    before = sorted(path.name for path in raw.iterdir())
    result = push_folder(raw, REPO)
    assert set(published(hub)) >= ALWAYS
    assert set(result.left_out) == {"training_args.bin", "checkpoint-10", ".hidden"}
    assert "pickle" in result.left_out["training_args.bin"]
    assert "left out: training_args.bin (a pickle" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["commit"] == commits(hub)[0].oid
    assert sorted(path.name for path in raw.iterdir()) == before


def test_an_edited_card_is_published_as_it_is(hub, folder):
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("## Architecture", "## My own words"))
    push_folder(folder, REPO)
    assert published(hub)["README.md"] == readme.read_bytes()


def test_large_files_go_up_in_parts(hub, folder):
    hub.part_size = 3000
    push_folder(folder, REPO)
    assert sum("/large/" in request for request, _ in hub.requests) > 2
    assert published(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


# Updates, branches, pull requests


def test_update_changes_only_what_differs(hub, folder, model, tmp_path):
    first = push_folder(folder, REPO)
    assert push_folder(folder, REPO).commit.oid == first.commit.oid
    assert len(commits(hub)) == 2
    second = push_folder(save_model_folder(another(model), tmp_path / "second"), REPO)
    assert [commit.oid for commit in commits(hub)[:2]] == [second.commit.oid, first.commit.oid]
    old, new = hub.files(REPO, first.commit.oid), hub.files(REPO)
    assert old["model.safetensors"] != new["model.safetensors"]
    assert old["config.json"] == new["config.json"]


def test_stale_shards_go_in_the_same_commit_and_other_files_stay(hub, model, tmp_path):
    push_folder(save_model_folder(model, tmp_path / "sharded", max_shard_size="20KB"), REPO)
    assert "model.safetensors.index.json" in published(hub)
    HfApi(token=TOKEN).upload_file(path_or_fileobj=b"mine", path_in_repo="NOTICE.txt", repo_id=REPO)
    push_folder(save_model_folder(model, tmp_path / "whole"), REPO)
    files = published(hub)
    assert [name for name in files if name.startswith("model") and "safetensors" in name] == ["model.safetensors"]
    assert files["NOTICE.txt"] == b"mine"
    assert len(commits(hub)) == 4


def test_codebooks_go_to_the_hub_and_back_and_leave_with_the_weights_they_are_of(hub, model, tmp_path):
    model = another(model, 1.0)  # other tests share the fixture
    one = Codebook(torch.randn(7, model.config.hidden_size), 2, {"encoder": encoder_fingerprint(model)})
    model.codebooks = {one.name: one}
    push_folder(save_model_folder(model, tmp_path / "model"), REPO)
    loaded = type(model).from_pretrained(REPO, cache_dir=tmp_path / "cache").eval()
    audio = torch.randn(4000)
    assert torch.equal(loaded.encode_units(audio), model.encode_units(audio))
    push_folder(save_model_folder(another(model), tmp_path / "second"), REPO)
    assert "units.safetensors" not in published(hub)


def test_a_branch_is_made_and_main_stays(hub, folder, model, tmp_path):
    first = push_folder(folder, REPO).commit.oid
    push_folder(save_model_folder(another(model), tmp_path / "second"), REPO, revision="wide")
    assert commits(hub)[0].oid == first
    assert commits(hub, revision="wide")[0].parent == first


def test_a_pull_request_leaves_main_alone(hub, folder, model, tmp_path):
    first = push_folder(folder, REPO).commit.oid
    result = push_folder(save_model_folder(another(model), tmp_path / "second"), REPO, create_pr=True)
    assert result.commit.pr_url.endswith("/discussions/1")
    assert commits(hub)[0].oid == first
    assert commits(hub, revision="refs/pr/1")[0].parent == first


# Who may


@pytest.mark.parametrize(
    ("token", "status"),
    [("hf_TestWrongToken01234567890", 401), (READER, 403), (OTHER, 403)],
    ids=["unknown", "read-only", "another user"],
)
def test_who_may_not_push_is_told_in_one_line_without_the_token(hub, folder, token, status, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PublishingError, match=f"could not push to {REPO}: the server answered {status}") as caught:
        push_folder(folder, REPO, token=token)
    assert REPO not in hub.store.repos
    assert "\n" not in str(caught.value)
    output = capfd.readouterr()
    for text in (str(caught.value), str(caught.value.__cause__), caplog.text, output.out, output.err):
        assert token not in text


def test_without_any_token_the_remedy_is_named(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(PublishingError, match="hf auth login"):
        push_folder(folder, REPO)
    with pytest.raises(PublishingError, match="hf auth login"):
        push_folder(folder, "light")


@pytest.mark.parametrize("token", ["", "hf_Test Blank01234567890123", "hf_TestLine0123456789\nhf_Second", "hf_é"])
def test_an_impossible_token_is_not_shown(hub, folder, token):
    with pytest.raises(PublishingError, match="access token") as caught:
        push_folder(folder, REPO, token=token)
    assert not token or token not in str(caught.value)
    assert hub.requests == []


def test_a_token_in_the_name_is_hidden(hub, folder):
    with pytest.raises(ValueError, match="access token") as caught:
        push_folder(folder, f"acme/{TOKEN}--x", token=TOKEN)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("text", [TOKEN, "hf_AbcdefghijklmnopqrstUVWXYZ012345"])
def test_a_token_in_a_file_stops_the_push(hub, folder, text):
    (folder / "notes.md").write_text(f"run with HF_TOKEN={text}")
    with pytest.raises(ValueError, match=r"notes\.md contains an access token") as caught:
        push_folder(folder, REPO)
    assert text not in str(caught.value)
    assert hub.requests == []


def test_nothing_published_holds_the_token(hub, folder):
    push_folder(folder, REPO, token=TOKEN)
    assert not any(TOKEN.encode() in content for content in published(hub).values())


def test_private_is_private(hub, folder):
    push_folder(folder, REPO, private=True)
    assert HfApi(token=TOKEN).model_info(REPO).private
    for token in (OTHER, False):
        assert not HfApi(token=token).repo_exists(REPO)


def test_a_private_push_never_lands_in_a_public_repository(hub, folder):
    HfApi(token=TOKEN).create_repo(REPO)
    with pytest.raises(PublishingError, match="exists and is public"):
        push_folder(folder, REPO, private=True)
    assert published(hub) == {}


def test_quota(folder, monkeypatch, hub):
    hub.store.quota = 1000
    with pytest.raises(PublishingError, match=r"403 \(Private repository storage limit reached") as caught:
        push_folder(folder, REPO, private=True)
    assert "\n" not in str(caught.value)
    assert published(hub) == {}


# Failures on the way


RECOVERABLE = [
    ("POST /api/repos/create", "status"),
    ("POST /api/repos/create", "lose-response"),
    ("GET /api/models/acme/light$", "status"),
    ("POST .*/preupload/", "status"),
    ("POST .*/preupload/", "drop-request"),
    ("POST .*/objects/batch", "status"),
    ("PUT /large/", "status"),
    ("PUT /large/", "drop-request"),
    ("PUT /large/", "lose-response"),
    ("PUT /large/", "slow"),
    ("POST .*/info/lfs/verify", "status"),
    ("POST /api/validate-yaml", "drop-response"),
    ("POST .*/commit/main", "status"),
    ("POST .*/commit/main", "drop-request"),
    ("POST .*/commit/main", "lose-response"),
    ("POST .*/commit/main", "drop-response"),
]


@pytest.mark.parametrize(("pattern", "kind"), RECOVERABLE, ids=lambda value: value.split("/")[-1])
def test_a_passing_failure_is_overcome(hub, folder, pattern, kind):
    fault = hub.faults.add(pattern, kind, times=2, seconds=0.05)
    push_folder(folder, REPO)
    assert fault.times < 2  # it did happen
    assert set(published(hub)) >= ALWAYS
    assert published(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(commits(hub)) == 2  # the answer that got lost did not lead to a second commit


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("POST .*/preupload/", "status"),
        ("PUT /large/", "status"),
        ("PUT /large/", "drop-request"),
        ("POST .*/commit/main", "status"),
        ("POST .*/commit/main", "drop-request"),
    ],
    ids=lambda value: value.split("/")[-1],
)
def test_a_lasting_failure_leaves_the_repository_as_it_was(hub, folder, model, tmp_path, pattern, kind):
    push_folder(folder, REPO)
    before = published(hub), commits(hub)
    hub.faults.add(pattern, kind, times=1000)
    second = save_model_folder(another(model), tmp_path / "second")
    with pytest.raises(PublishingError, match=f"could not push to {REPO}: .*try again later") as caught:
        push_folder(second, REPO)
    assert "\n" not in str(caught.value)
    assert (published(hub), commits(hub)) == before
    hub.faults.clear()
    push_folder(second, REPO)
    assert published(hub)["model.safetensors"] == (second / "model.safetensors").read_bytes()


def test_no_server_at_all(folder, monkeypatch, hub):
    with HubServer(ACCOUNTS) as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.endpoint)
    with pytest.raises(PublishingError, match="the connection failed"):
        push_folder(folder, REPO)


def test_two_pushes_at_once_give_one_or_the_other_never_a_mixture(hub, model, tmp_path):
    folders = [save_model_folder(another(model, factor), tmp_path / f"{factor}") for factor in (2.0, 3.0)]
    for index, folder in enumerate(folders):
        (folder / "NOTICE.txt").write_text(str(index))
    barrier, failures = threading.Barrier(2), []

    def push(folder):
        barrier.wait()
        try:
            push_folder(folder, REPO)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    whole = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    for commit in commits(hub)[:-1]:
        files = published(hub, revision=commit.oid)
        number = int(files["NOTICE.txt"])
        assert files["model.safetensors"] == whole[number]["model.safetensors"]


def test_a_commit_in_between_is_taken_into_account(hub, folder, model, tmp_path, monkeypatch):
    """Somebody overwrites the weights after our comparison: they must come up again although "unchanged" by it."""
    push_folder(folder, REPO)
    intruder = HfApi(token=TOKEN)
    other = save_model_folder(another(model), tmp_path / "other") / "model.safetensors"
    genuine, done = HfApi.create_commit, []

    def create_commit(api, *arguments, **options):
        if not done:
            done.append(True)
            intruder.upload_file(path_or_fileobj=other, path_in_repo="model.safetensors", repo_id=REPO)
        return genuine(api, *arguments, **options)

    (folder / "NOTICE.txt").write_text("new")
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    push_folder(folder, REPO)
    assert ("POST /api/models/acme/light/commit/main", 412) in hub.requests
    assert published(hub)["NOTICE.txt"] == b"new"
    assert published(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


# Bad folders


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        push_folder(tmp_path / "none", REPO)


def test_pickled_weights_are_no_weights(hub, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        push_folder(folder, REPO)
    assert hub.requests == []


def test_invalid_metadata_is_refused_before_anything_is_sent(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [unclosed\n---\ntext")
    with pytest.raises(ValueError, match=r"metadata of README\.md is not valid") as caught:
        push_folder(folder, REPO)
    assert "\n" not in str(caught.value)
    assert hub.requests == []


def test_metadata_that_only_the_hub_rejects(hub, folder):
    (folder / "README.md").write_text("---\nmodel-index: 3\n---\ntext")
    with pytest.raises(ValueError, match="metadata"):
        push_folder(folder, REPO)


def test_facts_given_at_the_push_reach_the_card(hub, folder):
    facts = replace(CardFacts.load(folder / "model_card.json"), loss=0.125)
    push_folder(folder, REPO, card=facts)
    assert "0.125" in published(hub)["README.md"].decode()
    assert load_file(folder / "model.safetensors")


@pytest.mark.parametrize("moment", ["stage", "_create"])
def test_a_folder_that_is_replaced_meanwhile_is_never_published_in_parts(hub, folder, model, monkeypatch, moment):
    place = publishing if moment == "stage" else upload.Upload
    run = getattr(place, moment)

    def replaced(*args, **kwargs):
        done = run(*args, **kwargs)
        save_model_folder(another(model), folder, overwrite=True)
        return done

    monkeypatch.setattr(place, moment, replaced)
    with pytest.raises(PublishingError, match="was replaced while it was read; nothing was published"):
        push_folder(folder, REPO)
    monkeypatch.undo()
    assert not hub.store.repos or [commit.title for commit in commits(hub)] == ["initial commit"]

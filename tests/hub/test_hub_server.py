"""The Hub-compatible server by itself: what it promises beyond what the other tests need of it, with bare requests."""

import hashlib
import json

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from .accounts import TOKEN
from .faults import Fault

REPO, LARGE, SMALL = "acme/files", bytes(range(256)) * 8, b"0123456789"


@pytest.fixture
def api(hub):
    api = HfApi(token=TOKEN)
    api.create_repo(REPO)
    files = {"large.safetensors": LARGE, "small.txt": SMALL, "folder/inner.txt": b"inner"}
    api.create_commit(REPO, [CommitOperationAdd(name, data) for name, data in files.items()], commit_message="files")
    return api


def test_regular_file(hub, api):
    head = api.model_info(REPO).sha
    answer = httpx2.head(f"{hub.endpoint}/{REPO}/resolve/main/small.txt")
    git_blob = hashlib.sha1(b"blob 10\0" + SMALL).hexdigest()
    assert (answer.status_code, answer.headers["etag"], answer.content) == (200, f'"{git_blob}"', b"")
    assert (answer.headers["x-repo-commit"], answer.headers["content-length"]) == (head, "10")
    assert httpx2.get(f"{hub.endpoint}/{REPO}/resolve/{head}/small.txt").content == SMALL


def test_large_file_is_a_redirect_to_storage(hub, api):
    answer = httpx2.get(f"{hub.endpoint}/{REPO}/resolve/main/large.safetensors", follow_redirects=False)
    sha256 = hashlib.sha256(LARGE).hexdigest()
    assert answer.status_code == 302
    assert answer.headers["x-linked-etag"] == f'"{sha256}"'
    assert answer.headers["x-linked-size"] == str(len(LARGE))
    assert answer.headers["location"].startswith(hub.storage)
    assert httpx2.get(answer.headers["location"]).content == LARGE


@pytest.mark.parametrize(
    ("wanted", "status", "part", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-99", 206, SMALL, "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("lines=1-2", 200, SMALL, None),
    ],
)
def test_ranges(hub, api, wanted, status, part, content_range):
    answer = httpx2.get(f"{hub.endpoint}/{REPO}/resolve/main/small.txt", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (status, part)
    assert answer.headers.get("content-range") == content_range


def test_what_is_not_there(hub, api):
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "none.txt")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "small.txt", revision="none")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("acme/none")


def test_tree_refs_and_history(hub, api):
    first = api.model_info(REPO).sha
    names = {item.path for item in api.list_repo_tree(REPO)}
    assert names == {".gitattributes", "large.safetensors", "small.txt", "folder"}
    assert [item.path for item in api.list_repo_tree(REPO, "folder")] == ["folder/inner.txt"]
    assert "folder/inner.txt" in api.list_repo_files(REPO)
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev/a b")
    api.create_commit(
        REPO, [CommitOperationDelete("folder/")], commit_message="less", revision="dev/a b", parent_commit=first
    )
    refs = {
        ref.name: ref.target_commit for ref in (*api.list_repo_refs(REPO).branches, *api.list_repo_refs(REPO).tags)
    }
    assert refs["main"] == refs["v1"] == first != refs["dev/a b"]
    assert [commit.title for commit in api.list_repo_commits(REPO, revision="dev/a b")][:2] == ["less", "files"]
    assert "folder/inner.txt" not in api.list_repo_files(REPO, revision="dev/a b")
    assert api.get_paths_info(REPO, ["large.safetensors"])[0].lfs.size == len(LARGE)


def test_a_commit_is_all_or_nothing(hub, api):
    lines = [
        {"key": "header", "value": {"summary": "broken"}},
        {"key": "deletedFile", "value": {"path": "small.txt"}},
        {"key": "lfsFile", "value": {"path": "x.safetensors", "oid": "0" * 64, "size": 1}},
    ]
    answer = httpx2.post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main",
        content="\n".join(json.dumps(line) for line in lines),
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status_code == 400
    assert "small.txt" in hub.files(REPO)


def test_a_commit_on_an_old_state_is_refused(hub, api):
    old = api.model_info(REPO).sha
    api.create_commit(REPO, [CommitOperationAdd("a.txt", b"a")], commit_message="a")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(REPO, [CommitOperationAdd("b.txt", b"b")], commit_message="b", parent_commit=old)
    assert caught.value.response.status_code == 412


def test_wrong_bytes_do_not_enter_the_storage(hub, api):
    answer = httpx2.put(f"{hub.storage}/large/{'0' * 64}", content=b"other")
    assert answer.status_code == 400
    assert "0" * 64 not in hub.store.large


def test_a_token_sent_to_the_storage_is_noticed(hub, api):
    address = f"{hub.storage}/large/{hashlib.sha256(LARGE).hexdigest()}"
    assert httpx2.get(address, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 400
    assert len(hub.unexpected) == 1
    hub.unexpected.clear()


def test_unknown_requests_are_noticed(hub):
    assert httpx2.get(f"{hub.endpoint}/api/nothing").status_code == 404
    assert hub.unexpected == ["GET /api/nothing"]
    hub.unexpected.clear()


def test_only_known_faults():
    with pytest.raises(ValueError, match="not one of"):
        Fault("GET", "explode")

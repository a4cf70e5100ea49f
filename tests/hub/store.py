"""What the Hub-compatible test server remembers: accounts, repositories with their commits, large files, collections.

Everything is in memory and behind one lock, so a commit is all or nothing, as on the Hub. No HTTP in here.
"""

import base64
import hashlib
import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png", ".onnx")
LFS_THRESHOLD = 10 * 1024 * 1024


class HubError(Exception):
    """An answer other than success: HTTP status, message, the Hub's `X-Error-Code` if any, more keys of the body."""

    def __init__(self, status: int, message: str, code: str | None = None, **details: str):
        super().__init__(message)
        self.status, self.message, self.code, self.details = status, message, code, details


@dataclass(frozen=True)
class Account:
    """Who a token belongs to. `role` is "write" or "read"."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One file of one commit. `sha256` is set for large files, whose bytes lie in the large-file store."""

    content: bytes
    sha256: str | None = None
    size: int = 0

    @property
    def oid(self) -> str:
        """Git's blob id: of the content, or of the pointer that stands for a large file."""
        content = self.content if self.sha256 is None else pointer(self.sha256, self.size)
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_large(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_THRESHOLD


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    author: str
    date: str
    tree: Mapping[str, Entry]


@dataclass
class Repo:
    id: str
    private: bool
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit id (whole or its first digits) stands for."""
        oid = self.branches.get(revision) or self.tags.get(revision)
        if oid is None and len(revision) >= 7:
            oid = next((oid for oid in self.commits if oid.startswith(revision)), None)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def open_pull_request(self, branch: str) -> str:
        """A new branch of the form refs/pr/N that starts where `branch` is."""
        number = 1 + sum(name.startswith("refs/pr/") for name in self.branches)
        self.branches[f"refs/pr/{number}"] = self.resolve(branch).oid
        return f"refs/pr/{number}"

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commits, oid = [], self.resolve(revision).oid
        while oid is not None:
            commits.append(self.commits[oid])
            oid = commits[-1].parent
        return commits


def owner(repo_id: str) -> str:
    """The namespace of a model or, under `spaces/`, of a Space."""
    return repo_id.removeprefix("spaces/").split("/")[0]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class HubStore:
    """The state of the server. `quota` is the number of bytes of large files a namespace may hold in private."""

    def __init__(self, accounts: Mapping[str, Account], quota: int | None = None):
        self.accounts, self.quota = dict(accounts), quota
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.lock = threading.RLock()
        self._ids = itertools.count(1)

    # Accounts and access

    def account(self, authorization: str | None) -> Account | None:
        """The account of an `Authorization` header, None without one.

        Raises:
            HubError: 401 for a token that nobody has.
        """
        if authorization is None:
            return None
        account = self.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def check_write(self, account: Account | None, namespace: str) -> None:
        if account is None:
            raise HubError(401, "Invalid username or password.")
        if namespace not in (account.name, *account.orgs) or account.role != "write":
            raise HubError(
                403,
                f"You don't have the rights to create a model under the namespace {namespace!r}"
                if namespace not in (account.name, *account.orgs)
                else "You must use a write token to do this",
            )

    def repo(self, repo_id: str, account: Account | None, *, write: bool = False) -> Repo:
        """A repository, if `account` may see it (and change it). To others a private one does not exist."""
        repo, namespace = self.repos.get(repo_id), owner(repo_id)
        member = account is not None and namespace in (account.name, *account.orgs)
        if repo is None or (repo.private and not member):
            raise HubError(404 if account else 401, "Repository not found", "RepoNotFound")
        if write:
            self.check_write(account, namespace)
        return repo

    # Repositories

    def create_repo(self, repo_id: str, account: Account | None, private: bool) -> Repo:
        with self.lock:
            self.check_write(account, owner(repo_id))
            if repo_id in self.repos:
                raise HubError(409, "You already created this model repo")
            repo = self.repos[repo_id] = Repo(repo_id, private)
            self._add_commit(repo, "main", "initial commit", "system", {".gitattributes": Entry(GITATTRIBUTES)})
            return repo

    def commit(self, repo: Repo, branch: str, account: Account, title: str, parent: str | None, operations: Iterable):
        """Apply `operations` ((kind, value) pairs of the commit's lines) to a branch: all of them or none.

        Raises:
            HubError: 412 if `parent` is given and is not the head, 400 if a large file was never uploaded.
        """
        with self.lock:
            if branch not in repo.branches:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = repo.branches[branch]
            if parent is not None and not head.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(repo.commits[head].tree)
            for kind, value in operations:
                self._apply(tree, kind, value)
            return self._add_commit(repo, branch, title, account.name, tree)

    def _apply(self, tree: dict[str, Entry], kind: str, value: dict) -> None:
        path = value["path"]
        if kind == "file":
            tree[path] = Entry(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if value["oid"] not in self.large:
                raise HubError(400, f"The LFS object {value['oid']} of {path} was not uploaded")
            tree[path] = Entry(b"", value["oid"], len(self.large[value["oid"]]))
        elif kind == "deletedFile":
            if tree.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif kind == "deletedFolder":
            for name in [name for name in tree if name.startswith(path.rstrip("/") + "/")]:
                del tree[name]
        else:
            raise HubError(400, f"Unknown operation {kind!r}")

    def _add_commit(self, repo: Repo, branch: str, title: str, author: str, tree: dict[str, Entry]) -> Commit:
        oid = hashlib.sha1(f"{repo.id} {next(self._ids)}".encode()).hexdigest()
        commit = Commit(oid, repo.branches.get(branch), title, author, now(), MappingProxyType(tree))
        repo.commits[oid] = commit
        repo.branches[branch] = oid
        return commit

    def content(self, entry: Entry) -> bytes:
        return entry.content if entry.sha256 is None else self.large[entry.sha256]

    # Large files

    def check_quota(self, repo: Repo, new_bytes: int) -> None:
        if self.quota is None or not repo.private:
            return
        namespace = owner(repo.id)
        used = {
            entry.sha256: entry.size
            for other in self.repos.values()
            if other.private and owner(other.id) == namespace
            for commit in other.commits.values()
            for entry in commit.tree.values()
            if entry.sha256
        }
        if sum(used.values()) + new_bytes > self.quota:
            raise HubError(
                403,
                "Private repository storage limit reached, please upgrade your plan to increase your private "
                "storage limit.",
            )

    def add_large(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "The SHA256 of the upload does not match")
        with self.lock:
            self.large[sha256] = content

    # Collections

    def create_collection(self, namespace: str, account: Account | None, data: dict) -> dict:
        with self.lock:
            self.check_write(account, namespace)
            for slug, other in self.collections.items():
                if (other["owner"]["name"], other["title"]) == (namespace, data["title"]):
                    raise HubError(409, f"This collection already exists: {slug}", slug=slug)
            name = "-".join(data["title"].lower().split())
            slug = f"{namespace}/{name}-{next(self._ids):024x}"
            self.collections[slug] = {
                "slug": slug,
                "title": data["title"],
                "description": data.get("description"),
                "private": data["private"],
                "owner": {"name": namespace},
                "items": [],
                "lastUpdated": now(),
                "position": 0,
                "theme": "orange",
                "upvotes": 0,
            }
            return self.collections[slug]

    def collection(self, slug: str, account: Account | None) -> dict:
        data = self.collections.get(slug)
        member = account is not None and slug.split("/")[0] in (account.name, *account.orgs)
        if data is None or (data["private"] and not member):
            raise HubError(404, "Collection not found")
        return data

    def add_item(self, slug: str, account: Account | None, item: dict, note: str | None) -> dict:
        with self.lock:
            collection = self.collection(slug, account)
            self.check_write(account, slug.split("/")[0])
            self.repo(("spaces/" if item["type"] == "space" else "") + item["id"], account)
            if any(other["id"] == item["id"] for other in collection["items"]):
                raise HubError(409, "This item is already in the collection")
            entry = {"_id": f"{next(self._ids):024x}", **item, "position": len(collection["items"])}
            collection["items"].append(entry | ({"note": {"text": note}} if note else {}))
            return collection

    def set_note(self, slug: str, account: Account | None, item: str, note: str) -> None:
        with self.lock:
            self.check_write(account, slug.split("/")[0])
            next(entry for entry in self.collection(slug, account)["items"] if entry["_id"] == item)["note"] = {
                "text": note
            }

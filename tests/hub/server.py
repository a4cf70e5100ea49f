"""A small Hub-compatible HTTP server on 127.0.0.1, for tests of uploads and downloads with the real client.

It imitates the part of the Hub's HTTP API that `huggingface_hub` 2.x and `transformers` 5.x use to publish and load
models (https://huggingface.co/docs/hub/api): whoami, create repo, model info, refs, revisions, branches, tags, tree,
commits, paths-info, validate-yaml, preupload, the Git LFS batch API
(https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md) with single-part, multi-part and verify, the NDJSON
commit (also as a pull request), resolve (HEAD, GET, ranges, ETags, `X-Repo-Commit`), collections, gated repositories
(`Repo.gated`, to everybody); and data sets, by the same routes. Large files live
on a second port, as on the Hub they live on another host: a client that sends its token there is caught. Not
imitated: Xet (set `HF_HUB_DISABLE_XET=1`), discussions.

    with HubServer({"hf_writer": Account("alice", orgs=("acme",))}) as hub:
        ...  # HF_ENDPOINT=hub.endpoint

`python -m tests.hub.server` serves until interrupted and prints the endpoint and a token.
"""

import json
import re
import threading
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs

import yaml

from .faults import Faults
from .handler import Handler, route
from .store import Account, Entry, HubError, HubStore, Repo, is_large, owner


class StorageHandler(Handler):
    """The port that stands for the storage behind the Hub: signed addresses, no tokens."""

    def dispatch(self, path: str) -> None:
        if "Authorization" in self.headers:
            self.hub.unexpected.append(f"a token was sent to the storage: {self.command} {path}")
            raise HubError(400, "Only one auth mechanism allowed")
        super().dispatch(path)

    @route("GET", "/large/{sha256}")
    def download(self, sha256: str):
        self.send_file(self.hub.store.large[sha256], {"ETag": f'"{sha256}"'})

    @route("PUT", "/large/{sha256}")
    def upload(self, sha256: str):
        self.hub.store.add_large(sha256, self.body)
        self.send(headers={"ETag": f'"{sha256}"'})

    @route("PUT", "/large/{sha256}/{part}")
    def upload_part(self, sha256: str, part: str):
        self.hub.parts[sha256, int(part)] = self.body
        self.send(headers={"ETag": f'"part-{part}"'})


class ApiHandler(Handler):
    """The Hub itself."""

    def dispatch(self, path: str) -> None:
        """Data sets are served as models are; the two share their names."""
        if path.startswith("/api/datasets/"):
            path = path.replace("/api/datasets/", "/api/models/", 1)
        super().dispatch(path.removeprefix("/datasets"))

    @property
    def account(self) -> Account | None:
        return self.hub.store.account(self.headers.get("Authorization"))

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    def repo(self, namespace: str, name: str, *, write: bool = False) -> Repo:
        return self.hub.store.repo(f"{namespace}/{name}", self.account, write=write)

    # Accounts and cards

    @route("GET", "/api/agent-harnesses")
    def agent_harnesses(self):
        """The client asks which programs may be using it, for statistics: none that the server knows."""
        self.send_json({"standardEnvVars": [], "harnesses": {}})

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        account = self.account
        if account is None:
            raise HubError(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": account.role} for name in account.orgs]
        token = {"accessToken": {"displayName": "test", "role": account.role}}
        self.send_json({"type": "user", "name": account.name, "orgs": orgs, "auth": {"type": "access_token", **token}})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        """Only what can be said without the Hub's schema: the block parses, and `model-index` has its parts."""
        match = re.match(r"---\n(.*?)\n---", self.json["content"], re.DOTALL)
        if match is None:
            return self.send_json({"warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            data = yaml.safe_load(match.group(1))
            for model in data.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"], "task.type"
                    assert result["dataset"]["type"], "dataset.type"
                    assert result["dataset"]["name"], "dataset.name"
                    assert all("value" in metric and "type" in metric for metric in result["metrics"]), "metrics"
        except (yaml.YAMLError, KeyError, AssertionError, TypeError) as error:
            return self.send_json({"errors": [{"message": f"Bad metadata: {error}"}]}, 400)
        return self.send_json({"errors": [], "warnings": []})

    # Repositories

    @route("POST", "/api/repos/create")
    def create_repo(self):
        data, account = self.json, self.account
        namespace = data.get("organization") or (account.name if account else "")
        repo_id = f"{'spaces/' if data.get('type') == 'space' else ''}{namespace}/{data['name']}"
        try:
            self.hub.store.create_repo(repo_id, account, data.get("visibility") == "private")
        except HubError as error:
            if error.status != 409:
                raise
            return self.send_json({"error": error.message, "url": f"{self.hub.endpoint}/{repo_id}"}, 409)
        name = repo_id.removeprefix("spaces/")
        return self.send_json({"url": f"{self.hub.endpoint}/{repo_id}", "name": name})

    def send_info(self, repo: Repo, revision: str) -> None:
        commit = repo.resolve(revision)
        card = commit.tree.get("README.md")
        match = re.match(r"---\n(.*?)\n---", card.content.decode(), re.DOTALL) if card else None
        self.send_json(
            {
                "id": repo.id.removeprefix("spaces/"),
                "modelId": repo.id,
                "author": owner(repo.id),
                "sha": commit.oid,
                "lastModified": commit.date,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "cardData": yaml.safe_load(match.group(1)) if match else {},
                "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
            }
        )

    @route("GET", "/api/models/{namespace}/{name}")
    def model_info(self, namespace: str, name: str):
        self.send_info(self.repo(namespace, name), "main")

    @route("GET", "/api/models/{namespace}/{name}/revision/{revision}")
    def model_info_at(self, namespace: str, name: str, revision: str):
        self.send_info(self.repo(namespace, name), revision)

    @route("GET", "/api/models/{namespace}/{name}/refs")
    def refs(self, namespace: str, name: str):
        repo = self.repo(namespace, name)

        def describe(kind: str, refs: dict[str, str]) -> list[dict]:
            return [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": oid} for key, oid in refs.items()]

        self.send_json(
            {"branches": describe("heads", repo.branches), "converts": [], "tags": describe("tags", repo.tags)}
        )

    @route("POST", "/api/models/{namespace}/{name}/branch/{branch}")
    def create_branch(self, namespace: str, name: str, branch: str):
        repo = self.repo(namespace, name, write=True)
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = repo.resolve(self.json.get("startingPoint", "main")).oid
        self.send_json({})

    @route("POST", "/api/models/{namespace}/{name}/tag/{revision}")
    def create_tag(self, namespace: str, name: str, revision: str):
        repo = self.repo(namespace, name, write=True)
        repo.tags[self.json["tag"]] = repo.resolve(revision).oid
        self.send_json({})

    @route("GET", "/api/models/{namespace}/{name}/commits/{revision}")
    def commits(self, namespace: str, name: str, revision: str):
        self.send_json(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": "",
                    "authors": [{"user": commit.author}],
                    "date": commit.date,
                }
                for commit in self.repo(namespace, name).history(revision)
            ]
        )

    @staticmethod
    def describe_file(path: str, entry: Entry) -> dict:
        size = entry.size if entry.sha256 else len(entry.content)
        lfs = {"lfs": {"oid": entry.sha256, "size": size, "pointerSize": 134}} if entry.sha256 else {}
        return {"type": "file", "path": path, "oid": entry.oid, "size": size, **lfs}

    @route("GET", "/api/models/{namespace}/{name}/tree/{revision}")
    def tree(self, namespace: str, name: str, revision: str, path: str = ""):
        commit = self.repo(namespace, name).resolve(revision)
        prefix = f"{path}/" if path else ""
        inside = {name: entry for name, entry in sorted(commit.tree.items()) if name.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        items, folders = [], set()
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        for file, entry in inside.items():
            rest = file[len(prefix) :].split("/")
            depths = range(1, len(rest) if recursive else min(len(rest), 2))
            folders |= {prefix + "/".join(rest[:depth]) for depth in depths}
            if len(rest) == 1 or recursive:
                items.append(self.describe_file(file, entry))
        self.send_json(items + [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in sorted(folders)])

    @route("GET", "/api/models/{namespace}/{name}/tree/{revision}/{path*}")
    def tree_inside(self, namespace: str, name: str, revision: str, path: str):
        self.tree(namespace, name, revision, path)

    @route("POST", "/api/models/{namespace}/{name}/paths-info/{revision}")
    def paths_info(self, namespace: str, name: str, revision: str):
        tree = self.repo(namespace, name).resolve(revision).tree
        wanted = parse_qs(self.body.decode())["paths"]
        self.send_json([self.describe_file(path, tree[path]) for path in wanted if path in tree])

    # Uploads

    @route("POST", "/api/models/{namespace}/{name}/preupload/{revision}")
    def preupload(self, namespace: str, name: str, revision: str):
        repo = self.repo(namespace, name, write=True)
        tree = repo.resolve(revision).tree
        files = []
        for file in self.json["files"]:
            entry = tree.get(file["path"])
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            info = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(info | ({"oid": entry.etag} if entry else {}))
        self.send_json({"files": files})

    @route("POST", "/{namespace}/{name}.git/info/lfs/objects/batch")
    def lfs_batch(self, namespace: str, name: str):
        repo, store = self.repo(namespace, name, write=True), self.hub.store
        objects = self.json["objects"]
        missing = [item for item in objects if item["oid"] not in store.large]
        store.check_quota(repo, sum(item["size"] for item in missing))
        answers = [{"oid": item["oid"], "size": item["size"]} for item in objects if item not in missing]
        for item in missing:
            answers.append({"oid": item["oid"], "size": item["size"], "actions": self.upload_actions(repo, item)})
        self.send_json({"transfer": "basic", "objects": answers})

    def upload_actions(self, repo: Repo, item: dict) -> dict:
        """Where to put one large file: in one piece, or in parts of `HubServer.part_size` bytes."""
        address, size = f"{self.hub.storage}/large/{item['oid']}", self.hub.part_size
        verify = {"href": f"{self.hub.endpoint}/{repo.id}.git/info/lfs/verify"}
        if size is None or item["size"] <= size:
            return {"upload": {"href": address}, "verify": verify}
        parts = {str(i + 1): f"{address}/{i + 1}" for i in range(-(-item["size"] // size))}
        complete = f"{self.hub.endpoint}/lfs-complete/{item['oid']}"
        return {"upload": {"href": complete, "header": {"chunk_size": str(size), **parts}}, "verify": verify}

    @route("POST", "/lfs-complete/{sha256}")
    def complete_upload(self, sha256: str):
        numbers = [part["partNumber"] for part in self.json["parts"]]
        self.hub.store.add_large(sha256, b"".join(self.hub.parts.pop((sha256, number)) for number in numbers))
        self.send_json({})

    @route("POST", "/{namespace}/{name}.git/info/lfs/verify")
    def lfs_verify(self, namespace: str, name: str):
        self.repo(namespace, name, write=True)
        content = self.hub.store.large.get(self.json["oid"])
        if content is None or len(content) != self.json["size"]:
            raise HubError(404, "The upload is not complete")
        self.send_json({})

    @route("POST", "/api/models/{namespace}/{name}/commit/{branch}")
    def commit(self, namespace: str, name: str, branch: str):
        repo = self.repo(namespace, name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
        extra = {}
        if self.query.get("create_pr") == ["1"]:
            branch = repo.open_pull_request(branch)
            extra["pullRequestUrl"] = f"{self.hub.endpoint}/{repo.id}/discussions/{branch.rsplit('/', 1)[-1]}"
        commit = self.hub.store.commit(
            repo, branch, self.account, header["summary"], header.get("parentCommit"), operations
        )
        url = f"{self.hub.endpoint}/{repo.id}/commit/{commit.oid}"
        self.send_json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": "", **extra})

    # Downloads

    @route("GET", "/{namespace}/{name}/resolve/{revision}/{path*}")
    def resolve(self, namespace: str, name: str, revision: str, path: str):
        repo = self.repo(namespace, name)
        if repo.gated:
            self.refuse_gated(repo.id)
        commit = repo.resolve(revision)
        entry = commit.tree.get(path)
        if entry is None:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send(b"Entry not found", 404, error | {"X-Repo-Commit": commit.oid}, kind="text/plain")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.oid}"'}
        if entry.sha256 is None:
            return self.send_file(entry.content, headers)
        location = f"{self.hub.storage}/large/{entry.sha256}"
        linked = {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"', "Location": location}
        return self.send(b"", 302, headers | linked, kind="text/plain")

    def refuse_gated(self, repo_id: str) -> None:
        message = f"Access to {repo_id} is restricted. You must have access to it and be authenticated to access it."
        raise HubError(403 if self.account else 401, message, "GatedRepo")

    # Collections

    @route("POST", "/api/collections")
    def create_collection(self):
        self.send_json(self.hub.store.create_collection(self.json["namespace"], self.account, self.json))

    @route("GET", "/api/collections/{namespace}/{name}")
    def get_collection(self, namespace: str, name: str):
        self.send_json(self.hub.store.collection(f"{namespace}/{name}", self.account))

    @route("POST", "/api/collections/{namespace}/{name}/items")
    def add_item(self, namespace: str, name: str):
        data = self.json
        self.send_json(self.hub.store.add_item(f"{namespace}/{name}", self.account, data["item"], data.get("note")))

    @route("PATCH", "/api/collections/{namespace}/{name}/items/{item}")
    def update_item(self, namespace: str, name: str, item: str):
        self.hub.store.set_note(f"{namespace}/{name}", self.account, item, self.json["note"])
        self.send_json({"success": True})


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: "HubServer", handler: type[Handler]):
        self.hub = hub
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubServer:
    """A running server.

    Args:
        accounts: token → [`Account`].
        quota: bytes of large files that a namespace may keep in private repositories; None: no limit.
        part_size: large files above this many bytes are uploaded in parts; None: never.

    Attributes:
        endpoint: what `HF_ENDPOINT` must say.
        store: accounts, repositories, collections; tests look in here for the truth.
        faults: `faults.add(pattern, kind, …)`, see [`hub.faults.Fault`].
        requests: ("METHOD /path", status) of every request so far; never a token.
        unexpected: requests that it does not know, and tokens sent where they do not belong: should stay empty.
    """

    def __init__(self, accounts: dict[str, Account], quota: int | None = None, part_size: int | None = None):
        self.store, self.faults, self.part_size = HubStore(accounts, quota), Faults(), part_size
        self.requests: list[tuple[str, int]] = []
        self.unexpected: list[str] = []
        self.parts: dict[tuple[str, int], bytes] = {}

    def __enter__(self) -> "HubServer":
        self._listeners = [Listener(self, ApiHandler), Listener(self, StorageHandler)]
        self.endpoint, self.storage = (listener.address for listener in self._listeners)
        return self

    def __exit__(self, *exception) -> None:
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()

    def log(self, method: str, path: str, status: int) -> None:
        self.requests.append((f"{method} {path}", status))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds: path → content."""
        tree = self.store.repos[repo_id].resolve(revision).tree
        return {path: self.store.content(entry) for path, entry in tree.items()}


if __name__ == "__main__":
    with HubServer({"hf_writer": Account("alice", orgs=("acme",))}) as server:
        print(f"export HF_ENDPOINT={server.endpoint} HF_TOKEN=hf_writer HF_HUB_DISABLE_XET=1", flush=True)
        threading.Event().wait()

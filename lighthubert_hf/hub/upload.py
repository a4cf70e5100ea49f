"""One push to one repository of the Hub: all of it in a single commit, or nothing.

The files are uploaded first and become visible by a commit on top of the state that they were compared with. If
somebody else commits in between, the comparison is made again. Errors are one line, and never show a token.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from lighthubert_hf import __version__
from lighthubert_hf.absent import LOG_IN

# Seconds between the attempts at a request that the client does not itself repeat.
WAITS = (0.5, 1.0, 2.0, 4.0)
# Weights and codebooks that an earlier push left and this one does not bring would be mistaken for its own.
_STALE = ("model*.safetensors", "model.safetensors.index.json", "units.safetensors")
_REMEDIES = {
    401: LOG_IN,
    403: "use a token that may write there, or free storage; the server's message says which",
    404: "check the name and that the token may see the repository",
}

# Errors that may be gone at the next attempt; half an answer is a JSONDecodeError.
_PASSING = (HfHubHTTPError, httpx2.TransportError, json.JSONDecodeError)

T = TypeVar("T")


class PublishingError(ValueError):
    """A push that failed. One line: what, why, and what helps. The repository is as it was before."""


def file_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir()))


def clean_token(token: str | bool | None) -> str | bool | None:
    """The token as given, if it can be sent at all. The client's own error would show it."""
    if isinstance(token, str) and (not token.strip() or not token.strip().isascii() or len(token.split()) != 1):
        raise PublishingError(
            "the access token is empty or holds blanks or other characters no token has; copy it again"
        )
    return token.strip() if isinstance(token, str) else token


def secret(token: str | bool | None) -> str | None:
    """The characters that must not appear anywhere."""
    return token if isinstance(token, str) else (None if token is False else get_token())


@dataclass
class Upload:
    """One push to one repository."""

    repo_id: str
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    commit_message: str | None = None
    create_pr: bool = False
    commit_description: str | None = None

    def __post_init__(self):
        self.api = HfApi(token=self.token, library_name="lighthubert_hf", library_version=__version__)
        self._full_id = self.repo_id if "/" in self.repo_id else None

    def full_id(self) -> str:
        """The repository's name with its owner."""
        if self._full_id is None:
            with one_line_errors(self.repo_id, self.token):
                self._full_id = f"{retried(self.api.whoami)['name']}/{self.repo_id}"
        return self._full_id

    def push(
        self, folder: Path, defaults: frozenset[str] = frozenset(), check: Callable[[], None] = lambda: None
    ) -> CommitInfo:
        """Create the repository if there is none, and commit the files of `folder`.

        Args:
            defaults: files of `folder` that give way to what the repository has.
            check: raises if the files, once they were read, are not to be committed after all.
        """

        def operations(remote: frozenset[str]) -> list:
            changes = self._operations(folder, defaults, remote)
            check()  # the client has read all of them, for their checksums
            return changes

        with one_line_errors(self.full_id(), self.token):
            self._create()
            return self.commit(operations)

    def _create(self) -> None:
        retried(lambda: self.api.create_repo(self.full_id(), private=self.private, exist_ok=True))
        if self.private and not retried(lambda: self.api.model_info(self.full_id())).private:
            raise PublishingError(
                f"{self.full_id()} exists and is public, but a private push was asked for; nothing pushed"
            )
        if self.revision is not None and not self.revision.startswith("refs/pr"):
            retried(lambda: self.api.create_branch(self.full_id(), branch=self.revision, exist_ok=True))

    def _operations(self, folder: Path, defaults: frozenset[str], remote: frozenset[str]) -> list:
        names = [name for name in file_names(folder) if not (name in defaults and name in remote)]
        stale = [name for name in sorted(remote) if any(fnmatch(name, p) for p in _STALE) and name not in names]
        return [CommitOperationAdd(name, str(folder / name)) for name in names] + [
            CommitOperationDelete(name) for name in stale
        ]

    def commit(self, operations: Callable[[frozenset[str]], list]) -> CommitInfo:
        """One commit of `operations(files there are)`, on top of the state that these were made for.

        The client repeats failed uploads, but not the commit. It is repeated here from the beginning, so that an
        answer lost on the way leads to "nothing has changed", and somebody else's commit to a new comparison.
        """
        where = {"repo_id": self.full_id(), "revision": self.revision, "create_pr": self.create_pr}
        for wait in (*WAITS, None):
            head = retried(lambda: self.api.model_info(self.full_id(), revision=self.revision)).sha
            files = retried(lambda: self.api.list_repo_files(self.full_id(), revision=head))  # noqa: B023 (called here)
            changes = operations(frozenset(files))
            additions = [change for change in changes if isinstance(change, CommitOperationAdd)]
            self.api.preupload_lfs_files(additions=additions, free_memory=False, **where)
            try:
                return self.api.create_commit(
                    operations=changes,
                    commit_message=self.commit_message or "Upload model with lighthubert_hf",
                    commit_description=self.commit_description,
                    parent_commit=head,
                    **where,
                )
            except _PASSING as error:
                if wait is None or self.create_pr or not _may_pass(error, conflicts=True):
                    raise
            time.sleep(wait)
        raise AssertionError("unreachable")


def _may_pass(error: Exception, conflicts: bool = False) -> bool:
    """Whether an attempt is worth repeating; `conflicts`: also if somebody else committed meanwhile."""
    if not isinstance(error, HfHubHTTPError):
        return True
    status = error.response.status_code
    return status >= 500 or (conflicts and status in (409, 412))


def retried(action: Callable[[], T]) -> T:
    """`action()`, repeated on server errors and lost connections."""
    for wait in (*WAITS, None):
        try:
            return action()
        except _PASSING as error:
            if wait is None or not _may_pass(error):
                raise
        time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def one_line_errors(repo_id: str, token: str | bool | None) -> Iterator[None]:
    """Turn what the client raises into a `PublishingError` of one line, without the token."""
    try:
        yield
    except PublishingError:
        raise
    except (
        OSError,  # HfHubHTTPError, no token, offline mode
        httpx2.HTTPError,
        ValueError,  # a name that cannot be, metadata that the Hub rejects
        RuntimeError,  # an upload that failed for good
    ) as error:
        message = f"could not push to {repo_id}: {_describe(error)}"
        hidden = secret(token)
        message = message.replace(hidden, "***") if hidden else message
        raise PublishingError(message) from error


def _describe(error: BaseException) -> str:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            text = " ".join((cause.server_message or str(cause)).split())
            remedy = _REMEDIES.get(status, "try again later" if status >= 500 else "try again")
            return f"the server answered {status} ({text}); {remedy}"
        if isinstance(cause, httpx2.TransportError):
            return f"the connection failed ({' '.join(str(cause).split()) or type(cause).__name__}); try again later"
    return " ".join(str(error).split())

"""Pushing models to the Hub: everything a reader needs, in one commit, or nothing.

The repository is never half-updated: the files are uploaded first and become visible by a single commit on top of the
state they were compared with. If somebody else commits in between, the comparison is made again.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from . import __version__
from .model_card import CardFacts
from .model_folder import (
    check_no_secrets,
    complete_folder,
    stage,
    write_model,
    written_beside,
)

# Seconds between the attempts at a request that the client does not itself repeat.
WAITS = (0.5, 1.0, 2.0, 4.0)
# Weights that an earlier push left and this one does not bring would be mistaken for its own.
_STALE = ("model*.safetensors", "model.safetensors.index.json")
_REMEDIES = {
    401: "give a valid token (`hf auth login`, HF_TOKEN or --token)",
    403: "use a token that may write there, or free storage; the server's message says which",
    404: "check the name and that the token may see the repository",
}

T = TypeVar("T")


class PublishingError(ValueError):
    """A push that failed. One line: what, why, and what helps. The repository is as it was before."""


@dataclass(frozen=True)
class PushResult:
    """What a push did, or in a dry run would do.

    Attributes:
        repo_id: the repository.
        files: what was committed, or would be.
        left_out: files of the folder that are not published, with the reasons.
        commit: the commit on the Hub; `None` after a dry run.
        folder: where a dry run wrote the files.
    """

    repo_id: str
    files: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    commit: CommitInfo | None = None
    folder: Path | None = None


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    card: CardFacts | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    dry_run: str | Path | None = None,
) -> PushResult:
    """Publish a model folder in one commit, after adding what it lacks (see `lighthubert_hf.model_folder`).

    The folder itself stays as it is. Its card is rendered again with the repository's name, unless it was edited.

    Args:
        folder: a folder that `save_model_folder` or `save_pretrained` wrote.
        repo_id: "owner/name", or "name" for one's own.
        card: facts for the card; by default those in the folder.
        private: whether a new repository is private. An existing one keeps what it is; if that is public and `private`
            is asked for, nothing is pushed.
        token: access token; by default the one of `hf auth login` or `HF_TOKEN`.
        revision: branch, made from the main one if there is none of this name.
        create_pr: open a pull request instead of committing.
        dry_run: a folder to write exactly what would be uploaded to, instead of uploading. Needs no network.

    Raises:
        PublishingError: if the Hub refuses or cannot be reached.
        ValueError, FileNotFoundError: if the folder holds no complete model, or an access token.
    """
    token = clean_token(token)
    if dry_run is not None:
        with written_beside(dry_run) as target:
            left_out, _ = prepare(folder, target, repo_id, card=card, token=token, link=False)
            return PushResult(repo_id, _names(target), left_out, folder=Path(dry_run))
    upload = Upload(repo_id, private, token, revision, commit_message, create_pr)
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        left_out, defaults = prepare(folder, target, upload.full_id(), card=card, token=token, link=True)
        return PushResult(upload.full_id(), _names(target), left_out, upload.push(target, defaults))


def check_folder(
    folder: str | Path, repo_id: str, *, card: CardFacts | None = None, token: str | bool | None = None
) -> None:
    """Raise what `push_folder` would raise on account of the folder, without pushing."""
    with tempfile.TemporaryDirectory() as target:
        prepare(folder, Path(target), repo_id, card=card, token=token, link=True)


def prepare(
    folder: str | Path, target: Path, repo_id: str, *, card: CardFacts | None, token: str | bool | None, link: bool
) -> tuple[dict[str, str], frozenset[str]]:
    """Put what is to be uploaded into `target`. Returns what is left out, and which files are only defaults."""
    left_out = stage(folder, target, link=link)
    defaults = complete_folder(target, card, repo_id)
    check_no_secrets(target, secret(token))
    return left_out, defaults


def push_model(
    model,
    repo_id: str,
    *,
    card: CardFacts | None = None,
    processor=None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
) -> CommitInfo:
    """What `model.push_to_hub` does: [`~transformers.PreTrainedModel.push_to_hub`], with the complete folder.

    Args:
        card: facts for the card. The card is rendered anew, since another model's numbers would not be this one's.
        processor: feature extractor or processor to publish with it. Without it, one that is already in the
            repository is kept, and where there is none the default feature extractor is added.
        tags: more tags for the card.

    Raises:
        PublishingError: if the Hub refuses or cannot be reached.
    """
    token = clean_token(token)
    facts = card or CardFacts()
    facts = replace(facts, tags=(*facts.tags, *(tags or ())))
    with tempfile.TemporaryDirectory() as target:
        write_model(model, Path(target), processor, max_shard_size)
        upload = Upload(repo_id, private, token, revision, commit_message, create_pr, commit_description)
        defaults = complete_folder(Path(target), facts, upload.full_id())
        check_no_secrets(Path(target), secret(token))
        return upload.push(Path(target), defaults)


def _names(folder: Path) -> tuple[str, ...]:
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

    def push(self, folder: Path, defaults: frozenset[str] = frozenset()) -> CommitInfo:
        """Create the repository if there is none, and commit the files of `folder`.

        Args:
            defaults: files of `folder` that give way to what the repository has.
        """
        with one_line_errors(self.full_id(), self.token):
            self._create()
            return self.commit(lambda remote: self._operations(folder, defaults, remote))

    def _create(self) -> None:
        retried(lambda: self.api.create_repo(self.full_id(), private=self.private, exist_ok=True))
        if self.private and not retried(lambda: self.api.model_info(self.full_id())).private:
            raise PublishingError(
                f"{self.full_id()} exists and is public, but a private push was asked for; nothing pushed"
            )
        if self.revision is not None and not self.revision.startswith("refs/pr"):
            retried(lambda: self.api.create_branch(self.full_id(), branch=self.revision, exist_ok=True))

    def _operations(self, folder: Path, defaults: frozenset[str], remote: frozenset[str]) -> list:
        names = [name for name in _names(folder) if not (name in defaults and name in remote)]
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


# Errors that may be gone at the next attempt; half an answer is a JSONDecodeError.
_PASSING = (HfHubHTTPError, httpx2.TransportError, json.JSONDecodeError)


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
    """Turn what the client raises into a [`PublishingError`] of one line, without the token."""
    try:
        yield
    except PublishingError:
        raise
    except (
        HfHubHTTPError,
        httpx2.HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        ValueError,  # of the client: a name that cannot be, metadata the Hub rejects
        RuntimeError,  # of the client: an upload that failed for good
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

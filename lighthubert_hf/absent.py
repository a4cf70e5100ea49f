"""One wording for what is asked for by name and cannot be had: folders, files, and repositories of the Hub.

Whoever loads a model, a data set, a tokenizer or a checkpoint by name says here that it is missing, misspelt, private
or gated, or that the Hub is out of reach: one line with the name and the remedy.
"""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

# What every message about access advises; no command has an option for a token, which would stand in its history.
LOG_IN = "log in (`hf auth login`, or a token in HF_TOKEN)"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MOST_ENTRIES = 10_000  # of a folder that are compared with a misspelt name


def absent(
    what: str, name: str | os.PathLike, error: BaseException | None = None, *, revision: str | None = None
) -> FileNotFoundError:
    """The error to raise where `name` gave nothing.

    Args:
        what: The kind of thing, for example "model" or "data set".
        name: As the user gave it: a folder or file, or the name of a repository.
        error: What the libraries said; without one nothing but this machine was looked at.
        revision: That was asked for.
    """
    name = os.fspath(name)
    if os.path.exists(os.path.expanduser(name)):
        reason = "" if error is None else f": {reason_of(error)}"
        return FileNotFoundError(f"{name} is there, but no complete {what}{reason}")
    if error is None or not is_hub_name(name):
        return FileNotFoundError(f"there is no {what} {name}; {suggestion(name) or 'check the path'}")
    return FileNotFoundError(_from_hub(what, name, error, revision))


def is_hub_name(name: str) -> bool:
    """Whether `name` can be that of a repository, `NAME` or `OWNER/NAME`, by its form."""
    return _HUB_ID.fullmatch(name) is not None


def suggestion(name: str | os.PathLike) -> str | None:
    """ "did you mean …?", if there is something here whose path is nearly that."""
    near = _nearest(os.fspath(name))
    return near and f"did you mean {near}?"


def reason_of(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _from_hub(what: str, name: str, error: BaseException, revision: str | None) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))

    def found(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    # `datasets` cuts off what it was caused by.
    lost = next((str(cause) for cause in causes if type(cause).__name__ == "DatasetNotFoundError"), "")
    here = suggestion(name)
    check = f"{here} Otherwise" if here else "check the name, and"
    if found(GatedRepoError) or "is a gated dataset" in lost:
        page = f"{constants.ENDPOINT}/{'datasets/' if what == 'data set' else ''}{name}"
        return f"the {what} {name} on the Hub is gated; ask for access on {page} and {LOG_IN}"
    if found(RepositoryNotFoundError) or "doesn't exist on the Hub" in lost:
        who = "for this token" if get_token() else "without a token"
        return (
            f"there is no {what} {name}, neither here nor, {who}, on the Hub: it is misspelt or private; "
            f"{check} {LOG_IN}"
        )
    if found(RevisionNotFoundError):
        return f"the {what} {name} on the Hub has no revision {revision or 'main'}; check its branches, tags, commits"
    answer = found(HfHubHTTPError)
    status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
    if status in (401, 403):
        return f"the Hub refuses the token for the {what} {name} ({status}); {LOG_IN} with one that may read it"
    if status is not None and status >= 500:
        return f"the Hub answered {status} for the {what} {name}; try again later"
    if constants.is_offline_mode():
        return (
            f"there is no {what} {name} here, and HF_HUB_OFFLINE keeps the Hub from being asked; "
            f"{here or 'check the name'}{' Otherwise' if here else ' or'} unset HF_HUB_OFFLINE"
        )
    if found(LocalEntryNotFoundError, ConnectionError) or _transport_error(causes):
        fault = _transport_error(causes)
        why = f" ({reason_of(fault)})" if fault else ""
        return f"there is no {what} {name} here, and the Hub cannot be reached{why}; {check} check the connection"
    if found(EntryNotFoundError):
        return f"the repository {name} on the Hub holds no {what}; check the name and the revision"
    return f"the {what} {name} cannot be loaded: {reason_of(error)}"


def _transport_error(causes: list[BaseException]) -> BaseException | None:
    """What the HTTP client says that huggingface_hub uses at present."""
    import httpx2

    return next((cause for cause in causes if isinstance(cause, httpx2.TransportError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _nearest(name: str) -> str | None:
    """The path of something that is there and is called nearly so, part by part."""
    path = Path(os.path.expanduser(name))
    here, changed = Path(path.anchor), False
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (here / part).exists():
            try:
                names = os.listdir(here)
            except OSError:
                return None
            if len(names) > _MOST_ENTRIES:
                return None
            alike = [one for one in names if one.casefold() == part.casefold()]
            alike = alike or difflib.get_close_matches(part, names, n=1, cutoff=0.7)
            if not alike:
                return None
            part, changed = alike[0], True
        here = here / part
    return str(here) if changed else None

"""Where a checkpoint comes from: a file, a folder, or the Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from lighthubert_hf.absent import absent, is_hub_name

from .checkpoints.errors import ConversionError

# What the HTTP library raises that huggingface_hub uses at present, when the Hub cannot be reached.
_HTTP_ERROR = HfHubHTTPError.__bases__[0]

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[\w./-]+))?")


def resolve(source: str | Path, revision: str | None = None, what: str = "model") -> Path:
    """The file or folder that `source` names, fetched if it is on the Hub.

    Args:
        source: a file, a folder, `owner/name` on the Hub, or `owner/name:file.pt` where the repository holds several.
        revision: branch, tag or commit on the Hub.
        what: what messages call it.

    Raises:
        FileNotFoundError: if it is neither here nor on the Hub, or the Hub cannot be reached.
        ConversionError: if the repository holds several checkpoints.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ConversionError(f"{source} is here, not on the Hub, and has no revision {revision!r}; leave it out")
        return path
    match = _HUB_ID.fullmatch(str(source))
    if match is None or not is_hub_name(match["repo"]):
        raise absent(what, source)
    try:
        return _fetch(match["repo"], match["file"], revision)
    except RemoteEntryNotFoundError:
        name = match["file"] or what
        raise FileNotFoundError(
            f"the repository {match['repo']} on the Hub holds no {name}; check the name and the revision"
        ) from None
    except (_HTTP_ERROR, OSError) as error:
        raise absent(what, match["repo"], error, revision=revision) from None


def _fetch(repo: str, file: str | None, revision: str | None) -> Path:
    if file is None:
        files = HfApi().list_repo_files(repo, revision=revision)
        if "config.json" in files:
            return _fetch_folder(repo, files, revision)
        candidates = [name for name in files if name.endswith((".pt", ".pth"))]
        if len(candidates) != 1:
            found = ", ".join(f"{repo}:{name}" for name in candidates) or "none"
            raise ConversionError(f"{repo} is no model folder; name one of its checkpoints: {found}")
        file = candidates[0]
    return Path(hf_hub_download(repo, file, revision=revision))


def _fetch_folder(repo: str, files: list[str], revision: str | None) -> Path:
    weights = "*.safetensors" if any(name.endswith(".safetensors") for name in files) else "pytorch_model*.bin"
    return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", weights]))

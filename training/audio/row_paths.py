"""Which files the rows of a data set may name.

A row is text that somebody else wrote. If it says where its audio is, it must not make this machine read whatever lies
on it, wait for a pipe, or call a server.
"""

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

from .decoding import AudioDecodeError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/?/")


def is_url(path: str) -> bool:
    return _SCHEME.match(path) is not None or "::" in path


class RowPaths:
    """Resolves the paths in the rows of one data set.

    Args:
        bases: Folders (or URLs of folders) that relative paths start from; the first where a file exists counts.
        roots: Folders (or URLs of folders) that rows may name files of; `None`: any folder of this machine.
        allowed: More of them, which the user named.
    """

    def __init__(self, bases: Sequence[str], roots: Sequence[str] | None, allowed: Sequence[str] = ()):
        allowed = [path if is_url(path) else os.path.expanduser(path) for path in allowed]
        self.bases, self.anywhere = list(bases), roots is None
        inside = [*(roots or ()), *allowed]
        self.folders = [os.path.realpath(path) for path in inside if not is_url(path)]
        self.prefixes = [path.rstrip("/") + "/" for path in inside if is_url(path) and "::" not in path]

    def resolve(self, path: str) -> str:
        """The file or URL that a row's `path` means.

        Raises:
            AudioDecodeError: Rows of this data set may not name it.
        """
        if "\0" in path:
            raise AudioDecodeError(f"{path!r} is no path")
        if path.startswith("file://"):
            path = unquote(path.removeprefix("file://"))
        if is_url(path):
            return self._allowed_url(path)
        if os.path.isabs(path):
            return self._allowed_file(path, path)
        urls = [base for base in self.bases if is_url(base)]
        if urls:
            return self._allowed_url(f"{urls[0].rstrip('/')}/{path}")
        candidates = [os.path.join(base, path) for base in self.bases] or [path]
        return self._allowed_file(next(filter(os.path.lexists, candidates), candidates[0]), path)

    def _allowed_url(self, url: str) -> str:
        climbs = ".." in unquote(url).replace("\\", "/").split("/")
        if "::" not in url and not climbs and any(url.startswith(prefix) for prefix in self.prefixes):
            return url
        folder = url.rpartition("/")[0]
        raise AudioDecodeError(
            f"{url!r} lies outside the data set, and a row alone does not make this machine fetch it; "
            f"if you trust it, allow its place: allow_paths=[{folder}]"
        )

    def _allowed_file(self, file: str, path: str) -> str:
        real = os.path.realpath(file)
        if self.anywhere or any(
            real == folder or real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self.folders
        ):
            return real
        raise AudioDecodeError(
            f"{path!r} lies outside the data set's folder ({real}); "
            f"if you trust it, allow its folder: allow_paths=[{os.path.dirname(real)}]"
        )

"""How processes that share a search keep out of each other's way, and know which of them still live."""

import uuid
from pathlib import Path

from filelock import FileLock, Timeout


def alone_in(folder: Path) -> FileLock:
    """Held while a process prepares or changes what all processes of a search share."""
    return FileLock(folder / "study.lock")


class Worker:
    """One process of a search. It holds a lock on a file of its own, which the kernel lets go when it dies.

    Make one, ask about others and close it only while `alone_in` is held, so that all agree who lives.
    """

    def __init__(self, folder: Path):
        self._folder, self.name = folder, uuid.uuid4().hex[:12]
        self._lock = FileLock(self._file(self.name))
        self._lock.acquire()
        for file in folder.glob(".*.worker"):
            self.sees(file.stem[1:])

    def _file(self, name: str) -> Path:
        return self._folder / f".{name}.worker"

    def sees(self, name: str) -> bool:
        """Whether the process called `name` lives; the file of a dead one is removed."""
        if name == self.name:
            return True
        if not self._file(name).exists():
            return False
        try:
            with FileLock(self._file(name), blocking=False):
                pass
        except Timeout:
            return True
        self._file(name).unlink()
        return False

    def close(self) -> None:
        self._lock.release()
        self._file(self.name).unlink()

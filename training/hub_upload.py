"""Pushing a run's model to the Hub while it trains: by the main process, in the background."""

import logging
from concurrent.futures import Future
from pathlib import Path

from .recipe import HubSection

logger = logging.getLogger(__name__)


class HubUploader:
    """Uploads model folders as one commit each, at most one at a time, without waiting for them.

    A failed upload is logged and does not stop the training; `finish` is the one that must succeed.
    """

    def __init__(self, settings: HubSection):
        """Creates the repo if need be, so that a missing permission shows before training rather than after."""
        from huggingface_hub import HfApi

        self.api, self.settings = HfApi(), settings
        self.api.create_repo(settings.repo_id, private=settings.private, exist_ok=True)
        self.folder: Path | None = None
        self._future: Future | None = None

    def push(self, checkpoint: Path, step: int) -> None:
        """Start uploading `checkpoint`'s model; skipped if the one before is still on its way."""
        if self._future is not None and not self._future.done():
            logger.warning("step %d is not pushed: the upload of %s is still running", step, self.folder.name)
            return
        self._report()
        self.folder = checkpoint
        self._future = self.api.upload_folder(
            repo_id=self.settings.repo_id,
            folder_path=checkpoint / "pretrained_model",
            commit_message=f"Step {step}",
            run_as_future=True,
        )

    @property
    def in_use(self) -> Path | None:
        """The checkpoint that must not be deleted now."""
        return self.folder if self._future is not None and not self._future.done() else None

    def finish(self, final: Path) -> None:
        """Wait for what is on its way, then push the finished model."""
        self.wait()
        self.api.upload_folder(repo_id=self.settings.repo_id, folder_path=final, commit_message="Final model")

    def wait(self) -> None:
        if self._future is not None:
            self._future.exception()
        self._report()

    def _report(self) -> None:
        error = self._future.exception() if self._future is not None else None
        if error is not None:
            logger.warning("pushing %s failed: %s", self.folder.name, " ".join(str(error).split()))
        self._future = None

"""Pushing a run's model to the Hub while it trains: by the main process, in the background."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi

from lighthubert_hf.hub.publishing import push_folder
from lighthubert_hf.hub.upload import one_line_errors
from lighthubert_hf.training.recipes.sections import HubSection

logger = logging.getLogger(__name__)


def make_repository(settings: HubSection) -> None:
    """Create the repository to push to if need be: what is wrong with it, or the token, shows before the training.

    Raises:
        PublishingError: The Hub refuses or cannot be reached.
    """
    with one_line_errors(settings.repo_id, None):
        HfApi().create_repo(settings.repo_id, private=settings.private, exist_ok=True)


class HubUploader:
    """Pushes model folders as one commit each, at most one at a time, without waiting for them.

    A failed push is logged and does not stop the training; `finish` is the one that must succeed.
    """

    def __init__(self, settings: HubSection):
        """Creates the repo if need be, so that a missing permission shows before training rather than after.

        Raises:
            PublishingError: The Hub refuses or cannot be reached.
        """
        self.settings = settings
        make_repository(settings)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub")
        self._checkpoint: Path | None = None
        self._future: Future | None = None

    def push(self, checkpoint: Path, step: int) -> None:
        """Start pushing `checkpoint`'s model; left out if the one before is still on its way."""
        if self.in_use is not None:
            logger.warning("step %d is not pushed: that of %s is still running", step, self.in_use.name)
            return
        self._settle()
        self._checkpoint = checkpoint
        self._future = self._thread.submit(self._push, checkpoint / "pretrained_model", f"Step {step}")

    @property
    def in_use(self) -> Path | None:
        """The checkpoint that must not be deleted now."""
        return self._checkpoint if self._future is not None and not self._future.done() else None

    def finish(self, final: Path) -> None:
        """Wait for what is on its way, then push the finished model.

        Raises:
            PublishingError: The Hub refuses or cannot be reached. The model is in `final` all the same.
        """
        self.close()
        self._push(final, "Final model")

    def close(self) -> None:
        """Wait for what is on its way."""
        self._settle()
        self._thread.shutdown()

    def _push(self, folder: Path, message: str) -> None:
        push_folder(folder, self.settings.repo_id, private=self.settings.private, commit_message=message)

    def _settle(self) -> None:
        if self._future is not None and (error := self._future.exception()) is not None:
            logger.warning("%s is not pushed: %s", self._checkpoint.name, error)
        self._future = None

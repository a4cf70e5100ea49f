"""Faults of the network, and trying again after them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """Try again after network faults, waiting 1, 2, 4, … times `seconds` (60 s at most) between tries."""

    max_retries: int = 5
    seconds: float = 1.0

    def wait_or_raise(self, failures: int, error: Exception, what: str) -> None:
        """Wait after the `failures`-th failure in a row, or raise when there were too many."""
        reason = f"{type(error).__name__}: {error}"
        if failures > self.max_retries:
            raise ConnectionError(f"{what} failed {failures} times in a row, last with {reason}") from error
        wait = min(self.seconds * 2 ** (failures - 1), 60.0)
        logger.warning("%s failed (%s); retry %d of %d in %.3g s", what, reason, failures, self.max_retries, wait)
        time.sleep(wait)

    def call(self, function: Callable[[], T], is_fault: Callable[[Exception], bool], what: str) -> T:
        failures = 0
        while True:
            try:
                return function()
            except Exception as error:
                if not is_fault(error):
                    raise
                failures += 1
                self.wait_or_raise(failures, error, what)


def is_network_fault(error: Exception) -> bool:
    """Whether trying again may help, for an error while reading a remote file.

    fsspec reports all kinds of faults as a `FileNotFoundError`, so its causes decide. Truncated parquet counts as a
    fault: the download may have been cut.
    """
    import aiohttp
    import pyarrow

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    statuses = {link.status for link in chain if isinstance(link, aiohttp.ClientResponseError)}
    statuses |= {link.response.status_code for link in chain if getattr(link, "response", None) is not None}
    if any(400 <= status < 500 and status not in (408, 429) for status in statuses):
        return False
    faults, facts = (OSError, aiohttp.ClientError, pyarrow.ArrowInvalid), (FileNotFoundError, PermissionError)
    return any(isinstance(link, faults) and not isinstance(link, facts) for link in chain)

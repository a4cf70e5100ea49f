"""The order in which a source's rows are read: shuffled, yet resumable to the example.

The shuffle buffer of `datasets` cannot be resumed (what is in the buffer is lost), so the order here is made of two
things that can be computed again at any time from (seed, epoch):

* the order of the shards, of which a few are open at once and give a row in turn, and
* windows: `shuffle_window` rows are read and then handed out in a permuted order.

The state to resume from is therefore small and JSON-able: where each open shard stood when the current window began,
and how many of the window's examples have been handed out. Resuming reads at most one window again (encoded audio, not
decoded).
"""

import contextlib
import logging
import tarfile
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

from .network import is_network_fault
from .opening import OpenSource
from .sources import RawExample, random_generator

logger = logging.getLogger(__name__)


class _ShardReader:
    """Reads one shard row by row, knows where it stands, and reopens the shard there after a network fault."""

    def __init__(self, source: OpenSource, shard: int, row: int = 0, position: dict[str, Any] | None = None):
        self.source, self.shard, self.row, self.position = source, shard, row, position
        self._dataset = self._rows = self._closing = None

    @property
    def state(self) -> list:
        return [self.shard, self.row, self.position]

    def read(self) -> dict[str, Any] | None:
        """The next row, `None` at the end."""
        what = f"reading row {self.row} of shard {self.shard} of {self.source.source.name!r}"
        failures = 0
        while True:
            try:
                if self._rows is None:
                    self._dataset = self.source.open_shard(self.shard, self.position)
                    self._rows = iter(self._dataset)
                    # Also when the interpreter exits: a half-read parquet file complains when it is torn down.
                    self._closing = weakref.finalize(self, _close, self._rows)
                values = next(self._rows, None)
                break
            except Exception as error:
                self.close()
                if self.source.is_remote and is_network_fault(error):
                    failures += 1
                    self.source.retry.wait_or_raise(failures, error, what)
                elif isinstance(error, (OSError, ValueError, tarfile.TarError)):  # ArrowInvalid is a ValueError
                    raise ValueError(
                        f"{what} failed ({type(error).__name__}: {error}); repair or remove its file"
                    ) from error
                else:
                    raise
        if values is not None:
            self.position = self._dataset.state_dict()
            self.row += 1
        return values

    def close(self) -> None:
        """Let go of files and of the rows read ahead."""
        if self._closing is not None:
            self._closing()
        self._dataset = self._rows = self._closing = None


def _close(rows: Iterator) -> None:
    with contextlib.suppress(ValueError):  # at exit, a background thread may be in the middle of it
        rows.close()


class ShuffledReader:
    """The rows of one source that this process reads, epoch after epoch, in an order that can be resumed.

    With at least as many shards as processes, each epoch deals the shards out (an epoch's order is the same for all
    processes, so together they read every row once). With fewer, every process reads everything and keeps each
    `world_size`-th row.

    Args:
        source: The opened source.
        seed, shuffle, shuffle_window, num_open_shards, rank, world_size: See `AudioStream`.
    """

    def __init__(
        self,
        source: OpenSource,
        *,
        seed: int,
        shuffle: bool,
        shuffle_window: int,
        num_open_shards: int,
        rank: int,
        world_size: int,
    ):
        self.source, self.seed, self.shuffle = source, seed, shuffle
        self.shuffle_window = shuffle_window if shuffle else 1
        self.num_open_shards = num_open_shards if shuffle else 1
        self.rank, self.world_size = rank, world_size
        self.splits_rows = source.num_shards < world_size
        self._dealt = slice(None) if self.splits_rows else slice(rank, None, world_size)
        self.num_shards = len(range(source.num_shards)[self._dealt])
        if self.splits_rows and rank == 0:
            logger.warning(
                "%r has %d shards for %d processes: every process reads all of it and keeps one row in %d; "
                "store it in more files to read each only once",
                source.source.name,
                source.num_shards,
                world_size,
                world_size,
            )

    def initial_state(self, epoch: int = 0) -> dict[str, Any]:
        return {"epoch": epoch, "window": 0, "open": [], "next_shard": 0, "taken": 0}

    def iterate(self, state: dict[str, Any], *, repeat: bool) -> Iterator[tuple[RawExample, dict[str, Any]]]:
        """Yield rows and, beside each, the state that resumes after it."""
        while True:
            yield from self._read_epoch(state)
            if not repeat:
                return
            state = self.initial_state(state["epoch"] + 1)

    def _read_epoch(self, state: dict[str, Any]) -> Iterator[tuple[RawExample, dict[str, Any]]]:
        epoch, taken = state["epoch"], state["taken"]
        opened = deque(_ShardReader(self.source, *saved) for saved in state["open"])
        waiting = deque(self._shard_order(epoch)[state["next_shard"] :])
        try:
            for number in count(state["window"]):
                start = {
                    "epoch": epoch,
                    "window": number,
                    "open": [shard.state for shard in opened],
                    "next_shard": self.num_shards - len(waiting),
                }
                window = self._read_window(opened, waiting, epoch)
                if not window and number == 0:
                    raise ValueError(
                        f"{self.source.source.name!r}, split {self.source.source.split!r}, has no rows for process "
                        f"{self.rank} of {self.world_size}; use another split or fewer processes"
                    )
                if not window:
                    return
                order = self._window_order(len(window), epoch, number)
                for place in range(taken, len(window)):
                    # Freed while the window is handed out.
                    example, window[order[place]] = window[order[place]], None
                    yield example, {**start, "taken": place + 1}
                taken = 0
        finally:
            for shard in opened:
                shard.close()

    def _window_order(self, size: int, epoch: int, number: int) -> list[int]:
        if not self.shuffle:
            return list(range(size))
        key = (self.seed, "window", self.source.index, epoch, self.rank, number)
        return random_generator(*key).permutation(size).tolist()

    def _shard_order(self, epoch: int) -> list[int]:
        order = list(range(self.source.num_shards))
        if self.shuffle:
            random_generator(self.seed, "shards", self.source.index, epoch).shuffle(order)
        return order[self._dealt]

    def _read_window(self, opened: deque[_ShardReader], waiting: deque[int], epoch: int) -> list[RawExample | None]:
        """Read rows from the open shards in turn, opening the next shard whenever one ends. A row that is several
        examples, as a long recording, may make a window larger."""
        window: list[RawExample | None] = []
        while len(window) < self.shuffle_window:
            while waiting and len(opened) < self.num_open_shards:
                opened.append(_ShardReader(self.source, waiting.popleft()))
            if not opened:
                break
            shard = opened.popleft()
            row = shard.row
            values = shard.read()
            if values is None:
                continue
            opened.append(shard)
            if not self.splits_rows or (shard.shard + row) % self.world_size == self.rank:
                window += self.source.examples(values, shard.shard, row, epoch)
        return window

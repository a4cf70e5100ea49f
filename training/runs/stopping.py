"""SIGTERM as a wish to stop after the present step: what clusters send before they take a machine away."""

import signal
import threading
from typing import NoReturn


class Termination:
    """While entered, SIGTERM sets `requested` instead of killing; a second one kills as usual.

    After saving, call `die` outside of the block: the process ends by the signal, as whoever sent it expects.
    """

    def __init__(self):
        self.requested = False
        self._before = None

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _signal, _frame) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @staticmethod
    def die() -> NoReturn:
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM)  # for a process whose own handler let it live

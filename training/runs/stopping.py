"""Ctrl-C and SIGTERM as a wish to stop after the present step, with a checkpoint to go on from."""

import logging
import os
import signal
import threading
from typing import NoReturn

from accelerate import PartialState
from accelerate.utils import gather_object

logger = logging.getLogger(__name__)

_HINT = b"\nstopping after this step, with a checkpoint; once more stops at once\n"


class StopRequest:
    """While entered, Ctrl-C (SIGINT) and SIGTERM, which clusters send before they take a machine away, are noted in
    `signal` instead of acted on; a second one of the same kind acts as usual.

    When the checkpoint is saved, call `follow` outside of the block.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame) -> None:
        # A launcher sends SIGTERM to its processes when it hears Ctrl-C, which they have heard as well.
        self.signal = self.signal or signal.Signals(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            os.write(2, _HINT)  # print is not safe here

    def follow(self, message: str) -> NoReturn:
        """End as asked for: by a `KeyboardInterrupt` that says `message`, or by SIGTERM, as its sender expects.

        Called by all processes, whichever of them was asked.
        """
        if signal.SIGTERM in gather_object([self.signal]):
            if PartialState().is_main_process:
                logger.warning("%s", message)
            signal.raise_signal(signal.SIGTERM)
            raise SystemExit(128 + signal.SIGTERM)  # for a process whose own handler let it live
        raise KeyboardInterrupt(message)

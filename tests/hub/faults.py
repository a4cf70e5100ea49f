"""Faults that the Hub-compatible test server commits on request, to see what the client makes of them."""

import re
import threading
from dataclasses import dataclass

KINDS = ("status", "drop-request", "drop-response", "lose-response", "slow")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" `pattern` matches.

    Args:
        kind: "status" answers with `status` and does nothing; "drop-request" closes the connection in the middle of
            the request's body; "drop-response" closes it in the middle of the answer's; "lose-response" does what was
            asked and closes the connection without an answer; "slow" waits `seconds` first.
    """

    pattern: str
    kind: str
    times: int = 1
    status: int = 500
    message: str = "Internal Error - We're working hard to fix this as soon as possible!"
    seconds: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"fault {self.kind!r} is not one of {KINDS}")


class Faults:
    """The faults still to come, taken in the order they were added. Thread-safe."""

    def __init__(self):
        self._pending: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, pattern: str, kind: str, **details) -> Fault:
        fault = Fault(pattern, kind, **details)
        with self._lock:
            self._pending.append(fault)
        return fault

    def take(self, request: str) -> Fault | None:
        with self._lock:
            for fault in self._pending:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._pending.clear()

"""SIGTERM and Ctrl-C end a run after the pass that it is in, when it has saved the last whole step. The
second one does not wait.
"""

import signal
from typing import Any


class StopSignal:
    """The signal that came, as a number; 0 until one does."""

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[int, Any] = {}

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self.remember)

    def remember(self, number: int, _frame: object) -> None:
        if self.number:
            raise SystemExit(128 + number)
        self.number = number

    def restore(self) -> None:
        """The answers from before: what comes after the steps is not worth a wait."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

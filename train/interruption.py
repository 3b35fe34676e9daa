"""Ctrl-C and SIGTERM, handled so that a command can save first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Stores the number of the first SIGTERM or SIGINT in ``signal``; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def name(self) -> str:
        """Return "SIGINT" or "SIGTERM", or "" before any came."""
        return "" if self.signal is None else signal.Signals(self.signal).name

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Handle the signals inside the context."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the main process (for a ``DataLoader``)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Ctrl-C and SIGTERM, noted so that a command can save first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Notes SIGTERM and Ctrl-C so that the loop can save first; a second one stops at once.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def name(self) -> str:
        """ "SIGINT" or "SIGTERM"; "" before any came."""
        return "" if self.signal is None else signal.Signals(self.signal).name

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While this is entered, the signals are noted."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

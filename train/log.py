"""What a run shows while it trains, and how it notices that it is to stop."""

import contextlib
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between lines where there is no terminal for a progress bar


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in GiB of a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Log:
    """Progress and TensorBoard files in ``RUN/tensorboard``; a context manager.

    Progress is a bar on a terminal, elsewhere a line every ``LINE_EVERY`` seconds. Events of steps after ``step``, at
    which the run starts or resumes, are dropped by TensorBoard. Without it a line on stderr says so.
    """

    def __init__(self, run: Path, step: int, last_step: int, enabled: bool = True) -> None:
        self.step, self.last_step, self.enabled = step, last_step, enabled
        self.first, self.started, self.said = step, time.monotonic(), time.monotonic()
        # disable=None shows the bar only on a terminal.
        silent = None if enabled else True
        self.bar = tqdm(total=last_step, initial=step, unit="step", disable=silent, smoothing=0.05)
        self.writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            print('no TensorBoard logs: pip install "depthzoo[train]"', file=sys.stderr)
            return
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def advance(self, text: str) -> None:
        """Show that a step is done, with a text behind it."""
        self.step += 1
        self.bar.update()
        self.bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if self.bar.disable and self.enabled and now - self.said >= LINE_EVERY:
            self.said = now
            left = (now - self.started) / (self.step - self.first) * (self.last_step - self.step)
            self.line(f"step {self.step} of {self.last_step}: {text}, {tqdm.format_interval(left)} left")

    def line(self, text: str, error: bool = False) -> None:
        """Print a line above the bar, on stderr if it is an error."""
        self.bar.write(text, file=sys.stderr if error else sys.stdout)
        sys.stdout.flush()  # a pipe otherwise keeps it

    def text(self, name: str, content: str) -> None:
        """Add a text in a fixed font."""
        if self.writer is not None:
            self.writer.add_text(name, "    " + content.replace("\n", "\n    "))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values by name; "val/abs_rel" is in the group "val"."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Add images by name, uint8 RGB (H, W, 3)."""
        if self.writer is not None:
            for name, image in images.items():
                self.writer.add_image(name, image, step, dataformats="HWC")


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

"""What a run shows while it trains: a progress bar, lines, and TensorBoard's event files."""

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from train.samples import Pixels


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in GiB of a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Log:
    """Progress bar and TensorBoard files in ``RUN/tensorboard``; a context manager.

    Events of steps after ``step``, at which the run starts or resumes, are dropped by TensorBoard. Without it a line on
    stderr says so.
    """

    def __init__(self, run: Path, step: int, last_step: int, enabled: bool = True) -> None:
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
        """Move the bar by one step, with a text behind it."""
        self.bar.update()
        self.bar.set_postfix_str(text, refresh=False)

    def line(self, text: str, error: bool = False) -> None:
        """Print a line above the bar, on stderr if it is an error."""
        self.bar.write(text, file=sys.stderr if error else sys.stdout)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values by name; "val/abs_rel" is in the group "val"."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, Pixels]) -> None:
        """Add images by name, uint8 RGB (H, W, 3)."""
        if self.writer is not None:
            for name, image in images.items():
                self.writer.add_image(name, image, step, dataformats="HWC")

"""Scalars and pictures for TensorBoard, where it is installed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthzoo.visualize import Pixels

FOLDER = "tensorboard"
_told = False


class Tracker:
    """Writes TensorBoard's event files into ``run/tensorboard``; a context manager.

    Without TensorBoard it says so once on stderr and does nothing.

    Args:
        run: folder of the run.
        enabled: False writes nothing, for the processes that do not write.
        resumed_at: the step that a run resumes from; what an earlier process wrote of later steps is then
            ignored by TensorBoard.
    """

    def __init__(self, run: Path, enabled: bool = True, resumed_at: int | None = None) -> None:
        self._writer: Any = None
        if not enabled:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            global _told
            if not _told:
                print('no TensorBoard logs: pip install "depthzoo[train]"', file=sys.stderr)
            _told = True
            return
        self._writer = SummaryWriter(
            str(run / FOLDER), purge_step=None if resumed_at is None else resumed_at + 1
        )

    @property
    def writes(self) -> bool:
        """Whether anything becomes of what it is given."""
        return self._writer is not None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values by name; "val/abs_rel" stands in the group "val"."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def panel(self, step: int, name: str, image: Pixels) -> None:
        """Adds a picture, uint8 RGB (H, W, 3)."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is waiting; nothing can be added after it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

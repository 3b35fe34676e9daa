"""What benchmarks of training work on: a data set or synthetic rooms, and a run of ``python -m train`` on it."""

import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from train.config import TrainConfig, load_recipe
from train.distributed import World
from train.engine import Run, RunOptions
from train.feed import Sources
from train.prepare import write
from train.shards import ShardDataset
from train.sources import synthetic_rooms

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"
STORED = (240, 320)  # of the rooms; a benchmark's own size follows from it
ROOMS_TERMS = "synthetic"


@contextmanager
def frames_of(
    data: Path | None,
    count: int,
    stored: tuple[int, int] = STORED,
    splits: Sequence[str] = ("train", "val"),
) -> Iterator[Path]:
    """The folder of a data set: the given one, or one of synthetic rooms while the context lasts.

    Args:
        data: a data set of ``train.prepare``, or None.
        count: train frames of the rooms.
        stored: (H, W) of the rooms.
        splits: that ``data`` must have.

    Raises:
        DatasetError: ``data`` is no data set, or lacks one of the splits.
    """
    if data is not None:
        for split in splits:
            ShardDataset(data, split)
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        out, total = Path(folder, "rooms"), count + 2
        while total - 2 * max(1, total // 20) < count:  # some are for validation and test
            total += 1
        with without_bars():
            write(synthetic_rooms.read(total, stored), total, out, stored, source="rooms", terms=ROOMS_TERMS)
        yield out


def about(data: Path | None, folder: Path, frames: int) -> dict[str, Any]:
    """What a result file says of its data."""
    train = ShardDataset(folder, "train", frames)
    return {
        "source": train.info.get("source") if data else "synthetic rooms",
        "frames": len(train),
        "stored": list(train[0][1].shape),
    }


def recipe(name: str, **overrides: Any) -> TrainConfig:
    """The recipe named after a model, at one size and from random weights: nothing is downloaded."""
    return load_recipe(RECIPES / f"{name}.toml", encoder_weights="none", sizes=(), **overrides)


def start_run(
    config: TrainConfig, data: Path, out: Path, device: torch.device, world: World | None = None
) -> Run:
    """A run as ``python -m train`` makes it, ready for its ``train_step()``."""
    options = RunOptions(device=device, world=world or World(), report=False)
    with without_bars():
        return Run(config, Sources(data), out, options)


@contextmanager
def without_bars() -> Iterator[None]:
    """Progress bars stay off; what else is said comes afterwards."""
    with redirect_stderr(io.StringIO()) as said:
        yield
    sys.stderr.write(said.getvalue())

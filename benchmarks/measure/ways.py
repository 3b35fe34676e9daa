"""The ways of training that are held against each other, each as a function that does one step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure.sample_set import recipe, start_run
from benchmarks.measure.seed_loop import InMemory, PictureFiles, SeedLoop
from train.precision import usable_precision

WAYS = ("seed", "seed from memory", "ours")
# Seconds of steps that are timed together, at least one step: a GPU works on while the next are prepared.
TURN_SECONDS = {"cpu": 0.0, "cuda": 0.5}

Step = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What is trained, and on what.

    Attributes:
        model: its name.
        way: one of ``WAYS``.
        batch: pictures in a step.
        size: (H, W) of them.
        data: folder of the data set.
        files: folder of :class:`PictureFiles` at ``size``.
        frames: so many of them.
        device: where.
        precision: instead of the recipe's.
    """

    model: str
    way: str
    batch: int
    size: tuple[int, int]
    data: Path
    files: Path
    frames: int
    device: str
    precision: str | None = None

    def label(self) -> str:
        return f"{self.model}, {self.way}, batch {self.batch}"

    def arithmetic(self) -> str:
        """Of the convolutions: on CUDA, PyTorch lets those of float32 use TF32 unasked."""
        if self.way == "ours":
            wanted = recipe(self.model, precision=self.precision).precision
            return usable_precision(wanted, torch.device(self.device))
        return "tf32" if self.device.startswith("cuda") and torch.backends.cudnn.allow_tf32 else "fp32"


def start(work: Work, out: Path) -> Step:
    """Makes the loop; ``out`` is where a run has its folder. With each step, cuDNN is set as that loop has it."""
    device = torch.device(work.device)
    if work.way == "ours":
        wanted = {"size": work.size, "batch_size": work.batch, "frames": work.frames}
        config = recipe(work.model, **wanted, precision=work.precision)
        step: Step = start_run(config, work.data, out, device).train_step
    else:
        files = PictureFiles(work.files)
        frames = InMemory(files) if work.way == "seed from memory" else files
        step = SeedLoop(work.model, frames, work.batch, device).step

    def run() -> object:
        torch.backends.cudnn.benchmark = work.way == "ours"  # as train.engine sets it
        return step()

    return run


def turn(step: Step, count: int, device: torch.device) -> Step:
    """So many steps, and their work done."""

    def run() -> None:
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def steps_in_turn(seconds: float, device: torch.device) -> int:
    """How many steps that take so long are timed together."""
    return max(1, min(100, math.floor(TURN_SECONDS[device.type] / seconds)))

"""Images per second of training: ``python -m train`` against the plain loop that the project began with.

    python -m benchmarks.train_speed [--models NAME...] [--data DIR] [--size HxW] [--batches 4 16] [--device cuda]

For each model and batch the loops take turns in one process:

- plain: the loop of the project's first experiments. Image and depth files at the training size, decoded each time by a
  DataLoader in the loop's own process; no augmentation; an unbounded output, float32, NCHW; mean squared error over all
  pixels; Adam at a constant rate; the loss printed, so synchronized, at every step.
- plain_in_memory: the same, with frames decoded beforehand.
- train: the steps of ``python -m train`` with the model's recipe: its precision, channels_last, augmentation, average.

--loader-only times the batches of ``python -m train`` alone. Without --data, rooms are rendered. Rows go to
benchmarks/results/train_speed.jsonl after each model and batch.
"""

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms.functional import to_tensor

import depthzoo
from benchmarks.latency import interleave
from depthzoo.prediction import select_device
from train import records
from train.arguments import command, parse_size
from train.config import load_recipe
from train.data import Sources
from train.loop import Run, RunOptions
from train.model import depth_range
from train.records import RESULTS, Row
from train.shards import ShardDataset

RECIPES = Path(__file__).resolve().parents[1] / "train" / "recipes"
LOOPS = ("plain", "plain_in_memory", "train")
CPU_SIZE = (96, 128)
ROOMS = 32
LEARNING_RATE = 1e-4  # of Adam in the plain loop; that of the first experiments is not recorded
# Seconds of steps that are timed together: a GPU still works while the next ones are prepared.
TURN = {"cpu": 0.0, "cuda": 0.5}

Step = Callable[[], object]
Pair = tuple[Tensor, Tensor]


# -- the plain loop ---------------------------------------------------------------------------------------


class PairFiles(Dataset[Pair]):
    """NAME.jpg and NAME.png of a folder: (3, H, W) in [0, 1] and (1, H, W) metres."""

    def __init__(self, folder: Path) -> None:
        self.images = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        path = self.images[index]
        with Image.open(path) as image, Image.open(path.with_suffix(".png")) as depth:
            return to_tensor(image), torch.from_numpy(np.asarray(depth, np.float32)[None] / 1000)


def write_pairs(frames: ShardDataset, folder: Path, size: tuple[int, int]) -> None:
    """Write frames as files at the training size, depth with nearest interpolation."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(frames)):
        image, millimetres = frames[index]
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        resized.save(folder / f"{index:05d}.jpg", quality=95)
        Image.fromarray(millimetres).resize(size[::-1], Image.Resampling.NEAREST).save(
            folder / f"{index:05d}.png"
        )


def plain_loop(model_name: str, dataset: Any, batch: int, device: torch.device) -> Step:
    """Return a function that does one step of the plain loop."""
    torch.manual_seed(0)
    model = depthzoo.create_model(model_name, weights=None, head="linear").to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    criterion = nn.MSELoss()
    sampler = RandomSampler(dataset, num_samples=1 << 40)
    batches: Iterator[list[Tensor]] = iter(DataLoader(dataset, batch, sampler=sampler))

    def step() -> float:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True  # PyTorch's defaults
        image, depth = (part.to(device) for part in next(batches))
        optimizer.zero_grad()
        loss = criterion(model(image), depth)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


# -- python -m train --------------------------------------------------------------------------------------


def start_run(args: argparse.Namespace, name: str, size: tuple[int, int], batch: int, out: Path) -> Run:
    """Start a run of ``python -m train`` by the model's recipe, at one size and with random weights."""
    path = RECIPES / f"{name}.toml"
    overrides: dict[str, Any] = {"size": size, "sizes": (), "batch_size": batch, "encoder_weights": "none"}
    config = load_recipe(path, **overrides, precision=args.precision)
    with contextlib.redirect_stderr(io.StringIO()):  # progress of decoding
        return Run(config, Sources(args.data), out, RunOptions(device=args.device))


def train_loop(run: Run) -> Step:
    """Return a function that does one step of ``python -m train``."""

    def step() -> float:
        torch.backends.cudnn.benchmark = True
        return run.step()

    return step


def loader(run: Run, size: tuple[int, int]) -> Step:
    """Return a function that loads and augments the next batch of ``python -m train``."""
    position = iter(range(1 << 40))
    return lambda: run.data.batch(next(position), size, depth_range(run.model))


# -- measuring --------------------------------------------------------------------------------------------


def turns(step: Step, device: torch.device) -> tuple[Step, int]:
    """Warm up. Return a function that does several steps and waits for them, and their number."""

    def several(count: int) -> None:
        for _ in range(count):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(2):
        several(1)
    started = time.perf_counter()
    several(1)
    count = max(1, min(100, int(TURN[device.type] / (time.perf_counter() - started))))
    return lambda: several(count), count


def measure(
    args: argparse.Namespace, name: str, size: tuple[int, int], batch: int, start: Row, folder: Path
) -> list[Row]:
    """Time the loops of one model and batch in turn."""
    device, steps, rows = args.device, {}, {}
    run = start_run(args, name, size, batch, folder / f"{name}-{batch}")
    for loop in ("loader",) if args.loader_only else LOOPS:
        precision = run.precision if loop == "train" else "tf32" if device.type == "cuda" else "fp32"
        row = start | {"model": name, "backend": loop, "precision": precision, "batch": batch}
        row |= {"height": size[0], "width": size[1], "data": args.data.name}
        if args.skip_existing and records.find(args.out, row):
            continue
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        if loop == "loader":
            step = loader(run, size)
        elif loop == "train":
            step = train_loop(run)
        else:
            pairs: Any = PairFiles(folder / "pairs")
            pairs = pairs if loop == "plain" else [pairs[index] for index in range(len(pairs))]
            step = plain_loop(name, pairs, batch, device)
        steps[loop], count = turns(step, device)
        rows[loop] = row | {"steps": count}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step()
            rows[loop]["memory"] = torch.cuda.max_memory_allocated(device) - held
    times, interrupted = interleave(steps, args.rounds, args.seconds)
    for loop, row in rows.items():
        images = 1000 * batch * row.pop("steps")
        row |= {
            "images_per_s": round(images / statistics.median(times[loop]), 3),
            "images_per_s_min": round(images / max(times[loop]), 3),
            "images_per_s_max": round(images / min(times[loop]), 3),
            "rounds": len(times[loop]),
        }
    records.store(args.out, rows.values())
    if interrupted:
        raise KeyboardInterrupt
    return list(rows.values())


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m benchmarks.train_speed", description=summary)
    add = main.add_argument
    add("--models", nargs="+", default=depthzoo.list_models(), metavar="NAME", help="default: all")
    add("--data", type=Path, metavar="DIR", help="made by train.prepare (default: rendered rooms)")
    add("--size", type=parse_size, metavar="HxW", help="default: the recipe's; on a CPU 96x128")
    add("--batches", nargs="+", type=int, default=[4, 16], metavar="N", help="default: 4 16")
    add("--precision", choices=("bf16", "fp16", "fp32"), help="of train (default: the recipe's)")
    add("--loader-only", action="store_true", help="time the batches of train alone")
    add("--seconds", type=float, default=60, metavar="S", help="no new round after this time")
    add("--rounds", type=int, default=15, metavar="N", help="at most (default: 15)")
    add("--device", metavar="cpu|cuda")
    add("--skip-existing", action="store_true", help="leave out what is stored already")
    add("--out", type=Path, default=RESULTS / "train_speed.jsonl", metavar="FILE")
    return main


def run(args: argparse.Namespace) -> int:
    args.device = select_device(args.device)
    start = records.provenance(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.data is None:
            args.data = folder / "rooms"
            render = ["-m", "train.prepare", "rooms", "--count", str(ROOMS), "--out", str(args.data)]
            subprocess.run([sys.executable, *render], check=True, capture_output=True)
        frames = ShardDataset(args.data, "train", ROOMS)
        for name in args.models:
            recipe = load_recipe(RECIPES / f"{name}.toml")
            size = args.size or (CPU_SIZE if args.device.type == "cpu" else recipe.size)
            write_pairs(frames, folder / "pairs", size)
            for batch in args.batches:
                for row in measure(args, name, size, batch, start, folder):
                    rate = f"{row['images_per_s']:.2f} images/s"
                    print(
                        f"{name:<22}{row['backend']:<17}{batch:>4} {row['precision']:<5}{rate:>18}",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

"""Frames per second of the loader, against reading nyu_depth_v2_labeled.mat at random and augmenting the same way.

    python benchmarks/loading.py --mat nyu_depth_v2_labeled.mat --data DIR

DIR are shards of the same frames, made by ``python -m train.prepare nyu-labelled ... --size 240x320``. All ways end in
augmented batches of the asked size on the device, with every augmentation on, and take turns. The file is read as one
would without this project, opened once: frames that are augmented from their full resolution, and frames that are first
resized to the size of the stored ones. The quicker of the two is the reference. The same by the processes of a torch
DataLoader is measured beside them. Without the file the shards are compared with each other, those decoded anew each
time being the reference; without DIR they are of rendered rooms.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train.
    sys.path.insert(0, str(ROOT))

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, RandomSampler  # noqa: E402

from benchmarks.measure.mat_file import MatFile  # noqa: E402
from benchmarks.measure.record import RESULTS, facts, read_runs, store_run  # noqa: E402
from benchmarks.measure.sample_set import frames_of  # noqa: E402
from depthzoo.predictor import select_device  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.augment import augment  # noqa: E402
from train.config import AugmentConfig  # noqa: E402
from train.loading import Batch, SampleStream, open_frames, sample_draws  # noqa: E402
from train.shards import ShardDataset  # noqa: E402
from train.streaming import ShardStream  # noqa: E402

SETTINGS = ("size", "batch", "mat", "shards")
FULL = AugmentConfig(
    flip=True,
    zoom=(0.95, 1.3),
    rotate=5.0,
    brightness=0.25,
    contrast=0.25,
    saturation=0.3,
    gamma=1.3,
    channel_swap=0.25,
    grey=0.05,
    cutdepth=0.5,
    blur=0.3,
    noise=0.03,
    jpeg=0.3,
)
KINECT_FOCAL, KINECT_WIDTH = 518.86, 640
WORKERS = 4  # threads that decode shards
WARM_BATCHES = 5  # of each round, not timed: what was read ahead since the last one is used up
ALONE = ("mat, full resolution", "mat, resized")
DECODED = "shards, cache none"
ROOMS = 64
PROCESSES = " processes"  # in the name of a case
PAUSE_SECONDS = 0.3  # for what is still being read ahead when a case's turn ends

Batches = Iterator[Batch]


@dataclass(frozen=True)
class Speed:
    """Frames per second, and milliseconds of CPU time per frame over the threads of this process."""

    frames_per_s: float
    cpu_ms: float


def at_random(frames: MatFile, batch: int, processes: int = 0, seed: int = 0) -> Batches:
    """Batches of frames at random, without end, with the draws that a loader gives."""
    sampler = RandomSampler(frames, replacement=True, num_samples=1 << 40)
    loader = iter(DataLoader(frames, batch, sampler=sampler, num_workers=processes))
    for number in itertools.count(0, batch):
        image, depth = next(loader)
        draws = np.stack([sample_draws(seed, 0, number + i) for i in range(batch)])
        focal = KINECT_FOCAL * image.shape[-1] / KINECT_WIDTH
        yield Batch(image, depth, draws, focal, [""] * batch)


def in_order(stream: SampleStream | ShardStream, batch: int) -> Batches:
    """A stream's batches one after the other, without end."""
    position = 0
    while True:
        yield stream.batch(position, batch)
        position += batch


def cases(
    args: argparse.Namespace, folder: Path, device: torch.device
) -> tuple[dict[str, Batches], dict[str, float], dict[str, str]]:
    """What is timed, by name; the seconds that some take once, before the first batch; what is missing, and why."""
    data = ShardDataset(folder, "train")
    height, width = data[0][1].shape
    found: dict[str, Batches] = {}
    missing: dict[str, str] = {}
    once: dict[str, float] = {}
    processes = f"mat, resized by {args.processes}{PROCESSES}"
    if args.mat is None:
        missing |= dict.fromkeys((*ALONE, processes), "no --mat")
    else:
        whole, small = MatFile(args.mat, None), MatFile(args.mat, (height, width))
        found[ALONE[0]] = at_random(whole, args.batch)
        found[ALONE[1]] = at_random(small, args.batch)
        found[processes] = at_random(small, args.batch, args.processes)
    for cache in ("none", "ram", "device"):
        name = f"shards, cache {cache}"
        if cache == "device" and device.type != "cuda":
            missing[name] = "the memory of a CPU is the machine's: it is cache ram"
            continue
        started = time.perf_counter()
        frames = open_frames(data, cache, device, WORKERS, progress=False)
        once[name] = time.perf_counter() - started
        stream = SampleStream(frames, 0, ahead=args.batch if cache == "none" else 0)
        found[name] = in_order(stream, args.batch)
    url = Path(os.path.abspath(folder)).as_uri()
    found["shards, streamed"] = in_order(ShardStream(url, "train", 0, workers=WORKERS), args.batch)
    return found, once, missing


def time_in_turns(runs: Mapping[str, Callable[[], Speed]], rounds: int) -> dict[str, list[Speed]]:
    """What each run returns, in as many rounds as asked; they take turns, so that all meet what else goes on."""
    found: dict[str, list[Speed]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            found[name].append(run())
    return found


def speed(batches: Batches, count: int, size: tuple[int, int], batch: int, device: torch.device) -> Speed:
    """Reads and augments at least ``count`` frames."""

    def work(steps: int) -> tuple[float, float]:
        for _ in range(steps):
            augment(next(batches), size, FULL, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    steps = -(-count // batch)
    before, busy_before = work(WARM_BATCHES)
    after, busy_after = work(steps)
    frames = steps * batch
    return Speed(frames / (after - before), 1000 * (busy_after - busy_before) / frames)


def measure(args: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, Any]:
    """All figures.

    Raises:
        ValueError: for a file or a data set that is not what was expected.
    """
    described = facts(device, ("h5py", "numpy", "pillow"))
    batches, once, missing = cases(args, folder, device)
    runs = {
        name: partial(speed, each, args.frames, args.size, args.batch, device)
        for name, each in batches.items()
    }
    rounds = time_in_turns(runs, args.rounds)
    medians = {name: statistics.median(one.frames_per_s for one in each) for name, each in rounds.items()}
    reference = max(ALONE, key=medians.__getitem__) if args.mat else DECODED
    data = ShardDataset(folder, "train")
    return described | {
        "question": "augmented frames per second from the .mat file at random, and from shards",
        "size": list(args.size),
        "batch": args.batch,
        "frames_per_round": args.frames,
        "augmentation": dataclasses.asdict(FULL),
        "mat": None if args.mat is None else layout(args.mat),
        "shards": {"frames": len(data), "size": list(data[0][1].shape), "workers": WORKERS},
        "cases": {
            name: {
                "frames_per_s": round(medians[name], 1),
                "lowest": round(min(one.frames_per_s for one in each), 1),
                "highest": round(max(one.frames_per_s for one in each), 1),
                "rounds": len(each),
                "times_reference": round(medians[name] / medians[reference], 2),
                # That of other processes is not seen here.
                "cpu_ms_per_frame": None
                if PROCESSES in name
                else round(statistics.median(one.cpu_ms for one in each), 2),
                "seconds_once": round(once.get(name, 0.0), 2),
            }
            for name, each in rounds.items()
        },
        "reference": reference,
        "missing": missing,
    }


def layout(path: Path) -> dict[str, Any]:
    """How the pictures lie in the file."""
    with h5py.File(path, "r") as file:
        images = file["images"]
        return {
            "frames": images.shape[0],
            "shape": list(images.shape[1:]),
            "chunks": images.chunks and list(images.chunks),
            "compression": images.compression,
        }


def table(figures: dict[str, Any]) -> str:
    """The cases in lines of text."""
    lines = [f"{'frames/s, augmented':<32}{'median':>8}{'lowest':>8}{'highest':>9}{'ratio':>7}{'CPU ms':>8}"]
    for name, case in figures["cases"].items():
        mark = "  reference" if name == figures["reference"] else ""
        busy = "" if case["cpu_ms_per_frame"] is None else f"{case['cpu_ms_per_frame']:.1f}"
        lines.append(
            f"{name:<32}{case['frames_per_s']:>8.1f}{case['lowest']:>8.1f}{case['highest']:>9.1f}"
            f"{case['times_reference']:>7.2f}{busy:>8}{mark}"
        )
    lines += [f"not measured: {name}: {reason}" for name, reason in figures["missing"].items()]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    main = argparse.ArgumentParser(prog="loading", description=(__doc__ or "").splitlines()[0])
    main.add_argument("--mat", type=Path, metavar="FILE", help="nyu_depth_v2_labeled.mat")
    main.add_argument(
        "--data", type=Path, metavar="DIR", help="shards of the same frames (default: rendered rooms)"
    )
    main.add_argument("--size", type=parse_size, default=(240, 320), metavar="HxW", help="of what comes out")
    main.add_argument("--frames", type=int, default=320, metavar="N", help="of each case in each round")
    main.add_argument("--batch", type=int, default=16, metavar="N")
    main.add_argument("--rounds", type=int, default=9, metavar="N")
    main.add_argument(
        "--processes", type=int, default=2, metavar="N", help="that read the file for a torch DataLoader"
    )
    main.add_argument("--device", metavar="cpu|cuda", help="where batches are augmented")
    main.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: benchmarks/results/loading.DEVICE.json)"
    )
    return main


def run(args: argparse.Namespace) -> int:
    """Measures, prints and writes."""
    for name in ("frames", "batch", "rounds", "processes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.mat and not args.data:
        raise ValueError("--mat needs --data, shards of the same frames")
    device = select_device(args.device)
    out = args.out or RESULTS / f"loading.{device.type}.json"
    read_runs(out)
    with frames_of(args.data, ROOMS, splits=("train",)) as folder:
        figures = measure(args, folder, device)
    print(table(figures))
    out.parent.mkdir(parents=True, exist_ok=True)
    store_run(out, figures, SETTINGS)
    print(f"all figures in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

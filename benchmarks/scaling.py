"""How throughput changes with pixels, batch, loader threads and processes.

    python benchmarks/scaling.py [--over pixels batch workers processes] [--models NAME ...] [--device cuda]

- pixels and batch: eager inference in full float32 (no TF32), and the training step of ``python -m train`` with the
  model's recipe, data and augmentation included; the values take turns.
- workers: augmented batches from shards that are decoded anew each time (``--cache none``), by so many threads; 0 is
  one thread that does not read ahead. Beside it the same from memory (``--cache ram``).
- processes: training with one batch a process, so that perfect scaling is as many times the images/s; on CUDA one GPU
  each (NCCL), on a CPU one thread each (gloo).

The exponent is the slope of log(seconds per picture) over log(value), by least squares, and again between the two
largest values: 1 over pixels is cost in proportion, 0 over batch is a batch that saves nothing, -1 over processes is a
perfect division of the work. Each curve is stored when it is done; --missing-only goes on from there.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train and export.
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.loading import Batches, in_order, speed, time_in_turns  # noqa: E402
from benchmarks.measure.curve import Curve, row  # noqa: E402
from benchmarks.measure.largest_batch import free_unused, is_memory  # noqa: E402
from benchmarks.measure.processes import train_together  # noqa: E402
from benchmarks.measure.record import RESULTS, facts, is_stored, read_runs, store_run  # noqa: E402
from benchmarks.measure.sample_set import about, frames_of, recipe, start_run, without_bars  # noqa: E402
from benchmarks.measure.ways import TURN_SECONDS, Step, steps_in_turn, turn  # noqa: E402
from depthzoo.models import create_model, get_builder  # noqa: E402
from depthzoo.predictor import select_device  # noqa: E402
from export.latency import cuda_math  # noqa: E402
from export.run_onnx import interleave  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.crew import cores  # noqa: E402
from train.loading import SampleStream, open_frames  # noqa: E402
from train.shards import ShardDataset  # noqa: E402

OVER = ("pixels", "batch", "workers", "processes")
WORK = ("inference", "training")
MODELS_SHOWN = ("unet_mobilenet_v3", "unet_resnet50")
SIZES = ((96, 128), (144, 192), (192, 256), (288, 384), (384, 512), (480, 640))
BATCHES = (1, 2, 4, 8, 16, 32)
SIZE = {"cpu": (96, 128), "cuda": (288, 384)}  # where batch, workers or processes vary
BATCH = 4  # where they do not
FRAMES = 24
LOADED_BATCHES = 8  # of a turn of the loader
SETTINGS = ("over", "what", "model", "size", "batch", "asked", "data")


# -- pixels and batch -----------------------------------------------------------------------------------------


def by_turns(
    curve: Curve,
    points: Sequence[tuple[int, str, int]],
    make: Callable[[int], Step],
    device: torch.device,
    seconds: float,
) -> Curve:
    """Measures points that take turns.

    Args:
        curve: to be filled.
        points: value, label and images of a step, the cheapest first.
        make: from a point's number to its step.
        device: of the steps.
        seconds: for all; a point that would take too much of them is left out, as are those after it.
    """
    turns: dict[str, Step] = {}
    counts: dict[str, int] = {}
    first: dict[str, float] = {}
    known = {label: (value, images) for value, label, images in points}
    for number, (_, label, _) in enumerate(points):
        try:
            step = turn(make(number), 1, device)
            times = [elapsed(step) for _ in range(2)]
        except RuntimeError as error:
            if not is_memory(error):
                raise
            curve.missing[label] = "out of memory"
            free_unused()
            break
        # interleave() times each at least four times.
        if turns and 4 * (times[1] + sum(first.values()) / 1000) > seconds:
            late = f"takes more than --seconds {seconds:g}"
            curve.missing |= dict.fromkeys((text for _, text, _ in points[number:]), late)
            break
        counts[label], first[label] = steps_in_turn(times[1], device), 1000 * times[1]
        turns[label] = turn(step, counts[label], device)
    for label, latency in interleave(turns, 30, seconds, first).items():
        value, images = known[label]
        times = [one / 1000 for one in (latency.median, latency.quickest, latency.slowest)]
        curve.rows.append(row(value, images * counts[label], times, label=label, turns=latency.runs))
    return curve


def elapsed(step: Step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def stepper(
    what: str,
    model: str,
    size: tuple[int, int],
    batch: int,
    data: Path,
    frames: int,
    out: Path,
    device: torch.device,
) -> Step:
    """A step of inference on random pictures, or of training."""
    if what == "training":
        config = recipe(model, size=size, batch_size=batch, frames=frames)
        step: Step = start_run(config, data, out, device).train_step
        return step
    network = create_model(model, weights=None).to(device).eval()
    images = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def infer() -> object:
        with torch.inference_mode():
            return network(images)

    return infer


# -- workers and processes ------------------------------------------------------------------------------------


def over_workers(curve: Curve, data: Path, device: torch.device, frames: int, rounds: int) -> Curve:
    """The loader's threads."""
    assert curve.batch is not None and curve.size is not None
    dataset, batch = ShardDataset(data, "train", frames), curve.batch
    found: dict[str, Batches] = {}
    for workers in curve.asked:
        lazy = open_frames(dataset, "none", device, workers)
        found[str(workers)] = in_order(SampleStream(lazy, 0, ahead=batch if workers else 0), batch)
    with without_bars():
        found["from memory"] = in_order(SampleStream(open_frames(dataset, "ram", device), 0), batch)
    runs = {
        name: partial(speed, each, LOADED_BATCHES * batch, curve.size, batch, device)
        for name, each in found.items()
    }
    speeds = time_in_turns(runs, rounds)
    for workers in curve.asked:
        curve.rows.append(row(workers, 1, [1 / one.frames_per_s for one in speeds[str(workers)]]))
    curve.more["from memory"] = round(statistics.median(one.frames_per_s for one in speeds["from memory"]), 3)
    return curve


def over_processes(curve: Curve, data: Path, device: torch.device, frames: int, seconds: float) -> Curve:
    """Processes, in two rounds."""
    assert curve.batch is not None and curve.size is not None
    there = torch.cuda.device_count() if device.type == "cuda" else cores()
    counts = [count for count in curve.asked if count <= there]
    unit = "GPUs" if device.type == "cuda" else "cores"
    curve.missing |= {f"{count} processes": f"{there} {unit}" for count in curve.asked if count > there}
    times: dict[int, list[float]] = {count: [] for count in counts}
    share = seconds / 2 / max(1, len(counts))
    for count in 2 * counts:
        arguments = (curve.model, curve.size, curve.batch, data, frames, device.type, share)
        times[count] += train_together(count, *arguments)
    for count in counts:
        curve.rows.append(row(count, count * curve.batch, times[count], turns=len(times[count])))
    for each in curve.rows:
        alone = curve.rows[0]["images_per_s"] / curve.rows[0]["value"]
        each["efficiency"] = round(each["images_per_s"] / each["value"] / alone, 3)
    return curve


# -- the command ----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="scaling.py", description=(__doc__ or "").splitlines()[0])
    add = main.add_argument
    add("--over", nargs="+", choices=OVER, default=list(OVER), help="(default: all)")
    add("--models", nargs="+", default=list(MODELS_SHOWN), metavar="NAME", help="of the zoo")
    add("--sizes", nargs="+", type=parse_size, default=list(SIZES), metavar="HxW", help="over pixels")
    add("--batches", nargs="+", type=int, default=list(BATCHES), metavar="N", help="over batch")
    add("--workers", nargs="+", type=int, metavar="N", help="(default: 0, 1, 2, 4 ... up to twice the cores)")
    add(
        "--processes",
        nargs="+",
        type=int,
        metavar="N",
        help="(default: 1, 2, 4 ... as many as GPUs or cores)",
    )
    add("--size", type=parse_size, metavar="HxW", help="elsewhere (default: 96x128 on a CPU, else 288x384)")
    add("--batch", type=int, default=BATCH, metavar="N", help=f"elsewhere (default: {BATCH})")
    add("--data", type=Path, metavar="DIR", help="made by train.prepare (default: rendered rooms)")
    add("--frames", type=int, default=FRAMES, metavar="N", help=f"of it (default: {FRAMES})")
    add("--seconds", type=float, default=30, metavar="S", help="for each curve")
    add("--rounds", type=int, default=5, metavar="N", help="over workers")
    add("--device", metavar="cpu|cuda")
    add("--missing-only", action="store_true", help="leave out what is in the file already")
    add("--out", type=Path, metavar="FILE", help="(default: benchmarks/results/scaling.DEVICE.json)")
    return main


def doubled(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``."""
    return list(itertools.takewhile(lambda n: n <= most, (2**i for i in range(30))))


def curves(args: argparse.Namespace, device: torch.device) -> list[Curve]:
    """What is asked for, still empty."""
    size = args.size or SIZE[device.type]
    processes = args.processes or doubled(
        max(2, torch.cuda.device_count() if device.type == "cuda" else cores())
    )
    workers = [0, *doubled(2 * cores())] if args.workers is None else args.workers
    pixels = sorted(height * width for height, width in args.sizes)
    found = []
    for over in args.over:
        if over == "workers":
            found.append(Curve(over, "loader", "augmented batches", args.batch, size, sorted(workers)))
        for model in args.models:
            if over == "pixels":
                found += [Curve(over, model, what, args.batch, None, pixels) for what in WORK]
            elif over == "batch":
                found += [Curve(over, model, what, None, size, sorted(args.batches)) for what in WORK]
            elif over == "processes":
                found.append(Curve(over, model, "training", args.batch, size, sorted(processes)))
    return found


def fill(curve: Curve, args: argparse.Namespace, data: Path, device: torch.device) -> Curve:
    """Measures a curve."""
    if curve.over == "workers":
        return over_workers(curve, data, device, args.frames, args.rounds)
    if curve.over == "processes":
        return over_processes(curve, data, device, args.frames, args.seconds)
    if curve.over == "pixels":
        sizes = sorted(args.sizes, key=lambda size: size[0] * size[1])
        cases = [(size, args.batch) for size in sizes]
        points = [(height * width, f"{height}x{width}", args.batch) for height, width in sizes]
    else:
        cases = [(curve.size, batch) for batch in curve.asked]
        points = [(batch, str(batch), batch) for batch in curve.asked]
    with tempfile.TemporaryDirectory() as folder:

        def make(number: int) -> Step:
            out = Path(folder, str(number))
            return stepper(curve.what, curve.model, *cases[number], data, args.frames, out, device)

        # Training is timed as a run computes: in its recipe's precision, in which CUDA's float32 is TF32.
        curve.more["tf32"] = curve.what == "training"
        with cuda_math(curve.more["tf32"]):
            return by_turns(curve, points, make, device, args.seconds)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be measured."""
    for name in args.models:
        get_builder(name)
    for flag, least in (("batches", 1), ("workers", 0), ("processes", 1)):
        values = getattr(args, flag)
        if values and min(values) < least:
            raise ValueError(f"--{flag} {min(values)}: expected at least {least}")
    for flag in ("batch", "frames", "seconds", "rounds"):
        if not getattr(args, flag) > 0:
            raise ValueError(f"--{flag} {getattr(args, flag)}: expected more than 0")
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"{args.out}: the folder {args.out.parent} does not exist")


def run(args: argparse.Namespace) -> int:
    """Measures, prints and stores, curve by curve."""
    check(args)
    device = select_device(args.device)
    if device.type not in TURN_SECONDS:
        raise ValueError(f"--device {device}: expected cpu or cuda")
    out = args.out or RESULTS / f"scaling.{device.type}.json"
    read_runs(out)
    described = facts(device)
    with frames_of(args.data, args.frames) as data:
        described["data"] = about(args.data, data, args.frames)
        for curve in curves(args, device):
            if args.missing_only and is_stored(out, described | curve.facts(), SETTINGS):
                print(f"{curve.model}, {curve.what}, over {curve.over}: stored already", flush=True)
                continue
            print("\n".join(fill(curve, args, data, device).lines()), flush=True)
            store_run(out, described | curve.facts(), SETTINGS)
            free_unused()
    print(f"all figures in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

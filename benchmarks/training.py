"""Images per second and memory of training: the plain loop that the project began with against ``python -m train``.

    python benchmarks/training.py [--models NAME ...] [--data DIR] [--size HxW] [--batches 4 16] [--device cuda]

Each model trains in turns, in one run: the plain loop ("seed", measure/seed_loop.py), the same loop with its frames
decoded beforehand ("seed from memory"), and the steps of ``python -m train`` with the model's recipe ("ours": bf16,
channels_last, augmentation, moving average), at equal batches. DIR is a data set of ``train.prepare``; without one,
rooms are rendered. Peak memory is that of a step once warm: of CUDA's allocator, or on a CPU of a new process above
what it had before the loop. Then the largest batch of the recipe that cards of 16, 24 and 80 GB hold, with and without
recomputed activations: tried out on a GPU that is at least as large, else counted from the tensors that steps of 4 and
of 8 pictures make and hold (kernels take some more). Each model's figures are stored when it is done; --missing-only
goes on from there.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train and export.
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.measure import memory  # noqa: E402
from benchmarks.measure.ceiling import Ceiling, measure_ceiling  # noqa: E402
from benchmarks.measure.children import in_children  # noqa: E402
from benchmarks.measure.largest_batch import GIB, free_unused, is_memory, largest_rows  # noqa: E402
from benchmarks.measure.record import RESULTS, facts, is_stored, read_runs, store_run  # noqa: E402
from benchmarks.measure.sample_set import about, frames_of, recipe  # noqa: E402
from benchmarks.measure.seed_loop import write_files  # noqa: E402
from benchmarks.measure.ways import TURN_SECONDS, WAYS, Step, Work, start, steps_in_turn, turn  # noqa: E402
from depthzoo.models import get_builder, list_models  # noqa: E402
from depthzoo.predictor import select_device  # noqa: E402
from export.run_onnx import Latency, interleave  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.shards import ShardDataset  # noqa: E402

STAGES = ("speed", "largest")
BATCHES = (4, 16)  # the plain loop's, the recipe's
CARDS = (16, 24, 80)  # GB, counted as 2**30 as makers do
CPU_SIZE = (96, 128)
FRAMES = 24
WARM_STEPS = 2
ROUNDS = 15
SETTINGS = ("stage", "model", "size", "asked", "precision", "data")
HEAD = (
    f"{'training, images/s':<20}{'way':<17}{'batch':>6}{'':>6}{'median':>9}{'lowest':>9}{'highest':>9}{'x seed':>8}"
    f"{'GiB':>7}{'of seed':>9}{'% floor':>9}"
)
ceiling_of = functools.cache(measure_ceiling)


def speed_rows(
    works: list[Work], seconds: float, rounds: int, ceiling: Ceiling, missing: dict[str, str]
) -> list[dict[str, Any]]:
    """A row for each loop: they take turns until the time is over, three rounds at least.

    Args:
        works: of one device.
        seconds: no round starts later.
        rounds: at most.
        ceiling: of the device.
        missing: what does not run is added, with the reason.
    """
    device = torch.device(works[0].device)
    turns: dict[str, Step] = {}
    first: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, work in enumerate(works):
            name, before = work.label(), memory.held(device)
            try:
                step, once, each = warm_up(work, Path(folder, str(number)), device)
                flop = count_flop(step)
                peak, by = peak_of(work, step, before or 0, device)
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                missing[name] = "out of memory"
                free_unused()
                continue
            count = steps_in_turn(each, device)
            turns[name], first[name] = turn(step, count, device), 1000 * once
            floor = ceiling.floor(flop / 1e9, 0, work.arithmetic())
            rows[name] = {
                "model": work.model,
                "way": work.way,
                "batch": work.batch,
                "precision": work.arithmetic(),
                "gflop": round(flop / 1e9, 3),
                "floor": floor and round(floor, 3),
                "first": round(1000 * once, 1),
                "steps_per_turn": count,
                "peak_memory": peak,
                "memory_by": by,
            }
        if turns:
            for name, latency in interleave(turns, rounds, seconds, first).items():
                add_speed(rows[name], latency)
        turns.clear()
    compare(rows)
    return list(rows.values())


def peak_of(work: Work, step: Step, before: int, device: torch.device) -> tuple[int | None, str | None]:
    """Bytes of a step at most, and whose measure they are."""
    if device.type == "cuda":
        peak = memory.peak(step, device)
        return (None, None) if peak is None else (peak - before, "cuda allocator")
    try:
        grown = in_children(growth, [(work,)])[0]
    except ChildProcessError as error:
        print(f"{work.label()}: no peak memory: {error}", file=sys.stderr)
        grown = None
    return grown, None if grown is None else "resident set"


def growth(work: Work) -> int | None:
    """Bytes by which this process grows at most, from before its loop is made to the end of some steps."""
    device = torch.device(work.device)
    before = memory.held(device)

    def some_steps() -> None:
        step = start(work, Path(folder, "run"))
        for _ in range(1 + WARM_STEPS):
            step()

    with tempfile.TemporaryDirectory() as folder:
        peak = memory.peak(some_steps, device)
    return None if peak is None or before is None else peak - before


def add_speed(row: dict[str, Any], latency: Latency) -> None:
    """What the turns of a loop come to."""
    images, floor = 1000 * row["steps_per_turn"] * row["batch"], row["floor"]
    row |= {
        "images_per_s": round(images / latency.median, 3),
        "lowest": round(images / latency.slowest, 3),
        "highest": round(images / latency.quickest, 3),
        "turns": latency.runs,
        "percent_of_floor": floor and round(100 * floor * row["steps_per_turn"] / latency.median, 1),
    }


def warm_up(work: Work, out: Path, device: torch.device) -> tuple[Step, float, float]:
    """A loop that has run a few steps, and the seconds of its first one and of its last."""
    step, times = start(work, out), []
    for _ in range(1 + WARM_STEPS):
        started = time.perf_counter()
        turn(step, 1, device)()
        times.append(time.perf_counter() - started)
    return step, times[0], times[-1]


def count_flop(step: Step) -> int:
    """Floating-point operations of a step: three times those of its convolutions and matrix products on the way
    forward, since gradients of weights and of inputs take as many each. PyTorch counts the way back too, but takes a
    depthwise convolution for a full one there.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    return 3 * sum(count for operator, count in counts.items() if "backward" not in str(operator))


def compare(rows: dict[str, dict[str, Any]]) -> None:
    """Adds to each row what it is of the plain loop's at the same batch."""
    plain = {row["batch"]: row for row in rows.values() if row["way"] == WAYS[0]}
    for row in rows.values():
        seed = plain.get(row["batch"])
        known = seed is not None and seed["peak_memory"] and row["peak_memory"]
        row["times_seed"] = round(row["images_per_s"] / seed["images_per_s"], 3) if seed else None
        row["memory_of_seed"] = round(row["peak_memory"] / seed["peak_memory"], 3) if seed and known else None


# -- the command ----------------------------------------------------------------------------------------------


def gib(nbytes: int | None) -> str:
    return "" if nbytes is None else f"{nbytes / GIB:.2f}"


def speed_line(row: dict[str, Any]) -> str:
    """A line of the table."""
    of_seed = "" if row["memory_of_seed"] is None else f"{row['memory_of_seed']:.2f}"
    times = "" if row["times_seed"] is None else f"{row['times_seed']:.2f}"
    floor = "" if row["percent_of_floor"] is None else f"{row['percent_of_floor']:.0f}"
    return (
        f"{row['model']:<20}{row['way']:<17}{row['batch']:>6}{row['precision']:>6}{row['images_per_s']:>9.2f}"
        f"{row['lowest']:>9.2f}{row['highest']:>9.2f}{times:>8}{gib(row['peak_memory']):>7}{of_seed:>9}{floor:>9}"
    )


def largest_lines(rows: list[dict[str, Any]], size: tuple[int, int]) -> Iterator[str]:
    """Lines of the table: all cards of a model."""
    for again in (False, True):
        ours = [row for row in rows if row["recompute"] == again]
        if ours:
            what = f"largest batch, {size[0]}x{size[1]}, {ours[0]['by']}{', recomputing' if again else ''}"
            batches = "".join(f"{row['memory'] // GIB:>6} GB: {row['batch']:<5}" for row in ours)
            yield f"{ours[0]['model']:<20}{what:<46}{batches}".rstrip()


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="training.py", description=(__doc__ or "").splitlines()[0])
    add = main.add_argument
    add("--models", nargs="+", default=[], metavar="NAME", help="of the zoo (default: all)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="(default: both)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="(default: all)")
    add("--data", type=Path, metavar="DIR", help="made by train.prepare (default: rendered rooms)")
    add("--frames", type=int, default=FRAMES, metavar="N", help=f"of it (default: {FRAMES})")
    add("--size", type=parse_size, metavar="HxW", help="(default: the recipe's; speed on a CPU: 96x128)")
    add("--batches", nargs="+", type=int, default=list(BATCHES), metavar="N", help="(default: 4 16)")
    add("--cards", nargs="+", type=int, default=list(CARDS), metavar="GB", help="(default: 16 24 80)")
    add("--precision", choices=("bf16", "fp16", "fp32"), help="of ours (default: the recipe's)")
    add("--seconds", type=float, default=60, metavar="S", help="of turns, for each model")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="of turns at most")
    add("--device", metavar="cpu|cuda")
    add("--missing-only", action="store_true", help="leave out what is in the file already")
    add("--out", type=Path, metavar="FILE", help="(default: benchmarks/results/training.DEVICE.json)")
    return main


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be measured."""
    for name in args.models:
        get_builder(name)
    for flag in ("frames", "rounds", "seconds"):
        if not getattr(args, flag) > 0:
            raise ValueError(f"--{flag} {getattr(args, flag)}: expected more than 0")
    for flag in ("batches", "cards"):
        if min(getattr(args, flag)) < 1:
            raise ValueError(f"--{flag} {min(getattr(args, flag))}: expected at least 1")
    if args.out and not args.out.parent.is_dir():
        raise ValueError(f"{args.out}: the folder {args.out.parent} does not exist")


def measure(stage: str, work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model and one stage, printed too."""
    missing: dict[str, str] = {}
    found: dict[str, Any] = {"rows": [], "largest_batch": [], "missing": missing}
    if stage == "speed":
        if not work.files.is_dir():
            write_files(ShardDataset(work.data, "train", work.frames), work.files, work.size)
        ceiling = ceiling_of(torch.device(work.device))
        works = [replace(work, way=way, batch=batch) for batch in args.batches for way in args.ways]
        found["rows"] = speed_rows(works, args.seconds, args.rounds, ceiling, missing)
        found["ceiling"] = ceiling.facts()
    else:
        found["largest_batch"] = list(largest_rows(work, args.cards, missing))
    lines = [*map(speed_line, found["rows"]), *largest_lines(found["largest_batch"], work.size)]
    lines += [f"not measured: {what}: {reason}" for what, reason in missing.items()]
    print("\n".join(lines), flush=True)
    return found


def run(args: argparse.Namespace) -> int:
    """Measures, prints and stores, model by model."""
    check(args)
    device = select_device(args.device)
    if device.type not in TURN_SECONDS:
        raise ValueError(f"--device {device}: expected cpu or cuda")
    out = args.out or RESULTS / f"training.{device.type}.json"
    read_runs(out)
    described = facts(device)
    with frames_of(args.data, args.frames) as data, tempfile.TemporaryDirectory() as folder:
        settings = {"data": about(args.data, data, args.frames), "precision": args.precision}
        for stage in args.stages:
            if stage == "speed":
                print(HEAD)
            for name in args.models or list_models():
                quick = stage == "speed" and device.type == "cpu"
                size = args.size or (CPU_SIZE if quick else recipe(name).size)
                files = Path(folder, "{}x{}".format(*size))
                work = Work(name, "ours", 1, size, data, files, args.frames, str(device), args.precision)
                asked = args.batches if stage == "speed" else args.cards
                stored = (
                    described | settings | {"stage": stage, "model": name, "size": list(size), "asked": asked}
                )
                if args.missing_only and is_stored(out, stored, SETTINGS):
                    print(f"{name:<20}{stage} is stored already", flush=True)
                    continue
                store_run(out, stored | measure(stage, work, args), SETTINGS)
                free_unused()
    print(f"all figures in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

"""Milliseconds of one call: models of the zoo and their peers, with every backend.

    python -m benchmarks.latency --models unet_resnet50 --peers all --sizes 240x320 480x640 --batches 1 16

All cases of one size and batch take turns, round by round, in one process, so that whatever else the machine does
affects them alike: only rows of one run are to be compared. The rows go to benchmarks/results/latency.jsonl after each
size and batch. A network that takes only multiples of 32 or 14 gets the nearest size, which its row states. INT8 is
calibrated on the bundled pictures or on those of --data.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import nn

import depthzoo
from benchmarks.backends import (
    BACKENDS,
    PEER_BACKENDS,
    Call,
    CannotRunError,
    Case,
    input_size,
    milliseconds,
    prepare,
)
from benchmarks.peers import PEERS, build_peer
from benchmarks.roofline import Peak, count_cost, measure_peak
from depthzoo.errors import suggest
from depthzoo.prediction import select_device
from train import records
from train.arguments import command, parse_size
from train.records import RESULTS, Row

# A call that is faster runs twice in its turn, and the second counts: the first finds the caches of other networks.
TWICE_MS = 500
# Seconds before each call on a CPU, in which idle threads of another library stop spinning.
PAUSE = 0.05
MIN_ROUNDS = 3


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, seconds: float, pause: float = 0.0
) -> tuple[dict[str, list[float]], bool]:
    """Time several calls in turn.

    Args:
        runs: calls by name; each returns when its work is done.
        rounds: timed calls of each, after one round that does not count.
        seconds: no new round starts after this time, once three are done.
        pause: seconds before each call.

    Returns:
        Milliseconds of all complete rounds by name, and whether Ctrl-C ended them.

    Raises:
        KeyboardInterrupt: before three rounds are done.
    """
    done: list[dict[str, float]] = []
    interrupted = False
    started = time.perf_counter()
    try:
        while len(done) <= rounds:
            if len(done) > MIN_ROUNDS and time.perf_counter() - started > seconds:
                break
            times = {}
            for name, run in runs.items():
                time.sleep(pause)
                times[name] = milliseconds(run)
                if times[name] < TWICE_MS:
                    times[name] = milliseconds(run)
            done.append(times)
    except KeyboardInterrupt:
        if len(done) <= MIN_ROUNDS:
            raise
        interrupted = True
    return {name: [times[name] for times in done[1:]] for name in runs}, interrupted


def cases(args: argparse.Namespace, size: tuple[int, int], batch: int) -> Iterator[Case]:
    """Yield all cases of one size and batch."""
    backends = BACKENDS[args.device.type]
    for name in (*args.models, *args.peers):
        try:
            module, multiple, allowed = build(name)
        except ModuleNotFoundError as error:
            print(f"skipped: {name}: {error}", file=sys.stderr)
            continue
        for backend in args.backends:
            for precision in backends[backend] if backend in allowed else ():
                only_float = name in PEERS and backend == "onnxruntime" and precision not in ("fp32", "tf32")
                if precision in args.precisions and not only_float:
                    own = input_size(backend, size, multiple)
                    yield Case(name, module, backend, precision, own, batch, args.device, args.data)


def build(name: str) -> tuple[nn.Module, int, tuple[str, ...]]:
    """Build a network: trained where the zoo has weights. Return it, its multiple and its backends."""
    if name in PEERS:
        return build_peer(name), PEERS[name].multiple, PEER_BACKENDS
    torch.manual_seed(0)
    weights = "DEFAULT" if name in depthzoo.list_models(pretrained=True) else None
    return depthzoo.create_model(name, weights=weights).eval(), 1, tuple(BACKENDS["cuda"])


def describe(case: Case, size: tuple[int, int], start: Row) -> Row:
    """Return the row of a case before it is timed. "asked" is the size that its own is nearest to."""
    height, width = case.size
    row = start | {"model": case.name, "peer": case.name in PEERS, "backend": case.backend}
    row |= {"asked": "{}x{}".format(*size)}
    return row | {"precision": case.precision, "height": height, "width": width, "batch": case.batch}


def measure(
    args: argparse.Namespace, size: tuple[int, int], batch: int, peak: Peak, start: Row
) -> tuple[list[Row], bool]:
    """Time all cases of one size and batch in turn. Return their rows, and whether Ctrl-C ended it."""
    calls: dict[str, Call] = {}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args, size, batch):
            row = describe(case, size, start)
            name = f"{case.name} {case.backend} {case.precision} {case.size[0]}x{case.size[1]} batch {batch}"
            if args.skip_existing and records.find(args.out, row):
                print(f"stored: {name}", file=sys.stderr)
                continue
            try:
                calls[name] = prepare(case, Path(folder))
            except CannotRunError as error:
                print(f"skipped: {name}: {error}", file=sys.stderr, flush=True)
                continue
            print(f"ready: {name}", file=sys.stderr, flush=True)
            cost = count_cost(case.module, case.size, batch)
            bound = None if case.backend == "predictor" else peak.bound(cost, case.precision)
            rows[name] = row | {
                "parameters": cost.parameters,
                "gflop": round(cost.gflop, 3),
                "roofline_ms": bound and round(bound, 3),
            }
        pause = PAUSE if args.device.type == "cpu" else 0.0
        runs = {name: call.run for name, call in calls.items()}
        times, interrupted = interleave(runs, args.rounds, args.seconds, pause)
    for name, call in calls.items():
        rows[name] |= {
            "ms": round(statistics.median(times[name]), 3),
            "ms_min": round(min(times[name]), 3),
            "ms_max": round(max(times[name]), 3),
            "rounds": len(times[name]),
            "cold_ms": round(call.cold_ms, 3),
            "load_ms": call.load_ms and round(call.load_ms, 3),
            "memory": call.memory,
        }
    return list(rows.values()), interrupted


def show(row: Row) -> str:
    """Return a line of the table."""
    what = f"{row['model']:<26}{row['backend']:<18}{row['precision']:<6}{row['height']}x{row['width']:<5}"
    bound = f"{row['roofline_ms'] / row['ms']:6.0%} of the roofline" if row["roofline_ms"] else ""
    return f"{what}{row['batch']:>4}{row['ms']:10.2f} ms ({row['ms_min']:.2f} to {row['ms_max']:.2f}){bound}"


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=summary)
    add = main.add_argument
    add("--models", nargs="*", metavar="NAME", help="of the zoo (default: all; with no NAME: none)")
    add("--peers", nargs="*", metavar="NAME", default=[], help=f"all, or {', '.join(PEERS)} (default: none)")
    add("--backends", nargs="+", metavar="B", help=f"default: all of {', '.join(BACKENDS['cuda'])}")
    add("--precisions", nargs="+", default=["fp32", "tf32", "fp16", "int8"], metavar="P", help="default: all")
    add("--sizes", nargs="+", type=parse_size, default=[(480, 640)], metavar="HxW", help="default: 480x640")
    add("--batches", nargs="+", type=int, default=[1], metavar="N", help="default: 1")
    add("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    add("--rounds", type=int, default=30, metavar="N", help="timed calls of each case (default: 30)")
    add("--seconds", type=float, default=300, metavar="S", help="no new round after this time")
    add("--data", type=Path, metavar="PATH", help="pictures to calibrate INT8 on")
    add("--skip-existing", action="store_true", help="leave out what is stored already")
    add("--out", type=Path, default=RESULTS / "latency.jsonl", metavar="FILE")
    return main


def check(args: argparse.Namespace) -> None:
    """Resolve the defaults, and raise ValueError for unknown names before anything slow starts."""
    args.device = select_device(args.device)
    args.models = depthzoo.list_models() if args.models is None else args.models
    args.peers = list(PEERS) if args.peers == ["all"] else args.peers
    args.backends = args.backends or list(BACKENDS[args.device.type])
    for kind, names, known in (
        ("model", args.models, depthzoo.list_models()),
        ("peer", args.peers, PEERS),
        ("backend", args.backends, BACKENDS[args.device.type]),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}: {suggest(name, known)}")
    if min(args.rounds, *args.batches) < 1:
        raise ValueError("--rounds and --batches must be at least 1")
    records.load(args.out)


def run(args: argparse.Namespace) -> int:
    check(args)
    # One compiled forward per network and size, and cold starts that are cold.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    torch._inductor.config.force_disable_caches = True
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
    start, peak = records.provenance(args.device), measure_peak(args.device)
    for size in args.sizes:
        for batch in args.batches:
            rows, interrupted = measure(args, size, batch, peak, start)
            records.store(args.out, rows)
            for row in rows:
                print(show(row), flush=True)
            if interrupted:
                raise KeyboardInterrupt
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

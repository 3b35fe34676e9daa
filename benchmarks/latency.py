"""Milliseconds of one call: models of the zoo and what a user would pick instead, in every way of running them.

    python benchmarks/latency.py --models unet_resnet50 --peers --sizes 240x320 480x640 native --batches 1 16

All that is timed at one size and batch takes turns, round by round, in one run; only what is in one run is to be
compared. The figures go into results/latency.DEVICE.json after each run. What takes only multiples of 32 or 14 gets the
nearest ones, which its row says. "native" is the size that a network's own preprocessing makes of a 480x640 picture.
The share of the floor is that of the time which the operations take at the rate of a matrix product, or the bytes at
that of a copy, both measured here (measure/ceiling.py, cost.py). INT8 is calibrated on synthetic rooms, or on the
shards of --data; exported files are kept in --files.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's export and train.
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure import backends, timing  # noqa: E402
from benchmarks.measure.backends import BACKENDS, PRECISIONS, TORCH, CannotRunError, Prepared  # noqa: E402
from benchmarks.measure.ceiling import Ceiling, measure_ceiling  # noqa: E402
from benchmarks.measure.cost import Cost, count_cost  # noqa: E402
from benchmarks.measure.exported import FILES  # noqa: E402
from benchmarks.measure.networks import Network, networks  # noqa: E402
from benchmarks.measure.peers import PEERS  # noqa: E402
from benchmarks.measure.record import RESULTS, facts, read_runs, store_run  # noqa: E402
from benchmarks.report.latency_report import report  # noqa: E402
from depthzoo.errors import suggest  # noqa: E402
from depthzoo.models import get_builder, list_models  # noqa: E402
from depthzoo.predictor import select_device  # noqa: E402
from export.graph import ExportError  # noqa: E402
from export.latency import PAUSE  # noqa: E402
from export.run_onnx import Latency, OnnxError, interleave  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.shards import ShardDataset  # noqa: E402

PACKAGES = (
    "torchvision",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "segmentation-models-pytorch",
    "transformers",
)
# A run with other ones of these stands beside an earlier one; with the same ones it takes its place.
KEYS = ("size", "batch", "models", "peers", "backends", "peer_backends", "precisions", "weights")


def measure(
    args: argparse.Namespace,
    device: torch.device,
    size: tuple[int, int] | None,
    batch: int,
    ceiling: Ceiling,
) -> dict[str, Any]:
    """One run: everything at one size and batch, in turns.

    Returns:
        What is stored.

    Raises:
        ValueError: nothing of what was asked for can be timed here.
    """
    missing: dict[str, str] = {}
    run = facts(device, PACKAGES) | {"size": size and list(size), "batch": batch}
    run |= {key: getattr(args, key) for key in KEYS if key not in run}
    run |= {"pause_s": PAUSE[device.type], **timing.settings(device), "ceiling": ceiling.facts()}
    with timing.as_measured(device):
        prepared = dict(prepare_all(args, device, size, batch, missing))
        if not prepared:
            raise ValueError(
                "nothing to time: " + "; ".join(f"{what}: {why}" for what, why in missing.items())
            )
        latencies = interleave(
            {name: each.run for name, (_, each) in prepared.items()},
            args.rounds,
            args.seconds,
            first={name: each.first for name, (_, each) in prepared.items()},
            pause=PAUSE[device.type],
            clock=timing.clock(device),
        )
    rows = [row(about, each, latencies[name], ceiling) for name, (about, each) in prepared.items()]
    return run | {"rows": rows, "missing": missing}


def prepare_all(
    args: argparse.Namespace,
    device: torch.device,
    size: tuple[int, int] | None,
    batch: int,
    missing: dict[str, str],
) -> Iterator[tuple[str, tuple[dict[str, Any], Prepared]]]:
    """What a row says before it is timed, and the call, by name; what cannot be timed goes to ``missing``."""
    ours = list(backends.ways(args.backends, args.precisions, device.type, missing)) if args.models else []
    theirs = [
        (backend, precision)
        for backend in args.peer_backends
        for precision in args.precisions
        if precision in backends.precisions_of(backend, device.type)
    ]
    asked = networks(args.models, args.peers, size, missing, args.weights, args.files, args.data)
    for network in asked:
        costs: dict[tuple[tuple[int, int], int], Cost] = {}
        for backend, precision in theirs if network.peer else ours:
            name = f"{network.name}, {backend} {precision}"
            if backend in missing:
                continue
            started, own = time.perf_counter(), backends.input_size(backend, network.size)
            try:
                each = backends.prepare(network.module, backend, precision, own, batch, device, network.file)
            except (CannotRunError, ExportError, OnnxError) as error:
                missing[backend if getattr(error, "everywhere", False) else name] = str(error)
                continue
            cost = costs.get((own, each.batch)) or count_cost(network.module, own, each.batch)
            costs[own, each.batch] = cost
            print(f"ready: {name}, {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
            yield name, (describe(network, backend, precision, own, each.batch, cost), each)


def describe(
    network: Network, backend: str, precision: str, size: tuple[int, int], batch: int, cost: Cost
) -> dict[str, Any]:
    """What is known of a row without timing."""
    return {
        "model": network.name,
        "peer": network.peer,
        "weights": network.weights,
        "backend": backend,
        "precision": precision,
        "size": list(size),
        "batch": batch,
        "parameters": cost.parameters,
        "gflop": round(cost.gflop, 3),
        "bytes": cost.nbytes(precision),
    }


def row(about: Mapping[str, Any], each: Prepared, latency: Latency, ceiling: Ceiling) -> dict[str, Any]:
    """A row: what is known, and the figures."""
    floor = ceiling.floor(about["gflop"], about["bytes"], about["precision"])
    times = {key: value if key == "runs" else round(value, 3) for key, value in asdict(latency).items()}
    return {
        **about,
        "ready": None if each.ready is None else round(each.ready, 3),
        **times,
        "images_per_s": round(1000 * each.batch / times["median"], 3),
        "peak_memory": each.peak_memory,
        "floor": None if floor is None else round(floor, 3),
        "percent_of_floor": None if floor is None else round(100 * floor / latency.median, 1),
    }


def size_or_native(text: str) -> tuple[int, int] | None:
    """(H, W), or None for "native"."""
    return None if text == "native" else parse_size(text)


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    main = argparse.ArgumentParser(prog="latency.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("--models", nargs="+", metavar="NAME", help="of the zoo, or none (default: all)")
    main.add_argument(
        "--peers", nargs="*", default=["none"], metavar="NAME", help=f"all, none or: {', '.join(PEERS)}"
    )
    main.add_argument("--backends", nargs="+", metavar="B", help=f"default: all of {', '.join(BACKENDS)}")
    main.add_argument(
        "--peer-backends", nargs="+", choices=TORCH, default=["eager"], metavar="B", help="default: eager"
    )
    main.add_argument("--precisions", nargs="+", choices=PRECISIONS, metavar="P", help="default: all")
    main.add_argument(
        "--sizes",
        nargs="+",
        type=size_or_native,
        default=[(480, 640)],
        metavar="HxW|native",
        help="of the input",
    )
    main.add_argument("--batches", nargs="+", type=int, default=[1], metavar="N", help="pictures at once")
    main.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    main.add_argument("--rounds", type=int, default=30, metavar="N", help="timed calls of each")
    main.add_argument(
        "--seconds",
        type=float,
        default=300,
        metavar="S",
        help="no new round after so long, once three are done",
    )
    main.add_argument("--weights", choices=("DEFAULT", "none"), default="DEFAULT", help="none: random ones")
    main.add_argument("--data", type=Path, metavar="DIR", help="shards to calibrate INT8 on")
    main.add_argument("--files", type=Path, default=FILES, metavar="DIR", help="for exported ONNX files")
    main.add_argument(
        "--reference",
        metavar="MODEL[:BACKEND[:PRECISION]]",
        help="of a column of ratios (default: eager:fp32)",
    )
    main.add_argument("--out", type=Path, metavar="FILE", help="default: results/latency.DEVICE.json")
    return main


def check(args: argparse.Namespace, device: torch.device) -> None:
    """Resolves what was left open, and refuses what cannot be before anything slow starts.

    Raises:
        ValueError: with the reason.
    """
    args.models = [] if args.models == ["none"] else args.models or list_models()
    for name in args.models:
        get_builder(name)
    args.peers = list(PEERS) if args.peers in ([], ["all"]) else [] if args.peers == ["none"] else args.peers
    for name in args.peers:
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: {suggest(name, PEERS)}")
    here = [each for each in BACKENDS if backends.precisions_of(each, device.type)]
    args.backends = [each.replace("-", " ") for each in args.backends] if args.backends else here
    for name in args.backends:
        if name not in BACKENDS:
            raise ValueError(f"unknown backend {name!r}: {suggest(name, BACKENDS)}")
    if not args.precisions:
        used = [backends.precisions_of(each, device.type) for each in (*args.backends, *args.peer_backends)]
        args.precisions = [each for each in PRECISIONS if any(each in some for some in used)]
    for name, least in (("rounds", args.rounds), ("batches", min(args.batches))):
        if least < 1:
            raise ValueError(f"--{name} {least}: expected at least 1")
    if args.reference and args.reference.split(":")[0] not in (*args.models, *args.peers):
        raise ValueError(f"--reference {args.reference}: none of the --models and --peers of this run")
    if args.data is not None:
        ShardDataset(args.data, "train")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out}: the folder {args.out.parent} does not exist")
    read_runs(args.out)  # a file that cannot take the figures is met before they are measured


def run(args: argparse.Namespace) -> int:
    """Measures, prints and stores each run."""
    device = select_device(args.device)
    args.out = args.out or RESULTS / f"latency.{device.type}.json"
    check(args, device)
    wanted = [(size, batch) for size in args.sizes for batch in args.batches]
    done = 0
    try:
        ceiling = measure_ceiling(device)
        for size, batch in wanted:
            one = measure(args, device, size, batch, ceiling)
            store_run(args.out, one, KEYS)
            done += 1
            print(report(one, args.reference), flush=True)
    except KeyboardInterrupt:
        print(f"latency.py: interrupted, {done} of {len(wanted)} runs are in {args.out}", file=sys.stderr)
        return 130
    print(f"all figures in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

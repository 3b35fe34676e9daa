"""What ``depthzoo.Predictor`` costs on top of the network: from a JPEG on disk to metres at its own size.

    python benchmarks/predictor.py [NAME...] [--sizes own 480x640]

The network alone, and the Predictor on the file and on the decoded picture, in turn in one run, at the weights' own
working size ("own") or another. The network is the Predictor's own, in the layout that it has there (channels_last on a
CPU), in full float32 (no TF32). The steps around
it are also timed one by one. The figures go into
results/predictor.DEVICE.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train and export.
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure.record import RESULTS, facts, store_run  # noqa: E402
from depthzoo.images import load_image  # noqa: E402
from depthzoo.models import create_model, get_builder, list_models  # noqa: E402
from depthzoo.predictor import Predictor, resize_depth, resize_image, select_device, working_size  # noqa: E402
from export.latency import cuda_math  # noqa: E402
from export.run_onnx import Latency, interleave  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.codec import encode_image  # noqa: E402
from train.rooms import render  # noqa: E402

PICTURE = (480, 640)
QUALITY = 92
# Idle threads of one library may spin for a while on cores that the next call needs.
PAUSE = {"cpu": 0.02, "cuda": 0.0}


def measure(
    name: str, size: tuple[int, int] | None, picture: Path, device: torch.device, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Times one model on one picture.

    Args:
        name: of the zoo; random weights where it has none, which take the same time.
        size: (H, W) to work at; None is the weights' own.
        picture: a file.
        device: where the network runs.
        rounds, seconds: see :func:`export.run_onnx.interleave`.

    Returns:
        A row for each thing timed: "what", "model", "size" (of the network's input), the latencies in milliseconds
        and, but for the steps, "over_forward": its median over the bare network's, less 1.
    """
    known = name in list_models(pretrained=True)
    model = create_model(name, weights="DEFAULT" if known else None)
    predictor = Predictor(model, device, size)
    pixels = load_image(picture)
    work = working_size(pixels.shape[0], pixels.shape[1], predictor.size)
    batch = torch.rand(1, 3, *work, device=device)
    small = torch.rand(1, 1, *work)
    pixels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def forward() -> None:
        model(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    runs: dict[str, Callable[[], object]] = {
        "network": forward,
        "Predictor, file": lambda: predictor(picture),
        "Predictor, array": lambda: predictor(pixels),
        "step: decode": lambda: load_image(picture),
        "step: resize picture": lambda: resize_image(pixels_first, work),
        "step: resize depth": lambda: resize_depth(small, pixels.shape[:2]),
    }
    with torch.inference_mode(), cuda_math(tf32=False):
        latencies = interleave(runs, rounds, seconds, pause=PAUSE[device.type])
    return [row(what, name, work, latency, latencies["network"]) for what, latency in latencies.items()]


def row(what: str, name: str, work: tuple[int, int], latency: Latency, network: Latency) -> dict[str, Any]:
    """One line of the result."""
    values = {"what": what, "model": name, "size": list(work), **asdict(latency)}
    if what.startswith("Predictor"):
        values["over_forward"] = round(latency.median / network.median - 1, 4)
    return values


def table(rows: list[dict[str, Any]]) -> str:
    """The rows to read."""
    lines = []
    for one in rows:
        height, width = one["size"]
        over = f"{one['over_forward']:+8.1%}" if "over_forward" in one else ""
        lines.append(
            f"{one['model']:<20} {height}x{width:<5} {one['what']:<22}{one['median']:9.2f} ms {over:<9}"
            f"({one['quickest']:.2f} to {one['slowest']:.2f}, {one['runs']} runs)"
        )
    return "\n".join(lines)


def parse_working_size(text: str) -> tuple[int, int] | None:
    """ "own" or HxW."""
    return None if text == "own" else parse_size(text)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="predictor.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("names", nargs="*", metavar="NAME", help="of the zoo (default: all with weights)")
    main.add_argument(
        "--sizes", nargs="+", type=parse_working_size, default=[None, PICTURE], metavar="HxW", help="or own"
    )
    main.add_argument("--device", metavar="cpu|cuda", help="default: CUDA where there is one")
    main.add_argument("--rounds", type=int, default=30, metavar="N")
    main.add_argument(
        "--seconds", type=float, default=60, metavar="S", help="of one model at one size, about"
    )
    main.add_argument("--out", type=Path, metavar="FILE", help="default: results/predictor.DEVICE.json")
    return main


def run(args: argparse.Namespace) -> int:
    """Measures, prints and stores."""
    if args.rounds < 3:
        raise ValueError(f"--rounds {args.rounds}: expected at least 3")
    names = args.names or list_models(pretrained=True)
    for name in names:
        get_builder(name)
    device = select_device(args.device)
    out = args.out or RESULTS / f"predictor.{device.type}.json"
    if not out.parent.is_dir():
        raise ValueError(f"{out}: the folder {out.parent} does not exist")
    sizes = ["x".join(map(str, size)) if size else "own" for size in args.sizes]
    settings = {"picture": list(PICTURE), "names": sorted(names), "sizes": sizes}
    report = facts(device, ["pillow", "numpy"]) | settings | {"tf32": False, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(encode_image(render(17, PICTURE).image, quality=QUALITY)[1])
        for name in names:
            for size in args.sizes:
                rows = measure(name, size, picture, device, args.rounds, args.seconds)
                print(table(rows), flush=True)
                report["rows"] += rows
    store_run(out, report, list(settings))
    print(f"-> {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

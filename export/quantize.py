"""Turns a float32 ONNX file of ours into an INT8 one.

    python export/quantize.py unet_resnet50.onnx --out unet_resnet50_int8.onnx --data DIR

Calibrated on the train split of shards made by ``train.prepare``, or on synthetic rooms, which the file then
says. --sensitivity shows how far each layer alone moves the depth; --float keeps layers in float32.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    if not __package__:  # run as a file: only depthzoo is installed, the rest is found from the checkout
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import onnx

    from export.facts import read_facts, write_facts
    from export.graph import ExportError, check_path, layers, write
    from export.int8 import FRAMES, PERCENTILE, calibrated
    from export.parity import Parity, Reference, compare, shapes_to_compare
    from export.pictures import Pictures
    from export.run_onnx import OnnxDepth, Parser
    from export.sensitivity import Moved, sensitivity
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    root = Path(__file__).resolve().parent.parent
    todo = f"run `make setup` or `pip install -e '{root}[export]'`"
    print(f"quantize: error: {missing.name} is not installed: {todo}", file=sys.stderr)
    sys.exit(2)

LOOKED_AT = 4  # pictures that --sensitivity takes the depth of


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A float32 file of ours and its metadata.

    Raises:
        ExportError: any other file.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        model = onnx.load_from_string(path.read_bytes())
        onnx.checker.check_model(model)
    except Exception:  # protobuf's and the checker's errors share no base of their own
        raise ExportError(f"{path} is no ONNX file, or one cut short") from None
    facts = read_facts(model)
    if not str(facts.get("format", "")).startswith("depthzoo/") or "precision" not in facts:
        raise ExportError(
            f"{path} is an ONNX file, but not one made by export/to_onnx.py, or it is cut short"
        )
    if facts["precision"] != "fp32":
        raise ExportError(f"{path} is {facts['precision']} already; quantise the fp32 file")
    if facts["input"]["type"] != "float32":
        raise ExportError(
            f"{path} takes {facts['input']['type']}; for that: to_onnx.py --precision int8 --uint8"
        )
    return model, facts


def quantize_file(
    source: Path,
    path: Path,
    data: Path | None = None,
    *,
    keep: Sequence[str] = (),
    frames: int = FRAMES,
    percentile: float = PERCENTILE,
) -> Parity:
    """Writes the INT8 form of a float32 file; it appears only once it has been compared with that.

    Args:
        source: made by ``export/to_onnx.py``.
        path: the file to write.
        data: shards made by ``train.prepare``; else synthetic rooms.
        keep: layers that stay in float32.
        frames: to calibrate on.
        percentile: of each activation's values that lie within its range.

    Raises:
        ExportError: ``source`` is no such file, an unknown layer, or a difference over the bound.
        DatasetError: ``data`` that cannot be read.
        OSError: if the file cannot be written.
    """
    check_path(path)
    model, facts = read(source)
    float_file = OnnxDepth(source)
    quantized, facts["calibration"] = calibrated(
        model,
        Pictures(data, ("train", "val")),
        float_file.size,
        exact=float_file.fixed is not None,
        keep=keep,
        frames=frames,
        percentile=percentile,
    )
    facts |= {"precision": "int8", "parity": {}}
    write_facts(quantized, facts)
    onnx.checker.check_model(quantized, full_check=True)
    linear = facts.get("arguments", {}).get("head") == "linear"
    depth_range = None if linear else (facts["depth_range"][0], facts["depth_range"][1])
    reference = Reference(float_file.run, facts["weights"] != "random", depth_range)
    session = OnnxDepth(quantized.SerializeToString())
    parity = compare(reference, [session.run], shapes_to_compare(session.fixed), Pictures(data), "int8")
    if not parity.holds:
        raise ExportError(f"{source}: INT8 differs too far from it and was not kept: {parity}")
    write_facts(quantized, facts | {"parity": parity.facts() | {"with": "the fp32 file"}})
    write(quantized.SerializeToString(), path)
    return parity


def print_sensitivity(path: Path, data: Path | None, frames: int, percentile: float) -> None:
    """The layers, those first that move the depth most."""
    model, facts = read(path)
    size = (int(facts["size"][0]), int(facts["size"][1]))
    exact = OnnxDepth(path).fixed is not None
    calibration = Pictures(data, ("train", "val")).calibration(frames, size, exact)
    pictures = Pictures(data).calibration(LOOKED_AT, size, exact)
    moved: list[Moved] = []
    count = len(layers(model))
    for result in sensitivity(model, calibration, pictures, percentile):
        moved.append(result)
        if sys.stderr.isatty():
            print(f"\r{len(moved)} of {count} layers", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    print("change of the depth where one layer alone is INT8, m\n    mean      max  layer")
    for result in sorted(moved, reverse=True):
        print(f"{result.mean:8.4f} {result.max:8.3f}  {result.layer}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="quantize", description="Turn a float32 ONNX file of ours into an INT8 one.")
    parser.add_argument("file", type=Path, metavar="FILE", help="made by export/to_onnx.py, fp32")
    parser.add_argument("--out", type=Path, metavar="PATH", help="the file (default: ./NAME_int8.onnx)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="shards of real frames to calibrate on")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help=f"(default: {FRAMES})")
    parser.add_argument(
        "--percentile",
        type=float,
        default=PERCENTILE,
        metavar="P",
        help=f"of an activation's values that its range holds; 100: all (default: {PERCENTILE})",
    )
    parser.add_argument(
        "--float", nargs="+", default=[], metavar="LAYER", dest="keep", help="layers to keep in float32"
    )
    parser.add_argument(
        "--sensitivity", action="store_true", help="show what each layer does to the depth; write nothing"
    )
    args = parser.parse_args(argv)
    path = args.out or Path(f"{args.file.stem}_int8.onnx")
    started = time.perf_counter()
    try:
        check(args, path)
        if args.sensitivity:
            print_sensitivity(args.file, args.data, args.frames, args.percentile)
            return 0
        read(args.file)
        print(f"calibrating on {args.frames} {Pictures(args.data, ('train', 'val'))}", flush=True)
        parity = quantize_file(
            args.file, path, args.data, keep=args.keep, frames=args.frames, percentile=args.percentile
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("quantize: interrupted, nothing written", file=sys.stderr)
        return 130
    print(f"parity with {args.file}: {parity}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
    return 0


def check(args: argparse.Namespace, path: Path) -> None:
    """Raises ExportError for what cannot work, before anything slow starts."""
    if args.frames < 1:
        raise ExportError(f"--frames must be 1 or more, not {args.frames}")
    if not 50 < args.percentile <= 100:
        raise ExportError(f"--percentile must be over 50 and at most 100, not {args.percentile:g}")
    if not args.sensitivity:
        check_path(path)


if __name__ == "__main__":
    sys.exit(main())

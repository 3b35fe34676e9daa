"""Exports models of the zoo, each to one self-contained ONNX file, and compares it with PyTorch.

    python export/to_onnx.py unet_resnet50 --out unet_resnet50.onnx
    python export/to_onnx.py --all --precision int8 --data DIR --out onnx

Input ``image``: float32 (N, 3, H, W), RGB in [0, 1], H and W multiples of 32; with --uint8 uint8 (N, H, W, 3) of
any H and W. Output ``depth``: float32 (N, 1, H, W), metres. What else a consumer needs stands in the file's
metadata (``run_onnx.py --info``).
"""

import argparse
import copy
import os
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

try:
    if not __package__:  # run as a file: only depthzoo is installed, the rest is found from the checkout
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import onnx
    import torch

    from depthzoo import weights as zoo_weights
    from depthzoo.models import DepthModel, create_model, get_builder, list_models
    from export import latency
    from export.facts import describe, working_size, write_facts
    from export.graph import (
        MULTIPLE,
        OPSETS,
        ExportError,
        check_path,
        fix_size,
        part_logits,
        trace,
        write,
    )
    from export.half import as_on_gpu, to_half
    from export.int8 import FRAMES, calibrated
    from export.parity import Parity, compare, eager, shapes_to_compare
    from export.pictures import Pictures
    from export.resizing import take_bytes
    from export.run_onnx import OnnxDepth, Parser, parse_size, size_warning

    if find_spec("onnxscript") is None:
        raise ModuleNotFoundError(name="onnxscript")
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    root = Path(__file__).resolve().parent.parent
    todo = f"run `make setup` or `pip install -e '{root}[export]'`"
    print(f"to_onnx: error: {missing.name} is not installed: {todo}", file=sys.stderr)
    sys.exit(2)

PRECISIONS = ("fp32", "fp16", "int8")


def export_onnx(
    model: DepthModel,
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    opset: int = OPSETS[0],
    *,
    precision: str = "fp32",
    uint8: bool = False,
    data: Path | None = None,
    weights_file: str | os.PathLike[str] | None = None,
) -> Parity:
    """Writes ``model`` as one ONNX file; the file appears only once it has been compared with PyTorch.

    Args:
        model: any model of the zoo, on any device; a copy of it is exported, in eval mode.
        path: the file to write; an existing one is replaced.
        size: (H, W), multiples of 32, to fix the size; None leaves it open. The batch is always open.
        opset: ONNX operator set, 18 to 25.
        precision: "fp32", "fp16" (inside: the image, the heads and the depth stay float32) or "int8".
        uint8: take uint8 (N, H, W, 3) of any H and W, and resize inside and back.
        data: shards made by ``train.prepare``, to compare on and to calibrate INT8 with; else synthetic rooms.
        weights_file: the file the weights came from; its sha256 goes into the metadata.

    Returns:
        The differences between onnxruntime and PyTorch, which are also in the file.

    Raises:
        ExportError: a bad argument, an unwanted operator in the graph, or a difference over the bound.
        DatasetError: ``data`` that cannot be read.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    check_arguments(path, size, opset, precision)
    if text := size_warning(describe(model), working_size(model, size)):
        warnings.warn(text, stacklevel=2)
    # Predictor leaves weights in channels_last, which changes the graph and what rounding does.
    model = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    graph = trace(model, opset)
    graph, parity = finish(graph, model, size, precision, uint8=uint8, data=data, weights_file=weights_file)
    write(graph.SerializeToString(), path)
    return parity


def check_arguments(path: Path, size: tuple[int, int] | None, opset: int, precision: str) -> None:
    """Raises ExportError for what cannot be exported, before anything slow starts."""
    if opset not in OPSETS:
        raise ExportError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, not {opset}")
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}: there are {', '.join(PRECISIONS)}")
    if size is not None and (min(size) < MULTIPLE or any(side % MULTIPLE for side in size)):
        raise ExportError(
            f"size must be multiples of {MULTIPLE}, at least {MULTIPLE}, not {size[0]}x{size[1]}"
        )
    check_path(path)


def finish(
    graph: onnx.ModelProto,
    model: DepthModel,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    *,
    uint8: bool = False,
    data: Path | None = None,
    weights_file: str | os.PathLike[str] | None = None,
) -> tuple[onnx.ModelProto, Parity]:
    """From the traced graph of ``model`` to the graph that is written, and how far it is from the model.

    Args:
        graph: made by ``trace``; it is used up.
        model: on the CPU, in float32 and eval mode.
        size, precision, uint8, data, weights_file: as in :func:`export_onnx`.

    Raises:
        ExportError: a difference over the bound.
    """
    facts = describe(model, size, precision, uint8, weights_file)
    working = working_size(model, size)
    if size is not None:
        fix_size(graph, size)
    if precision == "fp16":
        to_half(graph)
    if precision == "int8":
        pictures = Pictures(data, ("train", "val"))
        graph, facts["calibration"] = calibrated(
            graph, pictures, working, exact=size is not None, frames=FRAMES
        )
    if precision == "fp32":
        part_logits(graph)
    if uint8:
        take_bytes(graph, working, exact=size is not None)
    write_facts(graph, facts)
    onnx.checker.check_model(graph, full_check=True)
    runs = [OnnxDepth(graph.SerializeToString()).run]
    if precision == "fp16":
        runs.append(OnnxDepth(as_on_gpu(graph).SerializeToString()).run)
    reference = eager(model, working, exact=size is not None)
    parity = compare(reference, runs, shapes_to_compare(size, uint8), Pictures(data), precision)
    if not parity.holds:
        raise ExportError(f"{model.name}: the ONNX file differs from PyTorch and was not kept: {parity}")
    write_facts(graph, facts | {"parity": parity.facts()})
    return graph, parity


def size_or_dynamic(text: str) -> tuple[int, int] | None:
    return None if text == "dynamic" else parse_size(text)


def file_name(name: str, size: tuple[int, int] | None, precision: str, uint8: bool) -> str:
    parts = [name, *(["{}x{}".format(*size)] if size else []), *([precision] if precision != "fp32" else [])]
    return "_".join([*parts, *(["uint8"] if uint8 else [])]) + ".onnx"


def named(names: Sequence[str], every: bool) -> list[str]:
    """The models asked for.

    Raises:
        ValueError: none or an unknown one.
    """
    if bool(names) == every:
        raise ExportError("give the NAMEs of models, or --all" + (", not both" if names else ""))
    for name in names:
        get_builder(name)
    return list(dict.fromkeys(names)) or list_models()


def weights_files(names: Sequence[str], weights: str, every: bool) -> dict[str, Path | None]:
    """The file of each model's weights, None for random ones; ``every`` passes over models that have none.

    Raises:
        ValueError: weights that are not there.
    """
    if weights == "none":
        return dict.fromkeys(names)
    have = [n for n in names if (tags := zoo_weights.tags(n)) and weights in ("DEFAULT", *tags)]
    if every and not have:
        raise ExportError(f"no model has the weights {weights!r}; with --all: DEFAULT, a tag, or none")
    if every and (left := [name for name in names if name not in have]):
        print(f"skipped, without such weights (--weights none exports them untrained): {', '.join(left)}")
    return {name: zoo_weights.find(name, weights) for name in (have if every else names)}


def export_one(name: str, file: Path | None, path: Path, args: argparse.Namespace) -> None:
    """Exports, measures if asked, and prints what there is to say."""
    started = time.perf_counter()
    torch.manual_seed(0)  # random weights, too, are the same each time
    model = create_model(name, weights=file)
    tag = (model.card or {}).get("tag", "unnamed") if file else "random"
    shape = "dynamic size" if args.size is None else "{}x{}".format(*args.size)
    kind = f"{args.precision}, uint8 input" if args.uint8 else args.precision
    print(f"{name} ({tag} weights), {shape}, opset {args.opset}, {kind}", flush=True)
    if args.precision == "int8":
        print(f"calibrating on {FRAMES} {Pictures(args.data, ('train', 'val'))}", flush=True)
    parity = export_onnx(
        model,
        path,
        args.size,
        args.opset,
        precision=args.precision,
        uint8=args.uint8,
        data=args.data,
        weights_file=file,
    )
    print(f"parity with PyTorch: {parity}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
    if args.benchmark:
        latency.benchmark([path], model)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        prog="to_onnx", description="Export models, each to one ONNX file that is compared with PyTorch."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(list_models()))
    parser.add_argument("--all", action="store_true", help="every model that has the weights")
    parser.add_argument(
        "--weights", default="DEFAULT", metavar="W", help="DEFAULT, a tag, a .safetensors file, none (random)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="the file; of several models the folder (default: here)"
    )
    parser.add_argument("--size", type=size_or_dynamic, metavar="HxW", help="fix the size (default: dynamic)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--uint8", action="store_true", help="uint8 NHWC input of any size, resized inside")
    parser.add_argument("--opset", type=int, default=OPSETS[0], metavar="N", help="18 (default) to 25")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="shards of real frames, to compare on and to calibrate with"
    )
    parser.add_argument("--benchmark", action="store_true", help="measure the file against eager PyTorch")
    args = parser.parse_args(argv)
    failed = False
    try:
        if args.data is not None:
            Pictures(args.data)
        names = named(args.names, args.all)
        paths = targets(names, args)
        for path in paths.values():
            check_arguments(path, args.size, args.opset, args.precision)
        files = weights_files(names, args.weights, args.all)
        for name, file in files.items():
            path = paths[name]
            try:
                with warnings.catch_warnings():
                    warnings.showwarning = parser.warn
                    export_one(name, file, path, args)
            except (ValueError, OSError) as error:
                if len(files) == 1:
                    raise
                print(f"to_onnx: error: {error}", file=sys.stderr, flush=True)
                failed = True
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("to_onnx: interrupted, no half-written file left", file=sys.stderr)
        return 130
    script = str(Path(__file__).with_name("run_onnx.py"))
    if not failed:
        print(f"run it: python {min(script, os.path.relpath(script), key=len)} {path} photo.jpg")
    return 2 if failed else 0


def targets(names: Sequence[str], args: argparse.Namespace) -> dict[str, Path]:
    """Where each model goes: --out is the file of a single one, else the folder.

    Raises:
        ExportError: the folder does not exist.
    """
    files = {name: Path(file_name(name, args.size, args.precision, args.uint8)) for name in names}
    if args.out is None:
        return files
    if len(names) == 1:
        return dict.fromkeys(files, args.out)
    if not args.out.is_dir():
        raise ExportError(f"{args.out}: this folder does not exist; several models go into one")
    return {name: args.out / file for name, file in files.items()}


if __name__ == "__main__":
    sys.exit(main())

"""Export a model of the zoo to one self-contained ONNX file, and compare it with PyTorch.

    python export/to_onnx.py unet_resnet50 --out unet_resnet50.onnx
    python export/to_onnx.py unet_resnet50 --precision int8 --data photos
    python export/to_onnx.py runs/mine --out mine.onnx

Input ``image``: float32 (N, 3, H, W), RGB in [0, 1], H and W multiples of 32; with --uint8, uint8 (N, H, W, 3) of
any H and W. Output ``depth``: float32 (N, 1, H, W), metres. The metadata of the file holds all else that a consumer
needs (``run_onnx.py --info``).
"""

import argparse
import copy
import json
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
try:
    if not __package__:  # run as a file: Python has only this folder on its path
        sys.path.insert(0, str(ROOT))
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 - needed by torch.onnx.export
    import torch

    import depthzoo
    from depthzoo import weights as zoo_weights
    from depthzoo.camera import CANONICAL_FOCAL
    from depthzoo.files import atomic_write, sha256_of
    from depthzoo.models import DepthModel, get_builder
    from export.fp16 import simulate_fp16, to_fp16
    from export.graph import MULTIPLE, OPSETS, ExportError, fix_size, name_batch, trace, unblock_head_layout
    from export.int8 import IMAGES, PERCENTILE, quantize
    from export.parity import Parity, compare, compared_shapes, eager
    from export.pictures import load_pictures, network_input
    from export.run_onnx import LONGEST, OnnxDepth, parse_size, size_warning
    from export.uint8_resize import add_uint8_resize
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    todo = f"run `make setup` or `pip install -e '{ROOT}[export]'` ([gpu] for CUDA)"
    print(f"to_onnx: error: {missing.name} is not installed: {todo}", file=sys.stderr)
    sys.exit(2)
except ImportError as broken:  # onnxruntime and onnxruntime-gpu were both installed, and one was uninstalled
    if __name__ != "__main__":
        raise
    todo = "pip uninstall -y onnxruntime onnxruntime-gpu, then install one of them"
    print(f"to_onnx: error: {broken}: {todo}", file=sys.stderr)
    sys.exit(2)

FORMAT = "depthzoo/1"
PRECISIONS = ("fp32", "fp16", "int8")
DEFAULT_SIZE = (480, 640)
# Weights hold at the sizes of their card whose AbsRel is at most this factor above the best one.
HOLDS = 1.1


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
    """Export ``model`` to one ONNX file. The file appears only if it agrees with PyTorch.

    Args:
        model: any model of the zoo, on any device. A copy of it is exported, in eval mode.
        path: the file to write; an existing one is replaced.
        size: fixed (H, W), multiples of 32; None leaves the size dynamic. The batch is always dynamic.
        opset: ONNX operator set, 18 to 25.
        precision: "fp32", "fp16" (the image, the heads and the depth stay float32) or "int8".
        uint8: take uint8 (N, H, W, 3) of any H and W, and resize inside and back.
        data: pictures to compare on and to calibrate INT8 on: a folder, a tar, or a folder of tars such as a data
            set of ``train.prepare``. None is the pictures bundled with depthzoo.
        weights_file: the file of the weights; its sha256 goes into the metadata.

    Returns:
        The differences between onnxruntime and PyTorch, which are also in the metadata.

    Raises:
        ExportError: an invalid argument, an unwanted operator in the graph, or a difference over the bound.
        ValueError: ``data`` has no pictures, or one that cannot be read.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_arguments(path, size, opset, precision)
    if (channels := model.head.conv.out_channels) != 1:
        raise ExportError(
            f"{model.name} predicts {channels} channels; only models of one channel, depth, are exported"
        )
    metadata = describe(model, size, precision, uint8, weights_file)
    if message := size_warning(metadata, tuple(metadata["size"])):
        warnings.warn(message, stacklevel=2)
    pictures = load_pictures(data, IMAGES)
    # Weights in channels_last, as Predictor leaves them, change the graph and its rounding.
    model = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    graph = convert(
        trace(model, opset), size or working_size(model), precision, uint8, size is not None, pictures
    )
    if precision == "int8":
        source = "bundled with depthzoo" if data is None else Path(data).name
        metadata["calibration"] = {"data": source, "frames": len(pictures), "percentile": PERCENTILE}
    write_metadata(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    parity, verified_on = check(graph, model, size, precision, uint8, pictures)
    if not parity.holds:
        raise ExportError(f"{model.name}: the ONNX file differs from PyTorch and was not kept: {parity}")
    write_metadata(graph, metadata | {"parity": parity.metadata(), "verified_on": verified_on})
    with atomic_write(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return parity


def check_arguments(path: Path, size: tuple[int, int] | None, opset: int, precision: str) -> None:
    """Raise ExportError for invalid arguments before anything slow starts."""
    if opset not in OPSETS:
        raise ExportError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, not {opset}")
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}: there are {', '.join(PRECISIONS)}")
    if size is not None and any(side % MULTIPLE or not MULTIPLE <= side <= LONGEST for side in size):
        raise ExportError(f"size must be multiples of {MULTIPLE} up to {LONGEST}, not {size[0]}x{size[1]}")
    if path.is_dir():
        raise ExportError(f"{path} is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"{path}: the folder {path.parent} does not exist or is not writable")


def convert(
    graph: onnx.ModelProto,
    size: tuple[int, int],
    precision: str,
    uint8: bool,
    fixed: bool,
    pictures: Sequence[Any],
) -> onnx.ModelProto:
    """Convert a traced graph to the requested size, precision and input. The traced graph is changed."""
    if fixed:
        fix_size(graph, size)
    if precision == "fp32":
        unblock_head_layout(graph)
    elif precision == "fp16":
        to_fp16(graph)
    else:
        graph = quantize(graph, [network_input(picture, size, fixed) for picture in pictures])
    if uint8:
        add_uint8_resize(graph, size, exact=fixed)
    elif fixed:
        name_batch(graph)
    return graph


def check(
    graph: onnx.ModelProto,
    model: DepthModel,
    size: tuple[int, int] | None,
    precision: str,
    uint8: bool,
    pictures: Sequence[Any],
) -> tuple[Parity, str]:
    """Compare the graph with PyTorch. Return the differences, and where the graph ran."""
    content, verified_on = graph.SerializeToString(), "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # export_onnx has warned about the size
        runs = [OnnxDepth(content).run]
        if precision == "fp16":
            runs.append(OnnxDepth(simulate_fp16(graph).SerializeToString()).run)
            verified_on = "cpu, each tensor rounded to float16"
            if not uint8 and torch.cuda.is_available():
                runs.append(OnnxDepth(content, "cuda").run)
                verified_on += "; cuda"
    reference = eager(model, size or working_size(model), exact=size is not None)
    trained = model.card is not None
    return compare(reference, runs, compared_shapes(size, uint8), pictures, precision, trained), verified_on


# -- metadata ---------------------------------------------------------------------------------------------


def working_size(model: DepthModel) -> tuple[int, int]:
    """Return the (H, W) that the weights of a model work at."""
    height, width = (model.card or {}).get("size", DEFAULT_SIZE)
    return int(height), int(width)


def trained_sizes(card: Mapping[str, Any]) -> list[list[int]]:
    """Return the [H, W] at which weights hold: their own, and those of the card's table that are about as accurate."""
    table = card.get("sizes", {})
    best = min((row["abs_rel"] for row in table.values()), default=0.0)
    sizes = {tuple(card["size"])} if "size" in card else set()
    sizes |= {
        tuple(map(int, text.split("x"))) for text, row in table.items() if row["abs_rel"] <= HOLDS * best
    }
    return sorted([int(height), int(width)] for height, width in sizes)


def describe(
    model: DepthModel,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    uint8: bool = False,
    weights_file: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Return the metadata of an export, JSON-serializable. Unknown values are left out."""
    card = model.card or {}
    image = {"name": "image", "type": "float32", "layout": "NCHW", "colour": "RGB", "range": [0, 1]}
    if uint8:
        image |= {"type": "uint8", "layout": "NHWC", "range": [0, 255]}
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "name": model.name,
        "weights": card.get("tag", "unnamed") if model.card else "random",
        "weights_sha256": sha256_of(weights_file) if weights_file else card.get("sha256"),
        "precision": precision,
        "input": image | {"multiple_of": 1 if uint8 else MULTIPLE},
        "output": {"name": "depth", "type": "float32", "layout": "NCHW"},
        "unit": "m",
        "depth_range": [model.min_depth, model.max_depth],
        "canonical_focal": CANONICAL_FOCAL,  # as a fraction of the width
        "scale": "metres = depth * focal_px / (canonical_focal * picture width); depth itself if focal_px is unknown",
        "size": list(size or working_size(model)),
        "trained_sizes": trained_sizes(card),
        "arguments": model.arguments,
        "licence": "code MIT; weights: see terms" if model.card else "MIT",
        "versions": {
            "depthzoo": depthzoo.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }
    if uint8:
        resized = "to size" if size else "to about the area of size, aspect ratio kept"
        metadata["resizing"] = (
            f"inside: {resized}, bilinear and antialiased as in Pillow; depth back, bilinear"
        )
    metadata |= {
        key: card.get(key) for key in ("dataset", "recipe", "camera", "metrics", "terms", "trained_on")
    }
    return {key: value for key, value in metadata.items() if value not in (None, "", [])}


def write_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Set the metadata of a graph: strings, and JSON for all other values.

    The format is last, and metadata is last in an ONNX file: a truncated file does not have it.
    """
    del model.metadata_props[:]
    for key, value in sorted(metadata.items(), key=lambda item: item[0] == "format"):
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    image = metadata["input"]
    dims = "(N, H, W, 3)" if image["layout"] == "NHWC" else "(N, 3, H, W)"
    multiple = f", H and W multiples of {image['multiple_of']}" if image["multiple_of"] > 1 else ""
    low, high = image["range"]
    model.doc_string = (
        f"{metadata['name']}: image {image['type']} {dims}, RGB in [{low}, {high}]{multiple}, "
        "to depth float32 (N, 1, H, W) in metres"
    )


# -- the command ------------------------------------------------------------------------------------------


def size_or_dynamic(text: str) -> tuple[int, int] | None:
    return None if text == "dynamic" else parse_size(text)


def default_path(name: str, size: tuple[int, int] | None, precision: str, uint8: bool) -> Path:
    parts = [name, *(["{}x{}".format(*size)] if size else []), *([precision] if precision != "fp32" else [])]
    return Path("_".join([*parts, *(["uint8"] if uint8 else [])]) + ".onnx")


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="to_onnx", description=(__doc__ or "").splitlines()[0])
    names = ", ".join(depthzoo.list_models())
    main.add_argument("name", metavar="NAME", help=f"{names}; or a .safetensors file or a run's folder")
    main.add_argument(
        "--weights", default="DEFAULT", metavar="W", help="of NAME: DEFAULT, a tag, a file, none (random)"
    )
    main.add_argument("--out", type=Path, metavar="FILE", help="default: NAME.onnx")
    main.add_argument("--size", type=size_or_dynamic, metavar="HxW", help="fix the size (default: dynamic)")
    main.add_argument("--precision", choices=PRECISIONS, default="fp32")
    main.add_argument("--uint8", action="store_true", help="uint8 NHWC input of any size, resized inside")
    main.add_argument("--opset", type=int, default=OPSETS[0], metavar="N", help="18 (default) to 25")
    main.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder or tar of pictures to compare on and to calibrate INT8 on (default: bundled pictures)",
    )
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    try:
        name, weights = args.name, args.weights
        if name not in depthzoo.list_models() and zoo_weights.is_path("", name):
            if weights != "DEFAULT":
                raise ExportError(f"{name} has its own weights; --weights is for the name of a model")
            name, weights = zoo_weights.model_of(name), Path(name)
        path = args.out or default_path(name, args.size, args.precision, args.uint8)
        check_arguments(path, args.size, args.opset, args.precision)
        get_builder(name)  # an unknown name is an error before its weights are looked for
        file = None if weights == "none" else zoo_weights.find(name, weights)
        torch.manual_seed(0)  # makes random weights reproducible
        model = depthzoo.create_model(name, weights=file)
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
    except (ValueError, OSError) as error:
        problem = getattr(error, "problem", error)  # of a WeightsError: without the advice, which is Python's
        print(f"to_onnx: error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("to_onnx: interrupted, no file written", file=sys.stderr)
        return 130
    print(f"parity with PyTorch: {parity}")
    script = str(Path(__file__).with_name("run_onnx.py"))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"run it: python {min(script, os.path.relpath(script), key=len)} {path} photo.jpg")
    return 0


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_, **__: f"to_onnx: warning: {message}\n"  # type: ignore[assignment]
    sys.exit(main())

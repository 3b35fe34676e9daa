"""Exports a model of the zoo to one self-contained ONNX file and compares it with PyTorch.

    python export/to_onnx.py unet_resnet50 --out unet_resnet50.onnx

Input ``image``: float32 (N, 3, H, W), RGB in [0, 1], H and W multiples of 32. Output ``depth``: float32
(N, 1, H, W), metres. What else a consumer needs stands in the file's metadata (``run_onnx.py --info``).
"""

import copy
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import onnx
    import torch

    import depthzoo
    from depthzoo import weights as zoo_weights
    from depthzoo.models import DepthModel
    from depthzoo.registry import MODELS, create_model

    if TYPE_CHECKING or __package__:
        from export.latency import benchmark
        from export.parity import Parity, compare, shapes_to_compare
        from export.run_onnx import OnnxDepth, Parser, parse_size
    else:  # run as a file from anywhere: its own folder is where Python looks first
        from latency import benchmark
        from parity import Parity, compare, shapes_to_compare
        from run_onnx import OnnxDepth, Parser, parse_size

    if find_spec("onnxscript") is None:
        raise ModuleNotFoundError(name="onnxscript")
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    root = Path(__file__).resolve().parent.parent
    todo = f"run `make setup` or `pip install -e '{root}[export]'`"
    print(f"to_onnx: error: {missing.name} is not installed: {todo}", file=sys.stderr)
    sys.exit(2)

# What the exporter implements and what its version converter reaches; it would quietly keep 18 for less.
OPSETS = range(18, 26)
PRECISIONS = ("fp32",)
MULTIPLE = 32
DEFAULT_SIZE = (480, 640)
TRACED_BATCH = 2
# Signs of a size that is not matched by construction, and of a BatchNorm that did not fold.
UNWANTED = ("Shape", "BatchNormalization")


class ExportError(ValueError):
    """An export that cannot be made or that must not be kept; the message is one line."""


def export_onnx(
    model: DepthModel,
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    opset: int = OPSETS[0],
    *,
    precision: str = "fp32",
    weights_file: str | os.PathLike[str] | None = None,
) -> Parity:
    """Writes ``model`` as one ONNX file; the file appears only once it has been compared with PyTorch.

    Args:
        model: any model of the zoo, on any device; a copy of it is exported, in eval mode.
        path: the file to write; an existing one is replaced.
        size: (H, W), multiples of 32, to fix the size; None leaves it open. The batch is always open.
        opset: ONNX operator set, 18 to 25.
        precision: "fp32".
        weights_file: the file the weights came from; its sha256 goes into the metadata.

    Returns:
        The differences between onnxruntime and PyTorch, which are also in the file.

    Raises:
        ExportError: a bad argument, an unwanted operator in the graph, or a difference over the bound.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    check_arguments(path, size, opset, precision)
    model = copy.deepcopy(model).cpu().float().eval()
    graph = trace(model, size, opset)
    for key, value in describe(model, precision, weights_file).items():
        graph.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(graph, full_check=True)
    session = OnnxDepth(graph.SerializeToString())
    parity = compare(model, session, shapes_to_compare(size, TRACED_BATCH), precision)
    if not parity.holds:
        raise ExportError(f"{model.name}: the ONNX file differs from PyTorch and was not kept: {parity}")
    graph.metadata_props.add(key="parity", value=parity.json())
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
    if path.is_dir():
        raise ExportError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"{path}: the folder {path.parent} is not writable")


def trace(model: DepthModel, size: tuple[int, int] | None, opset: int) -> onnx.ModelProto:
    """The graph, without a trace of where it was made.

    Height and width are traced as 32 times something: all features then match their skips by construction,
    no Shape node is left and every BatchNorm folds into its convolution.
    """
    height, width = size or (64, 96)
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if size is None:
        dims |= {2: MULTIPLE * torch.export.Dim("h"), 3: MULTIPLE * torch.export.Dim("w")}
    example = torch.rand(TRACED_BATCH, 3, height, width, generator=torch.Generator().manual_seed(0))
    with quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["image"],
            output_names=["depth"],
            dynamic_shapes=(dims,),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    clean(graph)
    graph.graph.name = model.name
    graph.doc_string = (
        f"{model.name}: image float32 (N, 3, H, W), RGB in [0, 1], H and W multiples of {MULTIPLE}, "
        "to depth float32 (N, 1, H, W) in metres"
    )
    got = [entry.version for entry in graph.opset_import if entry.domain == ""]
    if got != [opset]:
        raise ExportError(f"asked for opset {opset}, the exporter made {got}")
    counts = Counter(node.op_type for node in graph.graph.node)
    if left := [op for op in UNWANTED if counts[op]]:
        raise ExportError(
            f"{model.name}: the graph has {', '.join(f'{counts[op]} {op}' for op in left)} nodes"
        )
    return graph


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress, warnings and log lines off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def clean(model: onnx.ModelProto) -> None:
    """Names the open dimensions; drops what the exporter noted of its sources, local paths among it."""
    names = {f"{MULTIPLE}*h": "height", f"{MULTIPLE}*w": "width"}
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    for part in [model, graph, *values, *graph.node, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    if model.functions:
        raise ExportError("the graph has local functions, which were to be inlined")


def describe(
    model: DepthModel, precision: str = "fp32", weights_file: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    """What the file says of itself: strings, JSON where there is structure."""
    card = model.card or {}
    digest = hashlib.sha256(Path(weights_file).read_bytes()).hexdigest() if weights_file else None
    facts: dict[str, Any] = {
        "format": "depthzoo/1",
        "name": model.name,
        "weights": card.get("tag", "unnamed") if model.card else "random",
        "weights_sha256": digest or card.get("sha256"),
        "precision": precision,
        "verified_on": "cpu",
        "input": {
            "name": "image",
            "type": "float32",
            "layout": "NCHW",
            "colour": "RGB",
            "range": [0, 1],
            "multiple_of": MULTIPLE,
        },
        "output": {"name": "depth", "type": "float32", "layout": "NCHW"},
        "unit": "m",
        "depth_range": [model.min_depth, model.max_depth],
        "size": card.get("size", list(DEFAULT_SIZE)),
        "arguments": model.arguments,
        "versions": {"depthzoo": depthzoo.__version__, "torch": torch.__version__, "onnx": onnx.__version__},
    }
    facts |= {key: card.get(key) for key in ("dataset", "recipe", "camera", "metrics", "terms", "trained_on")}
    facts = {key: value for key, value in facts.items() if value not in (None, "")}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def write(content: bytes, path: Path) -> None:
    """Writes aside, then renames: no other process ever sees half a file, and nothing stays on failure."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def size_or_dynamic(text: str) -> tuple[int, int] | None:
    return None if text == "dynamic" else parse_size(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="to_onnx", description="Export a model to one ONNX file, compared with PyTorch.")
    parser.add_argument("name", metavar="NAME", help=", ".join(MODELS.names()))
    parser.add_argument(
        "--weights", default="DEFAULT", metavar="W", help="DEFAULT, a tag, a .safetensors file, none"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="the file (default: ./NAME.onnx)")
    parser.add_argument("--size", type=size_or_dynamic, metavar="HxW", help="fix the size (default: dynamic)")
    parser.add_argument("--opset", type=int, default=OPSETS[0], metavar="N", help="18 (default) to 25")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--benchmark", action="store_true", help="then measure it against eager PyTorch")
    args = parser.parse_args(argv)
    suffix = "" if args.size is None else "_{}x{}".format(*args.size)
    path: Path = args.out or Path(f"{args.name}{suffix}.onnx")
    started = time.perf_counter()
    try:
        MODELS.get(args.name)
        check_arguments(path, args.size, args.opset, args.precision)
        file = None if args.weights == "none" else zoo_weights.find(args.name, args.weights)
        model = create_model(args.name, weights=file)
        tag = (model.card or {}).get("tag", "unnamed") if file else "random"
        shape = "dynamic size" if args.size is None else "{}x{}".format(*args.size)
        print(f"{args.name} ({tag} weights), {shape}, opset {args.opset}, {args.precision}", flush=True)
        parity = export_onnx(model, path, args.size, args.opset, precision=args.precision, weights_file=file)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("to_onnx: interrupted, nothing written", file=sys.stderr)
        return 130
    print(f"parity with PyTorch: {parity}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - started:.0f} s")
    script = str(Path(__file__).with_name("run_onnx.py"))
    print(f"run it: python {min(script, os.path.relpath(script), key=len)} {path} photo.jpg", flush=True)
    if args.benchmark:
        try:
            benchmark([path], model)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            print(f"to_onnx: interrupted; {path} is complete, its latency not measured", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What ``make demo`` runs: one picture through torch.hub, ONNX and onnxruntime, and how far they agree.

    python benchmarks/demo.py --image photo.jpg

Writes into out/demo: panel.png (picture | depth, and the truth where it is known), NAME.onnx, its own depth
of the same picture (onnx.depth.png, onnx.preview.png) and demo.json with all figures.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's export.
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import depthzoo  # noqa: E402
from depthzoo import weights as zoo_weights  # noqa: E402
from depthzoo.images import load_image  # noqa: E402
from depthzoo.models import get_builder, list_models  # noqa: E402
from export.run_onnx import OnnxDepth, Parser, save  # noqa: E402
from export.to_onnx import export_onnx  # noqa: E402

EXAMPLES = Path(depthzoo.__file__).parent / "examples"
PREFERRED = ("unet_resnet50", "unet_mobilenet_v3")


def example() -> tuple[np.ndarray, np.ndarray | None, str]:
    """A bundled picture (H, W, 3) uint8, its depth in metres and its name."""
    path = EXAMPLES / "kitchen.jpg"
    depth = np.asarray(Image.open(path.with_suffix(".depth.png")), np.float32) / 1000
    return load_image(path), depth, path.name


def default_model() -> str:
    """The model to show: the better of those that have weights."""
    known = list_models(pretrained=True)
    return next((name for name in PREFERRED if name in known), PREFERRED[-1])


def demonstrate(
    name: str,
    weights: str | None,
    picture: tuple[np.ndarray, np.ndarray | None, str],
    out: Path,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Runs everything, writes the files into ``out`` and returns the figures of demo.json."""
    image, truth, source = picture
    out.mkdir(parents=True, exist_ok=True)
    model = torch.hub.load(str(ROOT), name, source="local", trust_repo=True, weights=weights).eval()
    tag = model.card["tag"] if model.card else "random"
    print(f"{name} ({tag} weights) on {source}, {image.shape[0]}x{image.shape[1]}", flush=True)
    predictor = depthzoo.Predictor(model, device="cpu", size=size)
    prediction = predictor.predict(image)
    prediction.save_panel(out / "panel.png", truth)
    depth = prediction.depth
    low, middle, high = float(depth.min()), float(np.median(depth)), float(depth.max())
    print(f"depth: min {low:.2f}  median {middle:.2f}  max {high:.2f} m -> {out / 'panel.png'}", flush=True)

    path = out / f"{name}.onnx"
    file = zoo_weights.find(name, weights) if weights is not None else None
    parity = export_onnx(model, path, weights_file=file)
    print(f"ONNX: {path}, {path.stat().st_size / 1e6:.1f} MB, opset 18")
    print(f"parity with PyTorch: {parity}", flush=True)

    onnx_depth = OnnxDepth(path, size=size).predict(Image.fromarray(image))
    save(onnx_depth, out / "onnx")
    apart = np.abs(onnx_depth - depth)
    print(
        f"the whole way on this picture: max {apart.max():.1e} m, mean {apart.mean():.1e} m apart", flush=True
    )

    figures = {
        "model": name,
        "weights": tag,
        "picture": source,
        "depth_m": {"min": low, "median": middle, "max": high},
        "parity": json.loads(parity.json()),
        "picture_difference_m": {"max": float(apart.max()), "mean": float(apart.mean())},
        "onnx_bytes": path.stat().st_size,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "depthzoo": depthzoo.__version__,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }
    (out / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="demo", description="One picture through PyTorch, ONNX and onnxruntime.")
    parser.add_argument(
        "--image", metavar="PATH", help="a picture (default: a bundled one, with its true depth)"
    )
    parser.add_argument("--model", help=f"default: the first with weights of {', '.join(PREFERRED)}")
    parser.add_argument(
        "--weights", default="DEFAULT", metavar="W", help="DEFAULT, a tag, a .safetensors file, none"
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    args = parser.parse_args(argv)
    name = args.model or default_model()
    started = time.perf_counter()
    try:
        get_builder(name)
        picture = (load_image(args.image), None, Path(args.image).name) if args.image else example()
        demonstrate(name, None if args.weights == "none" else args.weights, picture, args.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"all in {time.perf_counter() - started:.0f} s; figures in {args.out / 'demo.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

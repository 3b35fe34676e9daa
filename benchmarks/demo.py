"""What ``make demo`` runs: predict one image through torch.hub, export the model to ONNX, and compare.

    python -m benchmarks.demo [--image photo.jpg] [--model NAME]

writes panel.png (image | depth, and the true depth of the bundled image), NAME.onnx and its depth of the same image,
onnx.depth.png and onnx.color.png, into out/demo.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import depthzoo
from depthzoo import weights as zoo_weights
from depthzoo.images import load_image
from depthzoo.prediction import DEFAULT_MODEL
from export.pictures import EXAMPLES
from export.run_onnx import OnnxDepth, save
from export.to_onnx import export_onnx
from train.arguments import command

ROOT = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    main = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=summary)
    main.add_argument("--image", metavar="PATH", help="default: a bundled image, with its true depth")
    main.add_argument("--model", default=DEFAULT_MODEL, help="default: %(default)s")
    main.add_argument(
        "--weights", default="DEFAULT", help="DEFAULT, a tag, a .safetensors file, none (random)"
    )
    main.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    return main


def run(args: argparse.Namespace) -> int:
    image, target = load_image(args.image or EXAMPLES / "kitchen.jpg"), None
    if not args.image:
        target = np.asarray(Image.open(EXAMPLES / "kitchen.depth.png"), np.float32) / 1000
    args.out.mkdir(parents=True, exist_ok=True)
    file = None if args.weights == "none" else zoo_weights.find(args.model, args.weights)
    model = torch.hub.load(str(ROOT), args.model, source="local", trust_repo=True, weights=file)
    prediction = depthzoo.Predictor(model, device="cpu")(image)
    prediction.save_panel(args.out / "panel.png", target)
    low, middle, high = (float(value) for value in np.percentile(prediction.depth, (0, 50, 100)))
    print(f"{args.model}: depth min {low:.2f}  median {middle:.2f}  max {high:.2f} m", flush=True)

    path = args.out / f"{args.model}.onnx"
    print(f"{path}: parity with PyTorch: {export_onnx(model, path, weights_file=file)}", flush=True)
    depth = OnnxDepth(path).predict(Image.fromarray(image))
    save(depth, args.out / "onnx")
    print(f"on this image, resizing included: at most {np.abs(depth - prediction.depth).max():.1e} m apart")
    print(f"images: {args.out / 'panel.png'}, {args.out / 'onnx.color.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

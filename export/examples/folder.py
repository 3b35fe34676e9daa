"""Predict the depth of all images of a folder, in batches. Copy this file and run_onnx.py into one folder.

    PYTHONPATH=export python export/examples/folder.py unet_resnet50.onnx photos --out depths --batch 8

writes depths/NAME.depth.png (16-bit millimetres) and depths/NAME.preview.png. Images of different sizes at the
network's input go into different batches.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ImageOps
from run_onnx import (  # type: ignore[import-not-found]
    PROVIDERS,
    OnnxDepth,
    OnnxError,
    open_image,
    resize_depth,
    save,
)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
Prepared = tuple[Path, tuple[int, int], np.ndarray]  # path, (width, height), network input


def save_batch(model: OnnxDepth, batch: Iterable[Prepared], out: Path) -> None:
    paths, sizes, inputs = zip(*batch, strict=True)
    for path, size, depth in zip(paths, sizes, model.run(np.concatenate(inputs)), strict=True):
        print(f"{path} -> {save(resize_depth(depth[0], size), out / path.stem)}", flush=True)


def predict_folder(model: OnnxDepth, folder: Path, out: Path, batch_size: int) -> int:
    """Predict all images of a folder; return how many could not be read."""
    failed = 0
    waiting: dict[tuple[int, ...], list[Prepared]] = defaultdict(list)
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            image = ImageOps.exif_transpose(open_image(path))
        except OnnxError as error:
            print(f"folder: error: {error}", file=sys.stderr)
            failed += 1
            continue
        prepared = model.prepare(image)
        waiting[prepared.shape].append((path, image.size, prepared))
        if len(waiting[prepared.shape]) == batch_size:
            save_batch(model, waiting.pop(prepared.shape), out)
    for batch in waiting.values():
        save_batch(model, batch, out)
    return failed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="folder", description="Predict the depth of all images of a folder."
    )
    parser.add_argument("model", help="a file made by export/to_onnx.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("depths"), help="folder for the results")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images at once (default: 8)")
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu")
    args = parser.parse_args(argv)
    try:
        model = OnnxDepth(args.model, args.provider)
        args.out.mkdir(parents=True, exist_ok=True)
        return 2 if predict_folder(model, args.folder, args.out, args.batch) else 0
    except (OnnxError, OSError) as error:
        print(f"folder: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

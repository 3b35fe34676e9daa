"""Depth of all pictures of a folder, in batches: an example that needs run_onnx.py and what that needs.

    python export/examples/folder.py unet_resnet50.onnx photos --out depths --batch 8

writes depths/NAME.depth.png (16-bit, millimetres) and depths/NAME.preview.png. A batch holds pictures that
have one size at the network's input, whatever their order in the folder.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Here run_onnx.py is one folder up; beside this file, Python would find it anyway.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import ImageOps
from run_onnx import PROVIDERS, OnnxDepth, OnnxError, Parser, open_picture, resize_depth, save  # type: ignore[import-not-found]

Prepared = tuple[Path, tuple[int, int], np.ndarray]  # path, (width, height), the network's input
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def find_pictures(folder: Path) -> list[Path]:
    """The folder's pictures by name; OnnxError where there is none or two of one stem."""
    if not folder.is_dir():
        raise OnnxError(f"{folder}: no such folder")
    stems: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS:
            if path.stem in stems:
                raise OnnxError(f"{stems[path.stem]}, {path.name}: their results would overwrite each other")
            stems[path.stem] = path
    if not stems:
        raise OnnxError(f"{folder}: no picture in it ({', '.join(sorted(ENDINGS))})")
    return list(stems.values())


def depths(
    model: OnnxDepth, paths: list[Path], batch_size: int, failed: list[Path]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture's path and its depth, float32 (H, W) metres; those that cannot be read go to ``failed``."""
    waiting: dict[tuple[int, ...], list[Prepared]] = defaultdict(list)
    for path in paths:
        try:
            picture = ImageOps.exif_transpose(open_picture(path))
        except OnnxError as error:
            print(f"folder: error: {error}", file=sys.stderr)
            failed.append(path)
            continue
        image = model.prepare(picture)
        waiting[image.shape].append((path, picture.size, image))
        if len(waiting[image.shape]) == batch_size:
            yield from run(model, waiting.pop(image.shape))
    for batch in waiting.values():
        yield from run(model, batch)


def run(model: OnnxDepth, batch: list[Prepared]) -> Iterator[tuple[Path, np.ndarray]]:
    batch_depths = model.run(np.concatenate([image for _, _, image in batch]))
    for (path, size, _), depth in zip(batch, batch_depths, strict=True):
        yield path, resize_depth(depth[0], size)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="folder", description="Depth of all pictures of a folder, in batches.")
    parser.add_argument("model", help="a file made by export/to_onnx.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("depths"), help="folder for the results")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once (default: 8)")
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu")
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error("--batch must be 1 or more")
    failed: list[Path] = []
    try:
        paths = find_pictures(args.folder)
        model = OnnxDepth(args.model, args.provider)
        args.out.mkdir(parents=True, exist_ok=True)
        for path, depth in depths(model, paths, args.batch, failed):
            print(f"{path} -> {save(depth, args.out / path.stem)[0]}", flush=True)
    except (OnnxError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("folder: interrupted", file=sys.stderr)
        return 130
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

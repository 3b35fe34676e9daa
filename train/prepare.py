"""Turns a source into the shards that training reads.

python -m train.prepare nyu-labelled nyu_depth_v2_labeled.mat --out DIR [--size 240x320] [--depth filled|raw]
python -m train.prepare rooms --count 1000 --size 240x320 --out DIR
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from depthzoo.data.shards import ShardWriter, encode_depth, encode_image, write_dataset
from train.arguments import command, parse_size
from train.sources import nyu_labelled, synthetic_rooms
from train.sources.frames import Frame, SourceError

# A median outside this range of metres means that the depth is in another unit.
PLAUSIBLE_MEDIAN = (0.3, 20.0)
JPEG_QUALITY = 95


def resize_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame at ``size`` (H, W): the image antialiased, the depth by nearest, the focal length with it."""
    height, width = size
    if frame.image.shape[:2] == size:
        return frame
    image = np.asarray(Image.fromarray(frame.image).resize((width, height), Image.Resampling.LANCZOS))
    metres = torch.from_numpy(np.ascontiguousarray(frame.depth, dtype=np.float32))[None, None]
    depth = torch.nn.functional.interpolate(metres, size=size, mode="nearest-exact")[0, 0].numpy()
    return Frame(frame.split, frame.key, image, depth, frame.focal_px * width / frame.image.shape[1])


def check_unit(frame: Frame) -> None:
    """Refuses depth that cannot be metres.

    Raises:
        SourceError: with the likely scale.
    """
    valid = frame.depth[np.isfinite(frame.depth) & (frame.depth > 0)]
    if valid.size == 0:
        return
    median = float(np.median(valid))
    low, high = PLAUSIBLE_MEDIAN
    if not low <= median <= high:
        scale = min((1e-3, 1e-2, 1e2, 1e3), key=lambda s: abs(np.log(median * s / 2.5)))
        raise SourceError(
            f"sample {frame.key!r}: median depth {median:.4g} is not in metres "
            f"({low:g} to {high:g} expected); the likely scale is {scale:g}"
        )


def write(
    frames: Iterator[Frame], total: int, out: Path, size: tuple[int, int] | None, **about: str
) -> dict[str, int]:
    """Writes the frames, split after split, and ``dataset.json`` last.

    Args:
        frames: in the order of their splits.
        total: for the progress bar.
        out: folder of the data set; its old content is replaced when all is written.
        size: (H, W) of train frames; the others keep theirs.
        **about: goes into ``dataset.json``.

    Returns:
        Number of samples by split.
    """
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    splits: dict[str, dict[str, object]] = {}
    writer: ShardWriter | None = None
    first: Frame | None = None

    def close() -> None:
        if writer is not None and first is not None:
            writer.__exit__(None, None, None)
            extra = {"size": list(first.image.shape[:2]), "focal_px": first.focal_px}
            splits[first.split] = {**writer.entry, **extra}

    try:
        for frame in tqdm(frames, total=total, unit="frame", disable=None):
            check_unit(frame)
            if size is not None and frame.split == "train":
                frame = resize_frame(frame, size)
            if first is None or frame.split != first.split:
                close()
                writer, first = ShardWriter(aside, frame.split), frame
            assert writer is not None
            quality = JPEG_QUALITY if size is not None and frame.split == "train" else None
            extension, image = encode_image(frame.image, quality)
            writer.write(frame.key, extension, image, encode_depth(frame.depth))
        close()
        if not splits:
            raise SourceError("the source has no frames")
        write_dataset(aside, splits, **about)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)
    return {name: int(entry["count"]) for name, entry in splits.items()}  # type: ignore[call-overload]


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.prepare", description=__doc__.splitlines()[0])
    sources = main.add_subparsers(dest="source", required=True, metavar="SOURCE")
    labelled = sources.add_parser(
        "nyu-labelled", help="nyu_depth_v2_labeled.mat, 795 train and 654 test frames"
    )
    labelled.add_argument("path", type=Path, metavar="PATH.mat")
    labelled.add_argument(
        "--depth", choices=("filled", "raw"), default="filled", help="in-painted or with holes"
    )
    labelled.add_argument(
        "--size", type=parse_size, metavar="HxW", help="resize train frames (default: keep)"
    )
    rooms = sources.add_parser("rooms", help="synthetic rooms, rendered here")
    rooms.add_argument("--count", type=int, default=1000)
    rooms.add_argument("--size", type=parse_size, default=(240, 320), metavar="HxW")
    rooms.add_argument("--seed", type=int, default=0)
    for source in (labelled, rooms):
        source.add_argument("--out", type=Path, required=True, metavar="DIR")
    return main


def run(args: argparse.Namespace) -> int:
    out: Path = args.out
    if out.exists() and any(out.iterdir()) and not (out / "dataset.json").is_file():
        raise SourceError(f"{out} is not empty and holds no data set; give another --out")
    if args.source == "rooms":
        if args.count < 3:
            raise SourceError(f"--count {args.count}: at least 3 rooms are needed, one for each split")
        frames = synthetic_rooms.read(args.count, args.size, args.seed)
        counts = write(frames, args.count, out, args.size, source="rooms", terms=synthetic_rooms.TERMS)
    else:
        name = {"filled": "depths", "raw": "rawDepths"}[args.depth]
        frames = nyu_labelled.read(args.path, name)
        about = {"source": "nyu-labelled", "truth": args.depth, "terms": nyu_labelled.TERMS}
        counts = write(frames, 1449, out, args.size, **about)
    print(f"{out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

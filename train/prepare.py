"""Turns a source into the shards that training reads.

python -m train.prepare nyu-labelled nyu_depth_v2_labeled.mat --out DIR [--size 240x320] [--depth filled|raw]
python -m train.prepare nyu-50k nyu_data.zip --out DIR --size 240x320
python -m train.prepare nyu-h5 FOLDER --out DIR
python -m train.prepare nyu-sync FOLDER --out DIR [--train-list FILE] [--test-list FILE]
python -m train.prepare pairs PICTURES DEPTHS --scale 0.001 --out DIR [--focal PX] [--max-depth 80] [--camera NAME]
python -m train.prepare rooms --count 1000 --size 240x320 --out DIR
python -m train.prepare verify DIR [--full]
python -m train.prepare sheet DIR --out sheet.png
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from train.arguments import command, parse_size
from train.codec import MILLIMETRE
from train.contact_sheet import write_sheet
from train.crew import cores
from train.encoding import check_unit, resize_frame
from train.shard_job import SAMPLES_PER_SHARD, prepare
from train.shards import DEFAULT_RANGE
from train.sources.frames import Frame, Item, Source, SourceError
from train.sources.nyu_50k import Nyu50k
from train.sources.nyu_h5 import NyuH5
from train.sources.nyu_labelled import NyuLabelled
from train.sources.nyu_sync import NyuSync
from train.sources.pairs import Pairs
from train.sources.synthetic_rooms import Rooms
from train.verify import problems

__all__ = ["check_unit", "parser", "resize_frame", "run", "write"]


class _InMemory(Source):
    name = "memory"

    def __init__(self, frames: list[Frame], about: dict[str, Any]) -> None:
        self.frames, self.arguments, self.about = frames, {}, about

    def items(self) -> list[Item]:
        return [Item(frame.split, frame.key, number) for number, frame in enumerate(self.frames)]

    def load(self, item: Item, handle: Any) -> Frame:
        return self.frames[item.where]


def write(
    frames: Iterator[Frame], total: int, out: Path, size: tuple[int, int] | None, **about: str
) -> dict[str, int]:
    """Writes frames that fit into memory; an old data set in ``out`` is replaced when all is written.

    Args:
        frames: of all splits.
        total: how many of them at most.
        out: folder of the data set.
        size: (H, W) of train frames; the others keep theirs.
        **about: goes into ``dataset.json``.

    Returns:
        Number of samples by split.
    """
    return prepare(_InMemory(list(islice(frames, total)), about), out, size, overwrite=True)[0]


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: expected 0 or more and less than 1")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _unit(text: str) -> float:
    return MILLIMETRE if text == "mm" else float(text)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.prepare", description=__doc__.splitlines()[0])
    commands = main.add_subparsers(dest="source", required=True, metavar="SOURCE|verify|sheet")

    labelled = commands.add_parser(
        "nyu-labelled", help="nyu_depth_v2_labeled.mat, 795 train and 654 test frames"
    )
    labelled.add_argument("path", type=Path, metavar="PATH.mat")
    labelled.add_argument(
        "--depth", choices=("filled", "raw"), default="filled", help="in-painted or with holes"
    )
    labelled.add_argument(
        "--fold", type=int, choices=range(5), default=0, help="another validation split of the train frames"
    )
    fifty = commands.add_parser("nyu-50k", help="nyu_data.zip or its folder, 50,688 train frames")
    fifty.add_argument("path", type=Path, metavar="ZIP|FOLDER")
    h5 = commands.add_parser("nyu-h5", help="HDF5 frames, loose or in tars, 47,584 train frames")
    h5.add_argument("path", type=Path, metavar="FOLDER|TAR")
    sync = commands.add_parser("nyu-sync", help="synchronised frames with list files, 24,231 train frames")
    sync.add_argument("path", type=Path, metavar="FOLDER")
    sync.add_argument("--train-list", type=Path, metavar="FILE", help="rows: rgb depth focal")
    sync.add_argument("--test-list", type=Path, metavar="FILE")
    pairs = commands.add_parser("pairs", help="two folders of pictures and depth maps with equal names")
    pairs.add_argument("path", type=Path, metavar="PICTURES")
    pairs.add_argument("depths", type=Path, metavar="DEPTHS")
    pairs.add_argument("--scale", type=float, required=True, help="metres per unit of depth, 0.001 for mm")
    pairs.add_argument(
        "--focal", type=float, metavar="PX", help="focal length (default: NYU's field of view)"
    )
    for flag, metres in zip(("--min-depth", "--max-depth"), DEFAULT_RANGE, strict=True):
        pairs.add_argument(
            flag,
            type=float,
            default=metres,
            metavar="M",
            help=f"of valid depth, metres (default: {metres:g})",
        )
    pairs.add_argument(
        "--depth-unit",
        type=_unit,
        metavar="mm|M",
        help="of the stored 16 bits, metres (default: mm, beyond 65 m 1/256)",
    )
    pairs.add_argument("--camera", metavar="NAME", help="of the camera, for the weights' card")
    rooms = commands.add_parser("rooms", help="synthetic rooms, rendered here")
    rooms.add_argument("--count", type=int, default=1000)
    rooms.add_argument("--seed", type=int, default=0)
    rooms.add_argument("--size", type=parse_size, default=(240, 320), metavar="HxW")
    rooms.add_argument(
        "--varied",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="close-ups, halls, other lenses, blur, noise and wrong exposure (default: yes)",
    )

    for source in (labelled, fifty, h5, sync, pairs, rooms):
        if source is not rooms:
            source.add_argument(
                "--size", type=parse_size, metavar="HxW", help="of train frames (default: keep)"
            )
        source.add_argument("--out", type=Path, required=True, metavar="DIR")
        source.add_argument("--workers", type=_positive, default=cores(), metavar="N", help="processes")
        source.add_argument(
            "--max-bad", type=_share, default=0.01, metavar="SHARE", help="of frames that may be skipped"
        )
        source.add_argument("--samples-per-shard", type=_positive, default=SAMPLES_PER_SHARD, metavar="N")
        source.add_argument("--overwrite", action="store_true", help="replace another data set in DIR")

    verify = commands.add_parser("verify", help="check a data set: one line a problem, exit code 2")
    verify.add_argument("path", type=Path, metavar="DIR")
    verify.add_argument("--full", action="store_true", help="decode every sample")
    verify.add_argument("--workers", type=_positive, default=cores(), metavar="N", help="processes")
    sheet = commands.add_parser("sheet", help="a picture of random samples")
    sheet.add_argument("path", type=Path, metavar="DIR")
    sheet.add_argument("--out", type=Path, required=True, metavar="PNG")
    sheet.add_argument("--count", type=_positive, default=12, metavar="N")
    sheet.add_argument("--seed", type=int, default=0)
    return main


def _source(args: argparse.Namespace) -> Source:
    match args.source:
        case "nyu-labelled":
            return NyuLabelled(args.path, args.depth, args.fold)
        case "nyu-50k":
            return Nyu50k(args.path)
        case "nyu-h5":
            return NyuH5(args.path)
        case "nyu-sync":
            return NyuSync(args.path, args.train_list, args.test_list)
        case "pairs":
            depth_range = args.min_depth, args.max_depth
            return Pairs(
                args.path, args.depths, args.scale, args.focal, depth_range, args.depth_unit, args.camera
            )
        case _:
            return Rooms(args.count, args.size, args.seed, args.varied)


def _verify(args: argparse.Namespace) -> int:
    found = 0
    for line in problems(args.path, args.full, args.workers):
        print(line, file=sys.stderr)
        found += 1
    if not found:
        print(f"{args.path}: no problem found" + ("" if args.full else " (--full decodes every sample)"))
    return 2 if found else 0


def run(args: argparse.Namespace) -> int:
    if args.source == "verify":
        return _verify(args)
    if args.source == "sheet":
        if args.out.suffix.lower() != ".png":
            raise SourceError(f"--out {args.out}: expected a name that ends in .png")
        write_sheet(args.path, args.out, args.count, args.seed)
        print(args.out)
        return 0
    counts, written = prepare(
        _source(args),
        args.out,
        args.size,
        workers=args.workers,
        max_bad=args.max_bad,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
    )
    text = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{args.out}: {text}" + ("" if written else " (already there, left as it is)"))
    if "test" not in counts:
        print(f"{args.out}: the source has no test frames, so there is no test split", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

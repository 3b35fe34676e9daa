"""Convert images with depth to the shards that training reads.

python -m train.prepare nyu-labelled nyu_depth_v2_labeled.mat --out DIR [--size 240x320] [--depth filled|raw]
python -m train.prepare nyu-50k nyu_data.zip --out DIR --size 240x320
python -m train.prepare nyu-h5 FOLDER --out DIR
python -m train.prepare nyu-sync FOLDER --out DIR [--train-list FILE] [--test-list FILE]
python -m train.prepare pairs IMAGES DEPTHS --scale 0.001 --out DIR [--focal PX] [--max-depth 80] [--camera NAME]
python -m train.prepare rooms --count 1000 --size 240x320 --out DIR
python -m train.prepare pseudo PICTURES.tar ... --teacher unet_resnet50 --size 240x320 --out DIR
python -m train.prepare verify DIR [--full]

The data set is written to ``DIR.part`` and renamed to ``DIR`` when it is complete. After an interruption the same
command continues at the last complete shard.
"""

import argparse
import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from depthzoo.errors import DatasetError
from depthzoo.files import write_json
from train.arguments import command, parse_size
from train.check import problems, write_sheet
from train.encoding import Sample, encode, unit_problem
from train.log import ignore_interrupt
from train.shards import ShardWriter, write_dataset
from train.sources.base import SPLITS, Item, Source
from train.sources.nyu_h5 import NyuH5
from train.sources.nyu_labelled import NyuLabelled
from train.sources.nyu_lists import Nyu50k, NyuSync
from train.sources.pairs import Pairs
from train.sources.pseudo import Pseudo
from train.sources.rooms import Rooms

SOURCES: tuple[type[Source], ...] = (NyuLabelled, Nyu50k, NyuH5, NyuSync, Pairs, Rooms, Pseudo)
SAMPLES_PER_SHARD = 256
LONGEST_KEY = 80  # the tar header has room for 100 with ".depth.png"
# Frames after which wrong units are noticed: one close-up says nothing.
ENOUGH = 16
PROGRESS = "progress.json"  # in DIR.part: the settings, and what dataset.json will say of the finished shards


class Samples(Dataset[Sample | str]):
    """The encoded samples of a source; in place of one that cannot be used, the reason."""

    def __init__(self, source: Source, items: Sequence[Item], size: tuple[int, int] | None) -> None:
        self.source, self.items, self.size = source, items, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample | str:
        item = self.items[index]
        try:
            return encode(self.source, item, self.size)
        except (DatasetError, OSError) as error:
            return f"{item.split} sample {item.key!r}: {error}"


def prepare(
    source: Source,
    out: Path,
    size: tuple[int, int] | None = None,
    *,
    workers: int = 1,
    max_bad: float = 0.01,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the data set ``out``; return the number of samples by split.

    Args:
        source: the frames.
        out: the data set's folder.
        size: (H, W) of the stored train frames. Others keep their size.
        workers: number of processes that load and encode. The result does not depend on it.
        max_bad: fraction of the frames that may be skipped because they cannot be used.
        samples_per_shard: number of samples in one tar.
        overwrite: replace an older data set, once the new one is complete.

    Raises:
        DatasetError: if the source or the folder is not what was expected, too many frames cannot be used, or the unit
            is wrong.
        OSError: if the disk is full or a worker process died.
    """
    if workers < 1 or samples_per_shard < 1 or not 0 <= max_bad < 1:
        raise DatasetError("expected --workers and --samples-per-shard of 1 or more, and 0 <= --max-bad < 1")
    out = Path(os.path.abspath(out))
    partial = out.with_name(out.name + ".part")
    for folder, mark in ((out, "dataset.json"), (partial, PROGRESS)):
        if folder.exists() and not (folder / mark).is_file() and any(folder.iterdir()):
            raise DatasetError(f"{folder} is not empty and holds no data set; give another --out")
    if (out / "dataset.json").is_file() and not overwrite:
        raise DatasetError(f"{out} holds a data set already; --overwrite replaces it")
    items = source.items()
    check_items(items, source.name)
    listing = "\n".join(f"{item.split}\t{item.key}" for item in items)
    settings = {
        "source": source.name,
        **source.settings(),
        "size": size,
        "samples_per_shard": samples_per_shard,
        "source_digest": hashlib.sha256(listing.encode()).hexdigest(),
    }
    settings = json.loads(json.dumps(settings))
    progress = open_partial(partial, settings, overwrite)
    try:
        for split in SPLITS:
            of_split = [item for item in items if item.split == split]
            convert(source, of_split, size, partial, progress, workers, int(max_bad * len(items)))
        about: dict[str, Any] = {"source": source.name, **source.about(), "prepared": settings}
        if progress["skipped"]:
            about["skipped"] = progress["skipped"]
            print(f"{out}: {len(progress['skipped'])} frames were skipped", file=sys.stderr)
        if outside := progress["outside"] / max(progress["known"], 1):
            about["outside_range"] = round(outside, 6)
            text = "{:.2%} of the depth is outside {:g} to {:g} m and invalid"
            print(f"{out}: {text.format(outside, *source.depth_range)}", file=sys.stderr)
        write_dataset(partial, progress["splits"], source.depth_unit, source.depth_range, **about)
        write_sheet(partial, partial / "samples.png")
    except BaseException:
        if progress["splits"]:
            print(f"{partial} keeps the finished shards; the same command continues", file=sys.stderr)
        else:
            shutil.rmtree(partial)
        raise
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    (partial / PROGRESS).unlink()
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return {split: entry["count"] for split, entry in progress["splits"].items()}


def open_partial(partial: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Create ``DIR.part``, or return the progress of an interrupted conversion with the same settings."""
    file = partial / PROGRESS
    if file.is_file() and not overwrite:
        progress: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        before = progress["settings"]
        if changed := [key for key in settings if before.get(key) != settings[key]]:
            raise DatasetError(f"{partial} is unfinished and had another {changed[0]}; --overwrite drops it")
        count = sum(entry["count"] for entry in progress["splits"].values())
        print(f"{partial} has {count} frames of an interrupted conversion; continuing", file=sys.stderr)
        return progress
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    progress = {"settings": settings, "splits": {}, "skipped": [], "known": 0, "outside": 0}
    write_json(file, progress)
    return progress


def convert(
    source: Source,
    items: Sequence[Item],
    size: tuple[int, int] | None,
    folder: Path,
    progress: dict[str, Any],
    workers: int,
    allowed: int,
) -> None:
    """Write those shards of a split that ``progress`` does not have, and add them to it.

    Args:
        source: the frames.
        items: the frames of the split.
        size: (H, W) of stored train frames.
        folder: ``DIR.part``.
        progress: the facts for ``dataset.json`` so far, saved after each shard.
        workers: number of processes.
        allowed: number of frames of all splits that may be skipped.
    """
    if not items:
        return
    split, skipped, per_shard = items[0].split, progress["skipped"], progress["settings"]["samples_per_shard"]
    entry = progress["splits"].get(split) or {"count": 0, "shards": []}
    start = len(entry["shards"]) * per_shard
    results = load(source, items[start:], size, workers)
    results = iter(tqdm(results, split, len(items), initial=start, unit="frame", disable=None))
    medians: list[float] = []
    while chunk := list(islice(results, per_shard)):
        if len(chunk) >= ENOUGH and not entry["count"] and all(isinstance(result, str) for result in chunk):
            raise DatasetError(f"{chunk[0]} (none of the first {len(chunk)} {split} frames can be used)")
        with ShardWriter(folder, split, per_shard, first=len(entry["shards"])) as writer:
            for result in chunk:
                if isinstance(result, Sample):
                    entry = {"size": list(result.size), "focal_px": result.focal_px} | entry
                    result = check_focal(result, entry["focal_px"], split)
                if isinstance(result, str):
                    skipped.append(result)
                    if len(skipped) > allowed:
                        counts = f"{len(skipped)} frames cannot be used, --max-bad allows {allowed}"
                        raise DatasetError(f"{result} ({counts})")
                    tqdm.write(f"skipped {result}", file=sys.stderr)
                    continue
                writer.write(result.key, result.extension, result.image, result.depth)
                medians.append(result.median)
                progress["known"] += result.known
                progress["outside"] += result.outside
        entry["count"] += writer.entry["count"]
        entry["shards"] += writer.entry["shards"]
        if len(medians) >= ENOUGH:
            check_unit(source, medians, f"the first {split} frames", progress)
        progress["splits"][split] = entry
        write_json(folder / PROGRESS, progress)
    if not entry["count"]:
        raise DatasetError(f"no {split} frame can be used: {skipped[-1]}")
    check_unit(source, medians, f"all {split} frames", progress)


def load(
    source: Source, items: Sequence[Item], size: tuple[int, int] | None, workers: int
) -> Iterator[Sample | str]:
    """Yield the encoded frames in order, or what is wrong with them."""
    samples = DataLoader(
        Samples(source, items, size),
        batch_size=None,
        num_workers=workers if workers > 1 and source.in_workers else 0,
        worker_init_fn=ignore_interrupt,
    )
    try:
        yield from samples
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise OSError("a worker process died (out of memory?); try fewer --workers") from None


def check_unit(source: Source, medians: list[float], what: str, progress: dict[str, Any]) -> None:
    """Raise a ``DatasetError`` if depth cannot be in metres; the finished shards are worth nothing then."""
    if problem := unit_problem(medians, source.scale, source.depth_range):
        progress["splits"].clear()
        raise DatasetError(f"{what}: {problem}")


def check_focal(sample: Sample, usual: float, split: str) -> Sample | str:
    """Return the sample, or what is wrong if its focal length is not the usual one: a split has one camera."""
    if abs(sample.focal_px / usual - 1) <= 0.01:
        return sample
    hint = ", or --size for pictures of several sizes" if split == "train" else ""
    return (
        f"{split} sample {sample.key!r}: focal length {sample.focal_px:.1f} px, others {usual:.1f} px; "
        f"expected one camera{hint}"
    )


def check_items(items: Sequence[Item], name: str) -> None:
    """Raise a ``DatasetError`` for an empty listing, or keys that are not unique file names."""
    seen: set[tuple[str, str]] = set()
    for split, key, _ in items:
        if (split, key) in seen:
            raise DatasetError(f"two {split} frames have the key {key!r}; rename one of the files")
        if not key or len(key.encode()) > LONGEST_KEY or "." in key or "/" in key:
            raise DatasetError(
                f"{split} frame {key!r}: a key has 1 to {LONGEST_KEY} bytes, no dot and no slash"
            )
        seen.add((split, key))
    if not any(item.split == "train" for item in items):
        raise DatasetError(f"the source {name} has no train frames")


def add_source(parser: argparse.ArgumentParser, source: type[Source]) -> None:
    """Add an argument for each field of a source, and those that all sources have."""
    for field in dataclasses.fields(source):
        options = dict(field.metadata)
        if field.default is dataclasses.MISSING and not options.get("required"):
            parser.add_argument(field.name, **options)
            continue
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        if field.default is not dataclasses.MISSING:
            options["default"] = field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    if not any(field.name == "size" for field in dataclasses.fields(source)):
        parser.add_argument("--size", type=parse_size, metavar="HxW", help="of train frames (default: keep)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help="number of processes")
    parser.add_argument(
        "--max-bad", type=float, default=0.01, metavar="X", help="fraction of frames that may be skipped"
    )
    parser.add_argument("--samples-per-shard", type=int, default=SAMPLES_PER_SHARD, metavar="N")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set in DIR")


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.prepare", description=__doc__.splitlines()[0])
    commands = main.add_subparsers(dest="source", required=True, metavar="SOURCE|verify")
    for source in SOURCES:
        about = inspect.getdoc(source)
        form = argparse.RawDescriptionHelpFormatter
        one = commands.add_parser(source.name, help=source.help, description=about, formatter_class=form)
        add_source(one, source)
    verify = commands.add_parser("verify", help="check a data set: one line a problem, exit code 2")
    verify.add_argument("path", type=Path, metavar="DIR")
    verify.add_argument("--full", action="store_true", help="decode every sample")
    verify.add_argument("--workers", type=int, default=cores(), metavar="N", help="number of processes")
    return main


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(args: argparse.Namespace) -> int:
    if args.source == "verify":
        found = False
        for line in problems(args.path, args.full, args.workers):
            print(line, file=sys.stderr)
            found = True
        if not found:
            print(f"{args.path}: no problem found" + ("" if args.full else " (--full decodes every sample)"))
        return 2 if found else 0
    kind = next(source for source in SOURCES if source.name == args.source)
    source = kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})
    counts = prepare(
        source,
        args.out,
        getattr(source, "size", args.size),
        workers=args.workers,
        max_bad=args.max_bad,
        samples_per_shard=args.samples_per_shard,
        overwrite=args.overwrite,
    )
    text = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{args.out}: {text}")
    if "test" not in counts:
        print(f"{args.out}: the source has no test frames, so there is no test split", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

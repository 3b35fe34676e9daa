"""Writes a source's frames into shards: in parallel, in order, and on from where it was killed.

Shard n of a split holds frames n * samples_per_shard and on of the source's listing, less those that cannot be
used, so shards do not depend on each other. While the set is made it is ``DIR.part``; each finished shard has a
record in ``DIR.part/job``, and a run that finds it does not read those frames again.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.contact_sheet import write_sheet
from train.crew import Crew
from train.encoding import Encoded, check_medians
from train.part_folder import JOB, enter, left_as_it_is, swap
from train.shards import ShardWriter, write_dataset, write_json
from train.sources.frames import SPLITS, Item, Source, SourceError

# Frames of a split whose unit is looked at before anything is written, spread over it: not one scene's.
UNIT_SAMPLE = 16
LONGEST_KEY = 80  # the tar header has room for 100 with ".depth.png"
SAMPLES_PER_SHARD = 256


@dataclass
class Shard:
    """One shard to be written."""

    split: str
    number: int
    items: Sequence[Item]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}"


def prepare(
    source: Source,
    out: Path,
    size: tuple[int, int] | None = None,
    *,
    workers: int = 1,
    max_bad: float = 0.01,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    overwrite: bool = False,
) -> tuple[dict[str, int], bool]:
    """Makes the data set ``out``; leaves it alone if the same source and arguments made it before.

    Args:
        source: of the frames.
        out: folder of the data set.
        size: (H, W) of train frames; the others keep theirs.
        workers: processes; the result does not depend on it.
        max_bad: share of the source's frames that may be skipped because they cannot be used.
        samples_per_shard: frames in one tar.
        overwrite: replace a data set of another source or other arguments, once the new one is complete.

    Returns:
        Number of samples by split, and whether anything was written.

    Raises:
        SourceError: for a source or a folder that is not what was expected, too many bad frames, a wrong unit.
        OSError: if the disk is full; finished shards are kept for the next run.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / "dataset.json").is_file():
        raise SourceError(f"{out} is not empty and holds no data set; give another --out")
    items = source.items()
    _check_items(items, source.name)
    listing = "\n".join("\t".join((i.split, i.key, i.stamp, i.problem)) for i in items)
    asked = {
        "source": source.name,
        **source.arguments,
        "size": list(size) if size else None,
        "samples_per_shard": samples_per_shard,
        "source_digest": hashlib.sha256(listing.encode()).hexdigest(),
    }
    if (out / "dataset.json").is_file() and not overwrite:
        return left_as_it_is(out, asked), False
    aside = out.with_name(out.name + ".part")
    enter(aside, asked, overwrite)
    job = _Job(source, aside, size, items, int(max_bad * len(items)), samples_per_shard)
    try:
        splits = job.run(workers)
        skipped = {"skipped": job.bad} if job.bad else {}
        about = {"source": source.name, **source.about, "prepared": asked, **skipped}
        if job.outside:
            about["outside_range"] = round(job.outside, 6)
        write_dataset(aside, splits, source.depth_unit, source.depth_range, **about)
        write_sheet(aside, aside / "samples.png")
    except BaseException:
        if not any((aside / JOB).glob("*-*.json")):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            print(f"{aside} keeps the finished shards; the same command goes on from there", file=sys.stderr)
        raise
    swap(aside, out)
    if job.bad:
        print(f"{out}: {len(job.bad)} frames were skipped", file=sys.stderr)
    if job.outside:
        near, far = source.depth_range
        print(
            f"{out}: {job.outside:.2%} of the pixels with depth lie outside {near:g} to {far:g} m and are invalid",
            file=sys.stderr,
        )
    return {name: int(entry["count"]) for name, entry in splits.items()}, True


def _check_items(items: Sequence[Item], name: str) -> None:
    if not items:
        raise SourceError(f"the source {name} has no frames")
    seen: set[tuple[str, str]] = set()
    for item in items:
        if (item.split, item.key) in seen:
            raise SourceError(f"two {item.split} frames have the key {item.key!r}; rename one of the files")
        if not item.key or len(item.key.encode()) > LONGEST_KEY or "." in item.key or "/" in item.key:
            raise SourceError(
                f"{item.split} frame {item.key!r}: a key has 1 to {LONGEST_KEY} bytes, no dot and no slash"
            )
        seen.add((item.split, item.key))
    if not any(item.split == "train" for item in items):
        raise SourceError(f"the source {name} has no train frames")


class _Job:
    def __init__(
        self,
        source: Source,
        folder: Path,
        size: tuple[int, int] | None,
        items: Sequence[Item],
        allowed: int,
        samples_per_shard: int,
    ) -> None:
        self.source, self.folder, self.size = source, folder, size
        self.items, self.allowed = items, allowed
        self.bad: list[str] = []
        self.outside = 0.0  # share of the pixels with depth
        self.by_split = {split: [item for item in items if item.split == split] for split in SPLITS}
        self.shards = [
            Shard(split, number, of_split[start : start + samples_per_shard])
            for split, of_split in self.by_split.items()
            for number, start in enumerate(range(0, len(of_split), samples_per_shard))
        ]

    def run(self, workers: int) -> dict[str, dict[str, Any]]:
        """Entries of ``dataset.json`` by split."""
        known = [item for item in self.items if item.problem]
        if len(known) > self.allowed:
            raise self._too_many(len(known), known[0].problem)
        records = {shard.name: record for shard in self.shards if (record := self._record(shard)) is not None}
        left = [shard for shard in self.shards if shard.name not in records]
        self.bad = [
            line for shard in self.shards if shard.name in records for line in records[shard.name]["bad"]
        ]
        focal = {s.split: records[s.name]["focal_px"] for s in reversed(self.shards) if s.name in records}
        with Crew(self.source, self.size, workers) as crew:
            if left:
                self._check_unit(crew)
            done = sum(len(shard.items) for shard in self.shards) - sum(len(shard.items) for shard in left)
            results = crew.encoded([item for shard in left for item in shard.items])
            with tqdm(total=len(self.items), initial=done, unit="frame", disable=None) as bar:
                for shard in left:
                    record = self._write(shard, results, focal, bar)
                    write_json(self.folder / JOB / f"{shard.name}.json", record)
                    records[shard.name] = record
        known = sum(record["known"] for record in records.values())
        self.outside = sum(record["outside"] for record in records.values()) / max(known, 1)
        return self._entries(records)

    def _record(self, shard: Shard) -> dict[str, Any] | None:
        """What a run before this one wrote of a finished shard."""
        try:
            record: dict[str, Any] = json.loads((self.folder / JOB / f"{shard.name}.json").read_text("utf-8"))
            for entry in record["shards"]:
                if (self.folder / entry["file"]).stat().st_size != entry["bytes"]:
                    return None
            return record if "outside" in record else None  # an older version's does not say
        except (OSError, ValueError, KeyError):
            return None

    def _check_unit(self, crew: Crew) -> None:
        for split, items in self.by_split.items():
            count = min(len(items), UNIT_SAMPLE)
            sample = [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
            looks = list(crew.looks(sample))
            what = f"{split} ({count} of {len(items)} frames)"
            check_medians([m for m, _ in looks], what, self.source.scale, self.source.depth_range)
            if split == "train" and looks and all(cut for _, cut in looks):
                raise SourceError(looks[0][1])

    def _write(
        self, shard: Shard, results: Iterator[Encoded | str], focal: dict[str, float], bar: "tqdm[Any]"
    ) -> dict[str, Any]:
        bad: list[str] = []
        medians: list[float] = []
        known = outside = 0
        first: Encoded | None = None
        with ShardWriter(self.folder, shard.split, len(shard.items) + 1, first=shard.number) as writer:
            for item in shard.items:
                result = next(results)
                bar.update()
                if isinstance(result, Encoded):
                    usual = focal.setdefault(shard.split, result.focal_px)
                    if abs(result.focal_px / usual - 1) > 0.01:
                        hint = ", or --size for pictures of several sizes" if shard.split == "train" else ""
                        result = (
                            f"focal length {result.focal_px:.1f} px, others {usual:.1f} px; "
                            f"expected one camera{hint}"
                        )
                if isinstance(result, str):
                    line = f"{item.split} sample {item.key!r}: {result}"
                    bad.append(line)
                    if len(self.bad) + len(bad) > self.allowed:
                        raise self._too_many(len(self.bad) + len(bad), line)
                    tqdm.write(f"skipped {line}", file=sys.stderr)
                    continue
                first = first or result
                if result.median is not None:
                    medians.append(result.median)
                known, outside = known + result.known, outside + result.outside
                writer.write(result.key, result.extension, result.image, result.depth)
        self.bad += bad
        return {
            "shards": writer.entry["shards"],
            "bad": bad,
            "medians": medians,
            "known": known,
            "outside": outside,
            "size": first and list(first.size),
            "focal_px": first and first.focal_px,
        }

    def _too_many(self, count: int, line: str) -> SourceError:
        return SourceError(
            f"{line} ({count} of {len(self.items)} frames cannot be used, --max-bad allows {self.allowed})"
        )

    def _entries(self, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for split, items in self.by_split.items():
            mine = [records[shard.name] for shard in self.shards if shard.split == split]
            shards = [entry for record in mine for entry in record["shards"]]
            if not items:
                continue
            if not shards:
                raise SourceError(f"no {split} frame can be used: {self.bad[-1]}")
            medians = [m for r in mine for m in r["medians"]]
            check_medians(medians, f"all {split} frames", self.source.scale, self.source.depth_range)
            first = next(record for record in mine if record["shards"])
            entries[split] = {
                "count": sum(int(entry["count"]) for entry in shards),
                "shards": shards,
                "size": first["size"],
                "focal_px": first["focal_px"],
            }
        return entries

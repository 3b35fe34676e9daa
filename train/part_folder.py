"""The folder in which a data set is made, ``DIR.part``, and its way to ``DIR``."""

import json
import shutil
from pathlib import Path
from typing import Any

from train.shards import DatasetError, read_dataset, write_json
from train.sources.frames import SPLITS, SourceError
from train.verify import quick_problems

# Below DIR.part: what was asked for, and a record of each finished shard.
JOB = "job"


def _differences(asked: dict[str, Any], has: Any) -> str:
    if not isinstance(has, dict):
        return "it does not say with which arguments it was made"
    keys = [key for key in asked.keys() | has.keys() if asked.get(key) != has.get(key)]
    shown = [
        f"{key} {has.get(key)!r}, now {asked.get(key)!r}" for key in sorted(keys) if key != "source_digest"
    ]
    return "it was made with " + "; ".join(shown) if shown else "the source's files have changed since"


def left_as_it_is(out: Path, asked: dict[str, Any]) -> dict[str, int]:
    """Number of samples by split of the finished ``out``.

    Raises:
        SourceError: if it was made of something else, or is damaged.
    """
    try:
        info = read_dataset(out)
    except DatasetError as error:
        raise SourceError(f"{error}; --overwrite makes it again") from None
    if info.get("prepared") != asked:
        reason = _differences(asked, info.get("prepared"))
        raise SourceError(f"{out} holds a data set and {reason}; --overwrite replaces it")
    for problem in quick_problems(out):
        raise SourceError(f"{problem}; --overwrite makes the data set again")
    shutil.rmtree(out / JOB, ignore_errors=True)  # of a run killed in its last moment
    return {name: int(info["splits"][name]["count"]) for name in SPLITS if name in info["splits"]}


def enter(aside: Path, asked: dict[str, Any], overwrite: bool) -> None:
    """Makes ``DIR.part``, or takes it up where it was left."""
    job = aside / JOB / "job.json"
    if aside.exists():
        if not job.is_file():
            if any(path.name != JOB for path in aside.iterdir()):
                raise SourceError(f"{aside} is not empty and is no unfinished data set; remove it first")
        else:
            has = json.loads(job.read_text(encoding="utf-8"))
            if has == asked:
                return
            if any(job.parent.glob("*-*.json")) and not overwrite:
                raise SourceError(
                    f"{aside} holds an unfinished data set and {_differences(asked, has)}; --overwrite drops it"
                )
        shutil.rmtree(aside)
    job.parent.mkdir(parents=True)
    write_json(job, asked)


def swap(aside: Path, out: Path) -> None:
    """Puts the finished data set in the place of the old one, if there is one."""
    old = out.with_name(f".{out.name}.replaced")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(out / JOB, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)

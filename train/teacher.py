"""The teacher of a recipe: labels pictures once, at the start of a run, into shards that the run then mixes in."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from train.config import TeacherConfig
from train.distributed import World
from train.progress import TrainingError
from train.pseudo import Labelling, make_pseudo_labels
from train.shards import read_dataset

BATCH = {"cpu": 16, "cuda": 64}
POLL = 1.0  # seconds


def labelled_by_teacher(
    config: TeacherConfig,
    pictures: Sequence[Path],
    out: Path,
    size: tuple[int, int],
    device: torch.device,
    world: World,
) -> Path:
    """Makes the data set ``out`` unless the same teacher has made it of the same pictures before.

    The first process labels; the others wait for the files, not in a collective, whose patience ends sooner.

    Args:
        config: of the teacher.
        pictures: tars or folders.
        out: folder of the data set.
        size: (H, W) of the stored frames where the recipe names none.
        device: where the teacher runs.
        world: the processes.

    Returns:
        ``out``.

    Raises:
        TrainingError: another teacher or other pictures made what is there.
        ValueError: no such teacher, unreadable pictures.
        KeyboardInterrupt: after SIGINT or SIGTERM, with nothing left behind.
    """
    wanted = Labelling(
        teacher=config.model,
        weights=config.weights,
        pictures=tuple(pictures),
        size=size if config.size == (0, 0) else config.size,
        flip=config.flip,
        limit=config.limit,
        batch_size=BATCH.get(device.type, 16),
        terms=config.terms,
    )
    if world.writes and not out.exists():
        make_pseudo_labels(wanted, out, device)
    while not (out / "dataset.json").is_file():
        if world.writes:
            raise TrainingError(f"{out} is in the way of the teacher's labels; remove it")
        time.sleep(POLL)
    if read_dataset(out).get("labelling") != wanted.describe():
        raise TrainingError(
            f"{out} was labelled by another teacher or from other pictures than the recipe and --pictures name; "
            "remove it or give another --out"
        )
    return out

"""Can each architecture learn at all? Trains it on 8 frames until it knows them by heart.

    python benchmarks/overfit.py NAME... --data DIR [--steps N] [--size HxW]

DIR is a data set of ``train.prepare``; without a NAME all models of the zoo are trained. The 8 frames are spread over
its train split, and they are train and validation split at once: the AbsRel reached says that architecture, loss,
optimiser, BatchNorm statistics and evaluation work together, and nothing of new pictures. No augmentation, random
initial weights. The figures go into results/overfit.json, where those of other models stay.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train.
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from depthzoo.camera import CANONICAL_FOCAL  # noqa: E402
from depthzoo.errors import suggest  # noqa: E402
from depthzoo.models import list_models  # noqa: E402
from train.arguments import command, parse_size  # noqa: E402
from train.cards import commit, versions  # noqa: E402
from train.codec import encode_depth, encode_image  # noqa: E402
from train.config import TrainConfig  # noqa: E402
from train.engine import Run, RunOptions  # noqa: E402
from train.feed import Sources  # noqa: E402
from train.shards import ShardDataset, ShardWriter, write_dataset, write_json  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "overfit.json"
FRAMES = 8
TARGET = 0.05  # AbsRel
SIZE, STEPS = (96, 128), 150
# Peak learning rates of AdamW; the decoder of DispNet has no BatchNorm.
RATES = {"dispnet_vgg16": 5e-4}
RATE = 2e-3


def write_frames(data: Path, out: Path, size: tuple[int, int]) -> None:
    """Writes a data set of 8 frames of ``data``, at ``size``, that are its train and its validation split.

    Raises:
        DatasetError: ``data`` is no data set.
        ValueError: it has fewer frames, or ``size`` would be another one in training than in validation.
    """
    height, width = size
    if height * 4 != width * 3 or height % 32:
        raise ValueError(f"size {height}x{width}: expected 4:3 and multiples of 32, as in 96x128")
    dataset = ShardDataset(data, "train")
    if len(dataset) < FRAMES:
        raise ValueError(f"{data} has {len(dataset)} train frames; {FRAMES} are needed")
    splits = {}
    for split in ("train", "val"):
        with ShardWriter(out, split) as writer:
            for number in range(FRAMES):
                index = number * len(dataset) // FRAMES
                image, millimetres = dataset[index]
                small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX)
                rows, columns = (
                    (np.arange(new) * old + old // 2) // new
                    for new, old in zip(size, millimetres.shape, strict=True)
                )
                depth = millimetres[np.ix_(rows, columns)] / 1000
                extension, content = encode_image(np.asarray(small))
                writer.write(dataset.keys[index], extension, content, encode_depth(depth))
        # A stored frame counts as the whole one, so that training and validation see the same pixels.
        focal = CANONICAL_FOCAL * size[1]
        splits[split] = {**writer.entry, "size": list(size), "focal_px": focal}
    write_dataset(out, splits, source=dataset.info.get("source"), terms=dataset.info.get("terms", ""))


def configuration(name: str, steps: int, size: tuple[int, int]) -> TrainConfig:
    """All 8 frames in each batch, one cycle of AdamW, nothing that keeps a network from learning by heart.

    The moving average is for its BatchNorm statistics, which are those of its weights. MobileNetV3's own have a
    momentum of 0.01 and lag behind: without the average its AbsRel after 100 steps was .28 instead of .04.
    """
    return TrainConfig(
        model=name,
        size=size,
        steps=steps,
        batch_size=FRAMES,
        lr=RATES.get(name, RATE),
        weight_decay=0.0,
        warmup=0.2,
        ema=0.9,
        loss={"silog": 1.0},
        validate_every=steps,
        checkpoint_every=steps,
        tag="overfit",
    )


def overfit(name: str, frames: Path, steps: int = STEPS, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Trains one architecture on the data set of :func:`write_frames`.

    Returns:
        steps, size, lr, AbsRel and d1 reached, seconds of processor time.
    """
    config, started = configuration(name, steps, size), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        training = Run(config, Sources(frames), Path(folder) / "run", RunOptions(report=False))
        reached = training.train()["history"][-1]
    return {
        "steps": steps,
        "size": list(size),
        "lr": config.lr,
        "abs_rel": round(reached["abs_rel"], 4),
        "d1": round(reached["d1"], 4),
        "cpu_seconds": round(time.process_time() - started),
    }


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="overfit.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("names", nargs="*", metavar="NAME", help="of the zoo (default: all)")
    main.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards made by train.prepare")
    main.add_argument("--steps", type=int, default=STEPS, metavar="N")
    main.add_argument("--size", type=parse_size, default=SIZE, metavar="HxW")
    main.add_argument("--out", type=Path, default=RESULT, metavar="FILE", help=f"default: {RESULT.name}")
    return main


def run(args: argparse.Namespace) -> int:
    models = list_models()
    for name in args.names:
        if name not in models:
            raise ValueError(f"unknown model {name!r}: {suggest(name, models)}")
    failed, state = 0, commit()
    with tempfile.TemporaryDirectory() as folder:
        write_frames(args.data, Path(folder), args.size)
        for name in args.names or models:
            figures = overfit(name, Path(folder), args.steps, args.size)
            call = ["benchmarks/overfit.py", name, "--data", "DIR", "--steps", str(args.steps)]
            call += ["--size", "{}x{}".format(*args.size)]
            figures |= {"command": shlex.join(["python", *call]), "commit": state, "versions": versions()}
            reached = figures["abs_rel"] < TARGET
            failed += not reached
            print(
                f"{name:<20} AbsRel {figures['abs_rel']:.4f} {'' if reached else f'(not under {TARGET}) '}"
                f"after {args.steps} steps, {figures['cpu_seconds']} s of processor time",
                flush=True,
            )
            stored = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
            known = stored.get("models", {}) | {name: figures}
            write_json(args.out, {"frames": FRAMES, "target_abs_rel": TARGET, "models": known})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

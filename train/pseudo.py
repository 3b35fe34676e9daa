"""Depth for pictures that have none: training shards labelled by a teacher.

python -m train.pseudo --teacher unet_resnet50 --data PICTURES.tar ... --out DIR [--size HxW] [--flip] [--limit N]

python -m train --mix-data DIR then trains on them beside real frames; a recipe with a [teacher] does both.
"""

import argparse
import io
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from depthzoo import weights as zoo_weights
from depthzoo.camera import CANONICAL_FOCAL
from depthzoo.files import sha256_of
from depthzoo.predictor import Predictor, select_device
from train.arguments import command, parse_size
from train.cards import find_any, load_any
from train.codec import encode_depth, encode_image, unit_for
from train.interruption import Interruption
from train.pictures import Picture, PictureError, Unreadable, find_pictures, fingerprint
from train.shards import DEFAULT_RANGE, ShardWriter, write_dataset

JPEG_QUALITY = 95
CAMERA = "assumed: the canonical camera, 518.86 px focal length at 640 wide, scaled to the stored width"


class PseudoError(ValueError):
    """Labelling that cannot start; one line."""


@dataclass(frozen=True)
class Labelling:
    """Which teacher labels which pictures, and how.

    Attributes:
        teacher: a name of the zoo, a run's folder or a weights file.
        weights: tag of the weights, where ``teacher`` is a name.
        pictures: tars and folders.
        size: (H, W) of the stored frames; None is the teacher's working size.
        flip: average with the mirrored picture's depth.
        limit: only so many pictures, evenly spread; 0 is all.
        batch_size: pictures that go through the teacher together.
        terms: of the pictures.
    """

    teacher: str
    weights: str
    pictures: tuple[Path, ...]
    size: tuple[int, int] | None = None
    flip: bool = False
    limit: int = 0
    batch_size: int = 16
    terms: str = "not stated"

    def __post_init__(self) -> None:
        for key, low in (("batch_size", 1), ("limit", 0)):
            if getattr(self, key) < low:
                name = key.replace("_", "-")
                raise PseudoError(f"--{name} {getattr(self, key)}: expected at least {low}")

    def found(self) -> list[Picture]:
        """The pictures that are labelled."""
        pictures = find_pictures(self.pictures)
        if not 0 < self.limit < len(pictures):
            return pictures
        return [pictures[i * len(pictures) // self.limit] for i in range(self.limit)]

    def describe(self) -> dict[str, Any]:
        """What tells one labelling from another: digests of the teacher's weights and of the list of pictures."""
        return {
            "teacher": teacher_card(self.teacher, self.weights)["sha256"],
            "pictures": fingerprint(self.found()),
            "size": list(self.size) if self.size else None,
            "flip": self.flip,
        }


def centre_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The largest middle part of (H, W, 3) that has the aspect of ``size`` (h, w), resized to it."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    crop_y, crop_x = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - crop_y) // 2, (width - crop_x) // 2
    part = Image.fromarray(image[top : top + crop_y, left : left + crop_x])
    return np.asarray(part.resize((size[1], size[0]), Image.Resampling.LANCZOS))


def sample_key(number: int, picture: Picture) -> str:
    """Unique by its number, and telling where the picture is from: ``0000012-kitchen-00012``."""
    stem = picture.name.rsplit(".", 1)[0]
    return f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', stem)[-60:]}"


def read_pictures(
    pictures: list[Picture], size: tuple[int, int], unreadable: Unreadable
) -> Iterator[tuple[str, bytes, NDArray[np.uint8]]]:
    """Key, JPEG and its pixels, cropped and resized; skips what cannot be read, until it is too much."""
    for number, picture in enumerate(pictures):
        try:
            image = centre_crop(picture.read(), size)
        except PictureError as error:
            unreadable.add(str(picture), str(error))
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        _, content = encode_image(image, JPEG_QUALITY)
        yield sample_key(number, picture), content, decode(content)


def decode(content: bytes) -> NDArray[np.uint8]:
    """The pixels that a student will see, so that the teacher sees the same."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def teacher_card(name: str, weights: str) -> dict[str, Any]:
    """Who the teacher is: file name, sha256, tag and terms of its weights."""
    path = find_any(name, weights)
    card = zoo_weights.read_metadata(path)
    return {
        "model": card.get("model"),
        "tag": card.get("tag"),
        "file": path.name,
        "sha256": sha256_of(path),
        "terms": card.get("terms", ""),
    }


def label(
    pictures: list[Picture],
    predict: Predictor,
    out: Path,
    size: tuple[int, int],
    batch_size: int,
    depth_range: tuple[float, float] = DEFAULT_RANGE,
    **about: Any,
) -> int:
    """Writes the split "train" of a data set; all of it or nothing.

    Args:
        pictures: to be labelled.
        predict: the teacher.
        out: folder of the data set; must not exist, or be empty.
        size: (H, W) of the stored frames.
        batch_size: pictures that are decoded before the teacher sees them.
        depth_range: of the teacher, metres.
        **about: goes into ``dataset.json``.

    Returns:
        How many samples there are.

    Raises:
        PictureError: if more than 1% of the pictures are unreadable.
        KeyboardInterrupt: after SIGINT or SIGTERM, with nothing left behind.
    """
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    unreadable, interruption = Unreadable(len(pictures)), Interruption()
    unit = unit_for(depth_range[1])
    waiting: list[tuple[str, bytes, NDArray[np.uint8]]] = []
    try:
        with (
            interruption.watched(),
            ShardWriter(aside, "train") as writer,
            tqdm(total=len(pictures), desc="labelling", unit="picture", disable=None) as bar,
        ):

            def flush() -> None:
                predictions = predict([pixels for _, _, pixels in waiting])
                for (key, content, _), prediction in zip(waiting, predictions, strict=True):
                    writer.write(key, "jpg", content, encode_depth(prediction.depth, unit, depth_range))
                bar.update(len(waiting))
                waiting.clear()

            for sample in read_pictures(pictures, size, unreadable):
                waiting.append(sample)
                if len(waiting) == batch_size:
                    flush()
                if interruption.signal is not None:
                    raise KeyboardInterrupt
            if waiting:
                flush()
        entry = {**writer.entry, "size": list(size), "focal_px": CANONICAL_FOCAL * size[1]}
        skipped = sorted(name.rsplit(": ", 1)[-1] for name in unreadable.found)
        write_dataset(aside, {"train": entry}, unit, depth_range, skipped=skipped, camera=CAMERA, **about)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return int(entry["count"])


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.pseudo", description=__doc__.splitlines()[0])
    main.add_argument("--teacher", required=True, metavar="NAME|RUN|FILE.safetensors")
    main.add_argument("--weights", default="DEFAULT", metavar="TAG", help="tag, when a NAME is given")
    main.add_argument("--data", type=Path, nargs="+", required=True, metavar="TAR|DIR", help="pictures")
    main.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new data set")
    main.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="of the stored frames, which are cropped to its aspect (default: the teacher's working size)",
    )
    main.add_argument("--batch-size", type=int, default=16, metavar="N")
    main.add_argument("--flip", action="store_true", help="average with the mirrored picture's depth")
    main.add_argument("--limit", type=int, default=0, metavar="N", help="only N pictures, evenly spread")
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--terms", default="not stated", help="of the pictures, kept in dataset.json")
    return main


def make_pseudo_labels(labelling: Labelling, out: Path, device: torch.device) -> tuple[int, int]:
    """Has a teacher label pictures; the data set ``out`` appears when all is done.

    Returns:
        How many were labelled, and how many skipped because they cannot be read.

    Raises:
        PseudoError: ``out`` is in use.
        ValueError: no such teacher, pictures that are missing, or too many that cannot be read.
        KeyboardInterrupt: after SIGINT or SIGTERM, with nothing left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PseudoError(f"{out} exists and is not empty; give another --out")
    model = load_any(labelling.teacher, labelling.weights)
    predict = Predictor(model, device, batch_size=labelling.batch_size, flip=labelling.flip)
    teacher = teacher_card(labelling.teacher, labelling.weights)
    pictures = labelling.found()
    count = label(
        pictures,
        predict,
        out,
        labelling.size or predict.size,
        labelling.batch_size,
        (model.min_depth, model.max_depth),
        source="pseudo-labels",
        truth="pseudo-labels of a teacher",
        pictures_from=[path.name for path in labelling.pictures],
        teacher=teacher | {"working_size": list(predict.size), "flip": labelling.flip},
        labelling=labelling.describe(),
        terms=f"pictures: {labelling.terms}; depth by a teacher trained on data with these terms: {teacher['terms']}",
    )
    return count, len(pictures) - count


def run(args: argparse.Namespace) -> int:
    names = ("teacher", "weights", "size", "flip", "limit", "batch_size", "terms")
    given = {name: getattr(args, name) for name in names}
    labelling = Labelling(pictures=tuple(args.data), **given)
    count, skipped = make_pseudo_labels(labelling, args.out, select_device(args.device))
    print(f"{args.out}: {count} train, {skipped} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))

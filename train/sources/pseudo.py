"""Pseudo-labels: pictures without depth, labelled by a trained model of the zoo.

Training mixes them with real frames (``--mix-data``), as Xie et al. do in "Self-training with Noisy Student improves
ImageNet classification", CVPR 2020: the teacher sees a clean image, the student an augmented one.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import depthzoo
from depthzoo.camera import CANONICAL_FOCAL
from depthzoo.errors import DatasetError
from depthzoo.files import sha256_of
from train.arguments import parse_size
from train.codec import decode_image, encode_image, unit_for
from train.pictures import find_pictures, fingerprint
from train.sources.base import Frame, Item, Source, argument

JPEG_QUALITY = 95


@dataclass
class Pseudo(Source):
    """Pictures in tars and folders, cropped to one aspect; all of them are train frames."""

    name = "pseudo"
    help = "pictures without depth, labelled by a trained model"

    pictures: list[Path] = argument("tars and folders", type=Path, nargs="+", metavar="TAR|DIR")
    teacher: str = argument("trained model", required=True, metavar="NAME|RUN|FILE.safetensors")
    weights: str = argument("tag, if the teacher is a NAME", "DEFAULT", metavar="TAG")
    size: tuple[int, int] = argument(
        "of the stored frames (default: the teacher's working size)", (0, 0), type=parse_size, metavar="HxW"
    )
    flip: bool = argument("average with the depth of the mirrored picture", True)
    limit: int = argument("only N pictures, evenly spread", 0, type=int, metavar="N")
    device: str | None = argument("where the teacher runs", None, metavar="cpu|cuda")
    terms: str = argument("of the pictures, kept in dataset.json", "not stated", metavar="TEXT")

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise DatasetError(f"--limit {self.limit}: expected at least 0")
        # Here, since the models take seconds to import and no other source needs them.
        from train.cards import find_any

        path = self._path = find_any(self.teacher, self.weights)
        model = depthzoo.load(path)
        self.in_workers = depthzoo.prediction.select_device(self.device).type == "cpu"
        self.depth_range = (model.min_depth, model.max_depth)
        self.depth_unit = unit_for(model.max_depth)
        working_size = depthzoo.Predictor(model, "cpu").size
        if self.size == (0, 0):
            self.size = working_size
        card = model.card or {}
        self._card = {key: card.get(key) for key in ("model", "tag")} | {
            "file": path.name,
            "sha256": sha256_of(path),
            "terms": card.get("terms", ""),
            "working_size": list(working_size),
            "flip": self.flip,
        }

    def about(self) -> dict[str, Any]:
        return {
            "truth": "pseudo-labels of a teacher",
            "camera": "assumed: the canonical camera, 518.86 px focal length at 640 wide, scaled to the stored width",
            "pictures_from": [path.name for path in self.pictures],
            "teacher": self._card,
            "terms": f"pictures: {self.terms}; depth by a teacher trained on data with these terms: "
            + str(self._card["terms"]),
        }

    def settings(self) -> dict[str, Any]:
        pictures = fingerprint(find_pictures(self.pictures))
        teacher = self._card["sha256"]
        return {"pictures": pictures, "limit": self.limit, "teacher": teacher, "flip": self.flip}

    @cached_property
    def _predict(self) -> Any:
        return depthzoo.Predictor(depthzoo.load(self._path), self.device, flip=self.flip)

    def items(self) -> list[Item]:
        pictures = find_pictures(self.pictures)
        if 0 < self.limit < len(pictures):
            pictures = [pictures[i * len(pictures) // self.limit] for i in range(self.limit)]
        return [Item("train", _key(number, each.name), each) for number, each in enumerate(pictures)]

    def load(self, item: Item) -> Frame:
        # The teacher sees the pixels that a student will see.
        _, content = encode_image(centre_crop(item.where.read(), self.size), JPEG_QUALITY)
        image, image_file = decode_image(content, item.key)
        return Frame(image, self._predict(image).depth, CANONICAL_FOCAL * image.shape[1], image_file)


def _key(number: int, name: str) -> str:
    """Unique by its number, and readable: ``0000012-kitchen-00012``."""
    stem = name.rsplit(".", 1)[0]
    return f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', stem)[-60:]}"


def centre_crop(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut the largest middle part with the aspect of ``size`` (h, w) out of (H, W, 3) and resize it to ``size``."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1])
    crop_y, crop_x = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - crop_y) // 2, (width - crop_x) // 2
    part = Image.fromarray(image[top : top + crop_y, left : left + crop_x])
    return np.asarray(part.resize((size[1], size[0]), Image.Resampling.LANCZOS))

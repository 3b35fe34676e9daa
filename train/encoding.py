"""Encode frames as samples for a shard: crop, resize, compress, and check that depth is in metres."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from depthzoo.errors import DatasetError
from train.codec import depth_steps, encode_image, encode_steps
from train.shards import DEFAULT_RANGE
from train.sources.base import Frame, Item, Source

JPEG_QUALITY = 95
LARGEST_CUT = 0.1  # fraction of an image that --size may cut off


@dataclass(frozen=True)
class Sample:
    """An encoded frame.

    Attributes:
        key, extension, image, depth: what ``ShardWriter.write`` takes.
        size: (H, W).
        focal_px: focal length of the stored image in pixels.
        median: median depth of the source in metres.
        known: number of pixels with depth in the source.
        outside: how many of them are outside the depth range.
    """

    key: str
    extension: str
    image: bytes
    depth: bytes
    size: tuple[int, int]
    focal_px: float
    median: float
    known: int
    outside: int


def encode(source: Source, item: Item, size: tuple[int, int] | None) -> Sample:
    """Load a frame and encode it.

    Train frames are resized to ``size`` (H, W) and lose their blank border: by cropping, or where the image's bytes are
    kept by having no depth there. Other frames keep their size, and their bytes if the source has them. Depth outside
    the source's range becomes invalid.

    Raises:
        DatasetError: if the frame cannot be used.
        OSError: if it cannot be read.
    """
    frame = source.load(item)
    if frame.depth.shape != frame.image.shape[:2]:
        height, width = frame.image.shape[:2]
        raise DatasetError(
            f"picture of {height}x{width}, depth of {'x'.join(map(str, frame.depth.shape))}; expected one size"
        )
    train = item.split == "train"
    if train and frame.inside is not None:
        keeps_bytes = size is None and frame.image_file is not None
        frame = mask_border(frame, frame.inside) if keeps_bytes else crop_border(frame, frame.inside)
    if train and size is not None:
        frame = resize_frame(frame, size)
    if frame.image_file is not None:
        extension, image = frame.image_file
    else:
        extension, image = encode_image(frame.image, JPEG_QUALITY if train and size is not None else None)
    positive = frame.depth[np.isfinite(frame.depth) & (frame.depth > 0)]
    steps = depth_steps(frame.depth, source.depth_unit, source.depth_range)
    known, valid = positive.size, int(np.count_nonzero(steps))
    median = float(np.median(positive)) if known else 0.0
    if not valid:
        problem = "no valid depth: none from {:g} to {:g} m".format(*source.depth_range)
        hint = unit_problem([median], source.scale, source.depth_range) if known else ""
        raise DatasetError(f"{problem}; {hint}" if hint else problem)
    depth_file = frame.depth_file if known == valid else None
    return Sample(
        item.key,
        extension,
        image,
        depth_file or encode_steps(steps),
        (frame.image.shape[0], frame.image.shape[1]),
        frame.focal_px,
        median,
        known,
        known - valid,
    )


def crop_border(frame: Frame, inside: tuple[slice, slice]) -> Frame:
    """Cut off the blank border."""
    image = np.ascontiguousarray(frame.image[inside])
    return Frame(image, frame.depth[inside], frame.focal_px)


def mask_border(frame: Frame, inside: tuple[slice, slice]) -> Frame:
    """Remove the depth on the blank border and keep the image's bytes."""
    depth = np.zeros_like(frame.depth)
    depth[inside] = frame.depth[inside]
    return replace(frame, depth=depth, depth_file=None)


def resize_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """Scale a frame to cover ``size`` (H, W) and cut out the middle, so that nothing is squeezed.

    The image is antialiased, depth is taken by nearest, and the focal length is scaled.

    Raises:
        DatasetError: if more than ``LARGEST_CUT`` of the image would be cut off.
    """
    shape = (frame.image.shape[0], frame.image.shape[1])
    if shape == size:
        return frame
    old_aspect, new_aspect = shape[0] / shape[1], size[0] / size[1]
    cut = 1 - min(old_aspect / new_aspect, new_aspect / old_aspect)
    if cut > LARGEST_CUT:
        height = math.sqrt(size[0] * size[1] * old_aspect)
        raise DatasetError(
            f"--size {size[0]}x{size[1]} cuts {cut:.0%} off a picture of {shape[0]}x{shape[1]}; "
            f"--size {height:.0f}x{height / old_aspect:.0f} keeps it whole"
        )
    # Scaled by new / old, in pixels: the larger ratio of the two sides.
    new, old = max(zip(size, shape, strict=True), key=lambda sides: sides[0] / sides[1])
    top, left = ((full - part * old / new) / 2 for full, part in zip(shape, size, strict=True))
    box = (left, top, shape[1] - left, shape[0] - top)
    image = Image.fromarray(frame.image).resize((size[1], size[0]), Image.Resampling.LANCZOS, box)
    # The source pixel under the middle of each new one, in integers.
    rows, columns = (
        (full * new + (2 * np.arange(part) + 1 - part) * old) // (2 * new)
        for full, part in zip(shape, size, strict=True)
    )
    return Frame(np.asarray(image), frame.depth[np.ix_(rows, columns)], frame.focal_px * new / old)


def unit_problem(
    medians: Sequence[float], scale: float = 1.0, depth_range: tuple[float, float] = DEFAULT_RANGE
) -> str:
    """Say why depth cannot be in metres and which scale is likely, by the median of the frames' medians; "" if it can.

    Args:
        medians: median depth of each frame.
        scale: the stated metres per unit.
        depth_range: the stated range in metres.
    """
    if not medians:
        return ""
    middle, far = float(np.median(medians)), depth_range[1]
    # A data set of streets may contain rooms.
    low, high = 0.03 * min(far, DEFAULT_RANGE[1]), 2 * far
    if low <= middle <= high:
        return ""
    factor = min((1e-3, 1e-2, 0.1, 10, 1e2, 1e3), key=lambda s: abs(np.log(middle * s / (far / 4))))
    return (
        f"median depth {middle:.4g} is not in metres ({low:g} to {high:g} expected of depth up to {far:g} m); "
        f"if that range (--max-depth) is right, the likely scale is {factor * scale:g}"
    )

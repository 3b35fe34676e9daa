"""A frame to what a shard stores: crop, resize, encode, and whether its depth can be metres."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from train.codec import MILLIMETRE, depth_steps, encode_image, encode_steps
from train.shards import DEFAULT_RANGE
from train.sources.frames import Frame, FrameError, SourceError

JPEG_QUALITY = 95
# Largest share of a picture that --size may cut off.
LARGEST_CUT = 0.1


@dataclass(frozen=True)
class Encoded:
    """A sample as ``ShardWriter.write`` takes it, and what the data set says of it.

    Attributes:
        key, extension, image, depth: as for ``ShardWriter.write``.
        size: (H, W).
        focal_px: of the stored picture.
        median: of the depth that the source has, metres; None without any.
        known: pixels that have depth in the source.
        outside: how many of them are outside the depth range.
    """

    key: str
    extension: str
    image: bytes
    depth: bytes
    size: tuple[int, int]
    focal_px: float
    median: float | None
    known: int
    outside: int


def crop_frame(frame: Frame) -> Frame:
    """The frame without its blank border; the focal length stays."""
    if frame.inside is None:
        return frame
    image, depth = np.ascontiguousarray(frame.image[frame.inside]), frame.depth[frame.inside]
    return replace(frame, image=image, depth=depth, image_file=None, depth_file=None, inside=None)


def mask_border(frame: Frame) -> Frame:
    """The frame with its picture's bytes as they are and no depth on the blank border."""
    if frame.inside is None:
        return frame
    depth = np.zeros_like(frame.depth)
    depth[frame.inside] = frame.depth[frame.inside]
    return replace(frame, depth=depth, depth_file=None, inside=None)


def cut_by(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """Why pictures of ``shape`` (H, W, ...) cannot be stored at ``size`` (H, W), or "".

    They keep their aspect and cover ``size``; what is over is cut off, ``LARGEST_CUT`` at most.
    """
    old, new = shape[0] / shape[1], size[0] / size[1]
    cut = 1 - min(old / new, new / old)
    if cut <= LARGEST_CUT:
        return ""
    height = math.sqrt(size[0] * size[1] * old)
    return (
        f"--size {size[0]}x{size[1]} cuts {cut:.0%} off a picture of {shape[0]}x{shape[1]}; "
        f"--size {height:.0f}x{height / old:.0f} keeps it whole"
    )


def resize_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame at ``size`` (H, W): scaled to cover it, with the middle cut out, so that nothing is squeezed.

    The image is antialiased, depth is taken by nearest, and the focal length is scaled.

    Raises:
        FrameError: if more than ``LARGEST_CUT`` of the picture were cut off.
    """
    shape = frame.image.shape[:2]
    if shape == size:
        return frame
    if problem := cut_by(shape, size):
        raise FrameError(problem)
    # Scaled by new / old, pixels: the larger of the two sides' ratios.
    new, old = max(zip(size, shape, strict=True), key=lambda sides: sides[0] / sides[1])
    top, left = ((full - part * old / new) / 2 for full, part in zip(shape, size, strict=True))
    box = (left, top, shape[1] - left, shape[0] - top)
    image = Image.fromarray(frame.image).resize((size[1], size[0]), Image.Resampling.LANCZOS, box)
    # The pixel under the middle of each new one, in whole numbers.
    rows, columns = (
        (full * new + (2 * np.arange(part) + 1 - part) * old) // (2 * new)
        for full, part in zip(shape, size, strict=True)
    )
    return replace(
        frame,
        image=np.asarray(image),
        depth=frame.depth[np.ix_(rows, columns)],
        focal_px=frame.focal_px * new / old,
        image_file=None,
        depth_file=None,
    )


def encode(
    frame: Frame,
    size: tuple[int, int] | None,
    depth_unit: float = MILLIMETRE,
    depth_range: tuple[float, float] = DEFAULT_RANGE,
) -> Encoded:
    """Encodes a frame; ``size`` (H, W) is for train frames alone.

    Train frames lose a blank border: by cropping, or where the picture's bytes are kept by having no depth there.
    Other frames keep their full size, and their bytes where the source has them. Depth outside the range becomes
    invalid.

    Args:
        frame: to be encoded.
        size: (H, W) of train frames, or None.
        depth_unit: metres per step of the stored depth, and of ``frame.depth_file``.
        depth_range: least and largest valid depth, metres.

    Raises:
        FrameError: if picture and depth differ in size, no depth is valid, or too much would be cut off.
    """
    if frame.depth.shape != frame.image.shape[:2]:
        height, width = frame.image.shape[:2]
        raise FrameError(
            f"picture of {height}x{width}, depth of {'x'.join(map(str, frame.depth.shape))}; expected one size"
        )
    train = frame.split == "train"
    if train:
        frame = mask_border(frame) if size is None and frame.image_file is not None else crop_frame(frame)
        if size is not None:
            frame = resize_frame(frame, size)
    if frame.image_file is not None:
        extension, image = frame.image_file
    else:
        extension, image = encode_image(frame.image, JPEG_QUALITY if train and size is not None else None)
    steps = depth_steps(frame.depth, depth_unit, depth_range)
    known, valid = (int(np.count_nonzero(d)) for d in (np.isfinite(frame.depth) & (frame.depth > 0), steps))
    if not valid:
        raise FrameError(f"no valid depth: none from {depth_range[0]:g} to {depth_range[1]:g} m")
    kept = frame.depth_file if known == valid else None
    return Encoded(
        frame.key,
        extension,
        image,
        kept or encode_steps(steps),
        (frame.image.shape[0], frame.image.shape[1]),
        frame.focal_px,
        median(frame.depth),
        known,
        known - valid,
    )


def median(depth: np.ndarray) -> float | None:
    """Of the finite positive values; None if there are none."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.median(valid)) if valid.size else None


def check_medians(
    medians: Sequence[float | None],
    what: str,
    scale: float = 1.0,
    depth_range: tuple[float, float] = DEFAULT_RANGE,
) -> None:
    """Refuses depth that cannot be metres, by the median of the frames' medians: one close-up is none.

    Args:
        medians: of the frames, as ``median`` gives them.
        what: the frames, for the error.
        scale: metres per unit that was stated.
        depth_range: that was stated, metres.

    Raises:
        SourceError: with the likely scale.
    """
    known = [value for value in medians if value is not None]
    if not known:
        return
    middle = float(np.median(known))
    far = depth_range[1]
    # Rooms are plausible in a data set of streets.
    low, high = 0.03 * min(far, DEFAULT_RANGE[1]), 2 * far
    if not low <= middle <= high:
        factor = min((1e-3, 1e-2, 0.1, 10, 1e2, 1e3), key=lambda s: abs(np.log(middle * s / (far / 4))))
        raise SourceError(
            f"{what}: median depth {middle:.4g} is not in metres ({low:g} to {high:g} expected of depth up to "
            f"{far:g} m); if that range (--max-depth) is right, the likely scale is {factor * scale:g}"
        )


def check_unit(*frames: Frame) -> None:
    """``check_medians`` of frames."""
    what = f"sample {frames[0].key!r}" if len(frames) == 1 else f"{len(frames)} samples"
    check_medians([median(frame.depth) for frame in frames], what)

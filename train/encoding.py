"""A frame to what a shard stores: crop, resize, encode, and whether its depth can be metres."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from depthzoo.data.codec import encode_depth, encode_image
from train.sources.frames import Frame, FrameError, SourceError

# A median outside this range of metres means that the depth is in another unit.
PLAUSIBLE_MEDIAN = (0.3, 20.0)
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Encoded:
    """A sample as ``ShardWriter.write`` takes it, and what the data set says of it.

    Attributes:
        key, extension, image, depth: as for ``ShardWriter.write``.
        size: (H, W).
        focal_px: of the stored picture.
        median: of the valid depth, metres; None without any.
    """

    key: str
    extension: str
    image: bytes
    depth: bytes
    size: tuple[int, int]
    focal_px: float
    median: float | None


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


def resize_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame at ``size`` (H, W): the image antialiased, the depth by nearest, the focal length with it."""
    height, width = size
    if frame.image.shape[:2] == size:
        return frame
    image = np.asarray(Image.fromarray(frame.image).resize((width, height), Image.Resampling.LANCZOS))
    # The pixel under the middle of each new one, in whole numbers.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, frame.depth.shape, strict=True)
    )
    focal = frame.focal_px * width / frame.image.shape[1]
    depth = frame.depth[np.ix_(rows, columns)]
    return replace(frame, image=image, depth=depth, focal_px=focal, image_file=None, depth_file=None)


def encode(frame: Frame, size: tuple[int, int] | None) -> Encoded:
    """Encodes a frame; ``size`` (H, W) is for train frames alone.

    Train frames lose a blank border: by cropping, or where the picture's bytes are kept by having no depth there.
    Other frames keep their full size, and their bytes where the source has them.

    Raises:
        FrameError: if picture and depth differ in size.
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
    depth = frame.depth_file if frame.depth_file is not None else encode_depth(frame.depth)
    shape = (frame.image.shape[0], frame.image.shape[1])
    return Encoded(frame.key, extension, image, depth, shape, frame.focal_px, median(frame.depth))


def median(depth: np.ndarray) -> float | None:
    """Of the finite positive values; None if there are none."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.median(valid)) if valid.size else None


def check_medians(medians: Sequence[float | None], what: str, scale: float = 1.0) -> None:
    """Refuses depth that cannot be metres, by the median of the frames' medians: one close-up is none.

    Args:
        medians: of the frames, as ``median`` gives them.
        what: the frames, for the error.
        scale: metres per unit that was stated.

    Raises:
        SourceError: with the likely scale.
    """
    known = [value for value in medians if value is not None]
    if not known:
        return
    middle = float(np.median(known))
    low, high = PLAUSIBLE_MEDIAN
    if not low <= middle <= high:
        factor = min((1e-3, 1e-2, 0.1, 10, 1e2, 1e3), key=lambda s: abs(np.log(middle * s / 2.5)))
        raise SourceError(
            f"{what}: median depth {middle:.4g} is not in metres "
            f"({low:g} to {high:g} expected); the likely scale is {factor * scale:g}"
        )


def check_unit(*frames: Frame) -> None:
    """``check_medians`` of frames."""
    what = f"sample {frames[0].key!r}" if len(frames) == 1 else f"{len(frames)} samples"
    check_medians([median(frame.depth) for frame in frames], what)

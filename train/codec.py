"""Encode and decode samples: an RGB image as JPEG or PNG, its depth as a PNG of 16-bit steps with 0 for invalid."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from depthzoo.errors import DatasetError

MILLIMETRE = 0.001
FAR_UNIT = 1 / 256  # metres per step, as KITTI stores depth
LAST_STEP = 65535


def unit_for(far: float) -> float:
    """Return the metres per step for depth up to ``far`` metres: a millimetre if 16 bits reach that far, else 1/256."""
    return MILLIMETRE if far <= LAST_STEP * MILLIMETRE else FAR_UNIT


def step_range(unit: float, depth_range: tuple[float, float]) -> tuple[int, int]:
    """Return the first and the last step of ``unit`` metres that is valid depth."""
    first, last = (round(metres / unit) for metres in depth_range)
    return max(first, 1), min(last, LAST_STEP)


def depth_steps(
    depth: np.ndarray, unit: float = MILLIMETRE, depth_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Round depth to steps.

    Args:
        depth: float (H, W), metres.
        unit: metres per step.
        depth_range: least and largest valid depth in metres. If None, all that 16 bits hold.

    Returns:
        uint16 (H, W); 0 where depth is not finite or outside the range.
    """
    first, last = step_range(unit, depth_range or (unit, LAST_STEP * unit))
    depth = np.asarray(depth, dtype=np.result_type(depth, np.float32))  # float16 steps by 8 mm at 10 m
    with np.errstate(over="ignore"):
        steps = np.rint(depth * (1 / unit))
    # A comparison with NaN is false.
    return np.where((steps >= first) & (steps <= last), steps, 0).astype(np.uint16)


def encode_steps(steps: np.ndarray) -> bytes:
    """Encode uint16 (H, W) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(steps).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def encode_depth(
    depth: np.ndarray, unit: float = MILLIMETRE, depth_range: tuple[float, float] | None = None
) -> bytes:
    """Encode metres (H, W) as a 16-bit PNG. See :func:`depth_steps` for the arguments."""
    return encode_steps(depth_steps(depth, unit, depth_range))


def encode_image(image: np.ndarray, quality: int | None = None) -> tuple[str, bytes]:
    """Encode uint8 RGB (H, W, 3): ("png", bytes), or ("jpg", bytes) if a quality is given."""
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(buffer, "PNG", compress_level=3)
        return "png", buffer.getvalue()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return "jpg", buffer.getvalue()


def decode(image_bytes: bytes, depth_bytes: bytes, where: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a sample.

    Args:
        image_bytes: a JPEG or PNG.
        depth_bytes: a 16-bit PNG.
        where: name of the shard, for errors.
        key: key of the sample, for errors.

    Returns:
        uint8 RGB (H, W, 3) and uint16 steps of depth (H, W).

    Raises:
        DatasetError: if one cannot be decoded, depth is not 16 bit, or the sizes differ.
    """
    try:
        image = np.asarray(Image.open(io.BytesIO(image_bytes)).convert("RGB"))
        picture = Image.open(io.BytesIO(depth_bytes))
        mode, depth = picture.mode, np.asarray(picture)
    except UnidentifiedImageError:  # its text is the address of a BytesIO
        raise DatasetError(f"{where}: sample {key!r} cannot be decoded: not a picture") from None
    except Exception as error:  # Pillow also raises SyntaxError, struct.error and its own
        raise DatasetError(f"{where}: sample {key!r} cannot be decoded: {error}") from None
    # Pillow 10.1 opens 16-bit PNGs as mode I.
    if mode != "I" and not mode.startswith("I;16"):
        raise DatasetError(f"{where}: depth of sample {key!r} is not a 16-bit PNG but mode {mode}")
    if depth.shape != image.shape[:2]:
        raise DatasetError(
            f"{where}: sample {key!r} has an image of {image.shape[0]}x{image.shape[1]} "
            f"and depth of {depth.shape[0]}x{depth.shape[1]}"
        )
    return image, depth.astype(np.uint16, copy=False)

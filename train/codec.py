"""Encode and decode samples: an RGB image as JPEG or PNG, its depth as a PNG of 16-bit steps with 0 for invalid."""

import io
import warnings

import numpy as np
from PIL import Image

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


def decode_image(content: bytes, name: str) -> tuple[np.ndarray, tuple[str, bytes] | None]:
    """Decode an image as stored: without EXIF rotation, because depth has none.

    Returns:
        uint8 RGB (H, W, 3), and ("jpg" or "png", content) if a shard can hold these bytes.

    Raises:
        DatasetError: naming an image that cannot be decoded.
    """
    image = _open(content, name)
    file = None
    if image.mode == "RGB" and image.format in ("JPEG", "PNG"):
        file = ("jpg" if image.format == "JPEG" else "png", content)
    return np.asarray(image.convert("RGB")), file


def decode_steps(content: bytes, name: str) -> tuple[np.ndarray, bool]:
    """Decode a one-channel depth map in the file's own units.

    Returns:
        (H, W) uint8, uint16, int32 or float32, and whether the file is a 16-bit PNG, which a shard can hold.

    Raises:
        DatasetError: naming a file that cannot be decoded, or has several channels.
    """
    image = _open(content, name)
    wide = image.mode == "I" or image.mode.startswith("I;16")  # Pillow 10.1 opens 16-bit PNGs as mode I
    if not (wide or image.mode in ("L", "F")):
        raise DatasetError(f"{name}: depth of mode {image.mode}; expected one channel of 8 or 16 bits")
    steps = np.asarray(image)
    if image.format == "PNG" and wide:
        return steps.astype(np.uint16), True
    return steps, False


def decode(image_bytes: bytes, depth_bytes: bytes, where: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a sample of a shard: uint8 RGB (H, W, 3) and uint16 steps of depth (H, W).

    Raises:
        DatasetError: naming the shard ``where`` and the ``key`` if one cannot be decoded, depth is not 16 bit, or the
            sizes differ.
    """
    name = f"{where}: sample {key!r}"
    image, _ = decode_image(image_bytes, name)
    depth, wide = decode_steps(depth_bytes, name)
    if not wide:
        raise DatasetError(f"{name}: depth is not a 16-bit PNG")
    if depth.shape != image.shape[:2]:
        raise DatasetError(
            f"{name}: image of {image.shape[:2]} and depth of {depth.shape}; expected one size"
        )
    return image, depth


def _open(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken EXIF: the pixels are what counts
            image = Image.open(io.BytesIO(content))
            image.load()
    except Exception as error:  # Pillow also raises SyntaxError, struct.error and its own
        reason = "not a picture" if isinstance(error, OSError) and "identify" in str(error) else error
        raise DatasetError(f"{name}: cannot be decoded: {reason}") from None
    return image

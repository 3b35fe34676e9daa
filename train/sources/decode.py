"""Encoded pictures and depth maps to arrays, with an error that names the file."""

import io
import warnings

import numpy as np
from PIL import Image

from train.sources.frames import FrameError


def decode_image(content: bytes, name: str) -> tuple[np.ndarray, tuple[str, bytes] | None]:
    """A picture's pixels as stored (no EXIF rotation: depth has none).

    Returns:
        uint8 RGB (H, W, 3), and ("jpg" or "png", content) if a shard can hold these bytes as they are.

    Raises:
        FrameError: if it cannot be decoded.
    """
    picture = _open(content, name)
    file = None
    if picture.mode == "RGB" and picture.format in ("JPEG", "PNG"):
        file = ("jpg" if picture.format == "JPEG" else "png", content)
    return np.asarray(picture.convert("RGB")), file


def decode_steps(content: bytes, name: str) -> tuple[np.ndarray, bool]:
    """A one-channel depth map in the file's own units.

    Returns:
        (H, W) uint8, uint16, int32 or float32, and whether it is a 16-bit PNG, whose bytes a shard can hold.

    Raises:
        FrameError: if it cannot be decoded, or has several channels.
    """
    picture = _open(content, name)
    steps = np.asarray(picture)
    wide = picture.mode == "I" or picture.mode.startswith("I;16")  # Pillow 10.1 opens 16-bit PNGs as I
    if not (wide or picture.mode in ("L", "F")):
        raise FrameError(f"{name}: depth of mode {picture.mode}; expected one channel of 8 or 16 bits")
    if picture.format == "PNG" and wide:
        return steps.astype(np.uint16), True
    return steps, False


def _open(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF: the pixels are what counts
            picture = Image.open(io.BytesIO(content))
            picture.load()
    except Exception as error:  # Pillow raises SyntaxError, struct.error and its own besides
        reason = "not a picture" if isinstance(error, OSError) and "identify" in str(error) else error
        raise FrameError(f"{name}: cannot be decoded: {reason}") from None
    return picture

"""A sample as bytes: an RGB picture as JPEG or PNG, and its depth as a PNG of 16-bit millimetres with 0 for invalid."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError


class DatasetError(ValueError):
    """A data set that is missing, cut short, or not what its ``dataset.json`` says."""


def encode_depth(depth: np.ndarray) -> bytes:
    """Metres (H, W) to a 16-bit millimetre PNG.

    What is not finite or not positive, or nearer than half a millimetre, becomes 0, invalid; what is beyond
    65.535 m becomes that.
    """
    depth = np.asarray(depth, dtype=np.result_type(depth, np.float32))  # float16 steps by 8 mm at 10 m
    with np.errstate(invalid="ignore"):
        millimetres = np.where(np.isfinite(depth) & (depth > 0), np.rint(depth * 1000.0), 0)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(millimetres, 0, 65535).astype(np.uint16)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def encode_image(image: np.ndarray, quality: int | None = None) -> tuple[str, bytes]:
    """uint8 RGB (H, W, 3) to ("png", bytes), or to ("jpg", bytes) of the given quality."""
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(buffer, "PNG", compress_level=3)
        return "png", buffer.getvalue()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return "jpg", buffer.getvalue()


def decode(image_bytes: bytes, depth_bytes: bytes, where: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a sample to uint8 RGB (H, W, 3) and uint16 millimetres (H, W).

    Args:
        image_bytes: of the JPEG or PNG.
        depth_bytes: of the 16-bit PNG.
        where: the shard, for errors.
        key: of the sample, for errors.

    Raises:
        DatasetError: for what cannot be decoded, depth that is not 16 bit, or sizes that differ.
    """
    try:
        image = np.asarray(Image.open(io.BytesIO(image_bytes)).convert("RGB"))
        picture = Image.open(io.BytesIO(depth_bytes))
        mode, depth = picture.mode, np.asarray(picture)
    except UnidentifiedImageError:  # whose text is the address of a BytesIO
        raise DatasetError(f"{where}: sample {key!r} cannot be decoded: not a picture") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and its own besides
        raise DatasetError(f"{where}: sample {key!r} cannot be decoded: {error}") from None
    # A PNG has at most 16 bits; Pillow 10.1 opens those of 16 as mode I.
    if mode != "I" and not mode.startswith("I;16"):
        raise DatasetError(f"{where}: depth of sample {key!r} is not a 16-bit PNG but mode {mode}")
    if depth.shape != image.shape[:2]:
        raise DatasetError(
            f"{where}: sample {key!r} has an image of {image.shape[0]}x{image.shape[1]} "
            f"and depth of {depth.shape[0]}x{depth.shape[1]}"
        )
    return image, depth.astype(np.uint16, copy=False)

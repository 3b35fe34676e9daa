"""Images from files, PIL, arrays and tensors, as upright uint8 RGB."""

import contextlib
import io
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from depthzoo.errors import one_line, reworded

Pixels: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | IO[bytes] | Image.Image | NDArray[Any] | torch.Tensor
)

# What Pillow may open. Not all that it can: for EPS it starts a program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
# fmt: off
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".mpo", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm",
                      ".pgm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".tga"})
# fmt: on
# Brands of HEIF files, which may also be AVIF (mif1, msf1): bytes 8 to 12, after "ftyp".
HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
# What `depthzoo predict` writes, and does not take as input again.
OUTPUTS = (".depth.png", ".color.png", ".panel.png")

# EXIF: the orientation and what undoes it, and the focal length on 35 mm film, whose frame is 36 mm wide.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_IFD, FOCAL_35MM = 0x8769, 0xA405
FILM_WIDTH = 36.0
LENSES = range(2, 5001)  # millimetres; other values are not focal lengths

CHANNELS = (1, 3, 4)
TOLERANCE = 1e-3  # by which float values may leave [0, 1], for the rounding of a caller's pipeline


def load_image(source: ImageSource) -> Pixels:
    """Read an image.

    Args:
        source: one of
            - a path ("~" is the home folder), the bytes, or a binary file object of a PNG, JPEG, WebP, GIF, TIFF, BMP,
              PPM, JPEG 2000, AVIF or TGA file, or of an HEIC file if pillow-heif is installed; of an animation the
              first frame is read. For a URL, pass ``urllib.request.urlopen(URL)``;
            - a PIL image of any mode;
            - an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB(A): uint8, uint16, or float in [0, 1];
            - a tensor (H, W), (1, H, W), (3, H, W), (4, H, W) or (1, C, H, W) of the same types and ranges.

    Returns:
        (H, W, 3) uint8 RGB, a copy. The EXIF orientation is applied, grey is repeated, alpha is composited over white,
        16 bits are rounded to 8. Color profiles are not applied.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError, OSError: if the file cannot be opened.
        ValueError: for a file that is not an image, is empty, truncated, or has more than
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, which can be raised; or an array of another shape, type or range.
        TypeError: for another type of source.
    """
    return load_with_focal(source)[0]


def load_with_focal(source: ImageSource) -> tuple[Pixels, float | None]:
    """Read an image and the focal length in its EXIF.

    Args:
        source: as for :func:`load_image`.

    Returns:
        The image as :func:`load_image` returns it, and its focal length in pixels, or None. It is computed from EXIF's
        FocalLengthIn35mmFilm, relative to the longer side; EXIF does not say whether an image was cropped.

    Raises:
        As :func:`load_image`.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError(f"{source}: is a URL; download it first, as with urllib.request.urlopen(URL)")
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(os.path.expanduser(source)))
    if isinstance(source, (bytes, bytearray)):
        return _read_bytes(source, "bytes")
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return _read_bytes(source.read(), name if isinstance(name, str) else "file object")
    if isinstance(source, Image.Image):
        return _from_pil(source, "PIL image")
    if isinstance(source, torch.Tensor):
        return _from_array(_channels_last(source), "tensor", tuple(source.shape)), None
    if isinstance(source, np.ndarray):
        return _from_array(source, "array", source.shape), None
    raise TypeError(
        "an image is a path, bytes, a binary file object, a PIL image, an array or a tensor, "
        f"not {type(source).__name__}"
    )


def _read(path: Path) -> tuple[Pixels, float | None]:
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder, not an image")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: not a regular file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path}: empty file")
            return _open(file, str(path))
    except OSError as error:
        if error.errno is None:
            raise
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise reworded(error, f"{path}: {reason}") from None


def _read_bytes(data: bytes | bytearray, name: str) -> tuple[Pixels, float | None]:
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(
            f"{name}: read() returned {type(data).__name__}, expected bytes: open it in mode 'rb'"
        )
    if not data:
        raise ValueError(f"{name}: empty, or already read to its end")
    return _open(io.BytesIO(data), name)


def _open(file: IO[bytes], name: str) -> tuple[Pixels, float | None]:
    Image.init()
    start = file.read(12)
    file.seek(0)
    heif = start[4:8] == b"ftyp" and start[8:] in HEIF_BRANDS
    if heif and "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    formats = [f for f in FORMATS if f in Image.OPEN]
    with warnings.catch_warnings():
        # Pillow warns of damaged metadata, which does not matter here, and of decompression bombs, which do.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=formats)
            image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
            raise ValueError(
                f"{name}: more than {limit:.0f} megapixels, the limit against decompression bombs; scale it down"
            ) from None
        except UnidentifiedImageError:
            if heif and "HEIF" not in Image.OPEN:
                raise ValueError(f"{name}: is HEIC, which needs: pip install pillow-heif") from None
            known = ", ".join(f for f in formats if f != "MPO")
            raise ValueError(f"{name}: not an image in a known format ({known})") from None
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            raise ValueError(f"{name}: cannot be decoded: {one_line(error)}") from None
        return _from_pil(image, name)


def _from_pil(image: Image.Image, name: str) -> tuple[Pixels, float | None]:
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"{name}: cannot be decoded: {one_line(error)}") from None
    if 0 in image.size:
        raise ValueError(f"{name}: has no pixels ({image.width}x{image.height})")
    film = _exif(image, FOCAL_35MM, EXIF_IFD)
    focal = film / FILM_WIDTH * max(image.size) if film in LENSES else None
    # After load(), since Pillow's TIFF reader turns the image and removes the tag. Not ImageOps.exif_transpose, which
    # rewrites all tags and fails on odd ones.
    turn = UPRIGHT.get(_exif(image, ORIENTATION))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        values = _grey_values(image, name)
        return _from_array(values, name, values.shape), focal
    return _over_white(image, name), focal


def _exif(image: Image.Image, tag: int, ifd: int | None = None) -> int:
    """A number in the image's EXIF, rounded; 0 if it is missing or unreadable."""
    try:
        tags = image.getexif()
        return round(float((tags if ifd is None else tags.get_ifd(ifd)).get(tag, 0)))
    except Exception:
        return 0


def _grey_values(image: Image.Image, name: str) -> NDArray[Any]:
    values = np.asarray(image)
    if image.mode == "F" or values.dtype.itemsize == 2:
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name}: grey values {values.min()} to {values.max()} do not fit 16 bits")
    return values.astype(np.uint16)


def _over_white(image: Image.Image, name: str) -> Pixels:
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            image = white
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{name}: cannot convert an image of mode {image.mode} to RGB: {error}") from None


def _channels_last(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def _from_array(values: NDArray[Any], name: str, shape: tuple[int, ...]) -> Pixels:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in CHANNELS):
        channels = "first: (3, H, W)" if name == "tensor" else "last: (H, W, 3)"
        raise ValueError(
            f"{name}: expected (H, W), or 1, 3 or 4 channels, which come {channels}; got {shape}; "
            "pass several images as a list"
        )
    if values.size == 0:
        raise ValueError(f"{name}: has no pixels, shape {shape}")
    pixels = np.atleast_3d(_to_uint8(values, name))
    if pixels.shape[2] == 4:
        return _over_white(Image.fromarray(np.ascontiguousarray(pixels)), name)
    return np.array(np.broadcast_to(pixels, (*values.shape[:2], 3)))


def _to_uint8(values: NDArray[Any], name: str) -> Pixels:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise ValueError(f"{name}: expected uint8, uint16 or float in [0, 1], got {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: has NaN or infinite values")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        hint = "; divide by 255" if low >= 0 and 1 < high <= 255 else ""
        raise ValueError(f"{name}: float values must be in [0, 1], these are {low:.4g} to {high:.4g}{hint}")
    return np.clip(np.rint(values * values.dtype.type(255)), 0, 255).astype(np.uint8)


def find_images(inputs: Sequence[str], recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Find the images that paths of files and folders name.

    A file is taken whatever its name. Of a folder, all files with an image's suffix are taken in alphabetical order,
    except hidden ones and the outputs of ``depthzoo predict``. A file named twice is taken once.

    Args:
        inputs: paths.
        recursive: descend into the folders of a folder.

    Returns:
        The paths, and one line for each input that names no image.
    """
    found: dict[Path, Path] = {}
    failures = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            matches = _in_folder(path, recursive)
            hint = "" if recursive else " itself (--recursive descends into the folders in it)"
            failure = f"{text}: no images in this folder{hint}"
        else:
            matches = [path] if os.path.lexists(path) else []
            failure = f"{text}: no such file or folder"
        if not matches:
            failures.append(failure)
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values()), failures


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    paths: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if recursive and not f.startswith("."))
        for name in sorted(names):
            hidden = name.startswith(".") or name.lower().endswith(OUTPUTS)
            if not hidden and Path(name).suffix.lower() in SUFFIXES:
                paths.append(Path(root, name))
    return paths

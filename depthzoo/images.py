"""Any picture to one form: uint8 RGB, upright, with every way of being unreadable told in one line."""

import glob
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

from depthzoo.errors import one_line

Pixels: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | torch.Tensor

# What Pillow is allowed to open. Others are left out on purpose: EPS, for one, starts a program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
SUFFIXES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".mpo",
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".bmp",
        ".ppm",
        ".pgm",
        ".pnm",
        ".jp2",
        ".avif",
        ".heic",
        ".heif",
        ".tga",
    ]
)
# Rounding in a caller's own float pipeline may leave [0, 1] by this much.
TOLERANCE = 1e-3
CHANNELS = (1, 3, 4)
WIDE_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
# EXIF: the tag of the orientation, and what turns each upright; the tags of the lens.
ORIENTATION, EXIF_IFD, FOCAL_35MM = 0x0112, 0x8769, 0xA405
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FILM_WIDTH = 36.0  # millimetres of a 35 mm film's longer side
LENSES = range(2, 5001)  # millimetres; whatever else a file states is no lens


def load_image(source: ImageSource) -> Pixels:
    """Reads a picture.

    Args:
        source: one of
            - a path to a PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, JPEG 2000, AVIF or TGA file (HEIC where a
              plug-in for it is registered with Pillow); of an animation the first frame;
            - a PIL image of any mode;
            - an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB(A): uint8, uint16, or float in [0, 1];
            - a tensor (H, W), (1, H, W), (3, H, W), (4, H, W) or (1, C, H, W) of the same types and ranges.

    Returns:
        (H, W, 3) uint8 RGB, a copy. The EXIF orientation is applied (unreadable EXIF counts as none), grey
        is repeated, alpha is laid over white, 16 bits are rounded to 8. Colour profiles are not applied.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError, OSError: the file cannot be opened.
        ValueError: not a picture, empty, truncated, more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, or an
            array of another shape, type or range.
        TypeError: something else altogether.
    """
    return load_with_focal(source)[0]


def load_with_focal(source: ImageSource) -> tuple[Pixels, float | None]:
    """Reads a picture and, where its EXIF states one, the focal length of its camera.

    Args:
        source: as for :func:`load_image`.

    Returns:
        The picture as :func:`load_image` returns it, and its focal length in pixels, or None. It is computed
        from EXIF's FocalLengthIn35mmFilm, whose 36 mm are the picture's longer side. EXIF does not say whether
        a picture was cropped since.

    Raises:
        As :func:`load_image`.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read(Path(source))
    if isinstance(source, Image.Image):
        return _decode(source, "PIL image")
    if isinstance(source, torch.Tensor):
        return _from_array(_channels_last(source), "tensor"), None
    if isinstance(source, np.ndarray):
        return _from_array(source, "array"), None
    raise TypeError(f"a picture is a path, a PIL image, an array or a tensor, not {type(source).__name__}")


def reworded(error: Exception, text: str) -> Exception:
    """An exception of the same kind that says ``text``: of the nearest kind that takes a text alone."""
    for kind in type(error).__mro__:
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError, for one, takes five arguments
            continue
    return error


def _read(path: Path) -> tuple[Pixels, float | None]:
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder, not a picture")
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


def _open(file: IO[bytes], name: str) -> tuple[Pixels, float | None]:
    Image.init()
    with warnings.catch_warnings():
        # Pillow warns of damaged metadata, which does not matter here, and of bombs, which does.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(_identify(file, name), name)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
            raise ValueError(
                f"{name}: more than {limit:.0f} megapixels, which may be a decompression bomb; "
                "if it is not, scale it down or raise PIL.Image.MAX_IMAGE_PIXELS"
            ) from None


def _identify(file: IO[bytes], name: str) -> Image.Image:
    known = [f for f in FORMATS if f in Image.OPEN]
    try:
        return Image.open(file, formats=known)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except UnidentifiedImageError:
        text = ", ".join(f for f in known if f != "MPO")
        raise ValueError(f"{name}: not a picture in a known format ({text})") from None
    except Exception as error:
        raise ValueError(f"{name}: cannot be decoded: {one_line(error)}") from None


def _decode(image: Image.Image, name: str) -> tuple[Pixels, float | None]:
    """Decodes and converts to upright RGB. Pillow's decoders raise nearly anything on damaged data."""
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception as error:
        raise ValueError(f"{name}: cannot be decoded: {one_line(error)}") from None
    if 0 in image.size:
        raise ValueError(f"{name}: has no pixels ({image.width}x{image.height})")
    focal = _focal_px(image)
    # After load(): Pillow's TIFF reader turns the picture itself, and takes the tag away. Not exif_transpose, which
    # writes all tags again and fails on odd ones.
    if (turn := UPRIGHT.get(_exif(image, ORIENTATION))) is not None:
        image = image.transpose(turn)
    return _to_rgb(image, name), focal


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode in WIDE_MODES:
        return _from_array(_uint16(np.asarray(image), name), name)
    if image.mode == "F":
        return _from_array(np.asarray(image), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{name}: cannot convert a picture of mode {image.mode} to RGB: {error}") from None


def _exif(image: Image.Image, tag: int, ifd: int | None = None) -> int:
    """A whole number of the picture's EXIF, rounded; 0 where it is absent or unreadable."""
    try:
        tags = image.getexif()
        return round(float((tags if ifd is None else tags.get_ifd(ifd)).get(tag, 0)))
    except Exception:
        return 0


def _focal_px(image: Image.Image) -> float | None:
    film = _exif(image, FOCAL_35MM, EXIF_IFD)
    return film / FILM_WIDTH * max(image.size) if film in LENSES else None


def _uint16(values: NDArray[Any], name: str) -> NDArray[Any]:
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name}: grey values {values.min()} to {values.max()} do not fit 16 bits")
    return values.astype(np.uint16)


def _channels_last(tensor: torch.Tensor) -> NDArray[Any]:
    shape = tuple(tensor.shape)
    if tensor.ndim == 4 and shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in CHANNELS):
        last = tensor.ndim == 3 and shape[-1] in CHANNELS
        hint = "; channels come first: use .permute(2, 0, 1)" if last else ""
        raise ValueError(f"tensor: expected shape (3, H, W), got {shape}{hint}")
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


def _from_array(values: NDArray[Any], name: str) -> Pixels:
    shape = values.shape
    if values.ndim not in (2, 3) or (values.ndim == 3 and shape[2] not in CHANNELS):
        first = values.ndim == 3 and shape[0] in CHANNELS
        hint = "; channels come last: use .transpose(1, 2, 0)" if first else ""
        hint = "; pass several as a list" if values.ndim == 4 else hint
        raise ValueError(f"{name}: expected shape (H, W) or (H, W, 1 or 3 or 4), got {shape}{hint}")
    if math.prod(shape) == 0:
        raise ValueError(f"{name}: has no pixels, shape {shape}")
    pixels = _to_uint8(values, name)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.uint16)
        over_white = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
        return ((over_white + 127) // 255).astype(np.uint8)
    return np.array(np.broadcast_to(pixels, (*shape[:2], 3)))


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
    scaled: NDArray[Any] = np.clip(np.rint(values * values.dtype.type(255)), 0, 255)
    return scaled.astype(np.uint8)


# What `depthzoo predict` writes itself; a folder that holds both is not predicted from its own output.
OWN_OUTPUTS = (".depth.png", ".color.png", ".panel.png")


def find_images(inputs: Sequence[str], recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Resolves files, folders and glob patterns.

    A file is taken whatever its name. Of a folder: all with a picture's suffix, in alphabetical order, except
    hidden ones and this command's own outputs. A file that is meant twice is taken once.

    Args:
        inputs: paths and patterns (``**`` goes through folders).
        recursive: go into the folders inside folders.

    Returns:
        The paths, and for each input that means nothing one line that says so.
    """
    found: dict[Path, Path] = {}
    failures = []
    for text in inputs:
        matches = _matches(text, recursive)
        if isinstance(matches, str):
            failures.append(matches)
            continue
        for path in matches:
            found.setdefault(path.resolve(), path)
    return list(found.values()), failures


def _matches(text: str, recursive: bool) -> list[Path] | str:
    path = Path(text)
    if path.is_dir():
        return _of_folder(path, recursive) or f"{text}: no pictures in this folder" + (
            "" if recursive else " itself (--recursive looks into the folders in it)"
        )
    # A file may be called photo[1].jpg.
    if os.path.lexists(text):
        return [path]
    if not glob.has_magic(text):
        return f"{text}: no such file or folder"
    return [p for p in map(Path, sorted(glob.glob(text, recursive=True))) if not p.is_dir()] or (
        f"{text}: matches no file"
    )


def _of_folder(folder: Path, recursive: bool) -> list[Path]:
    paths: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if recursive and not f.startswith("."))
        paths += [
            Path(root, name)
            for name in sorted(names)
            if Path(name).suffix.lower() in SUFFIXES
            and not name.startswith(".")
            and not name.lower().endswith(OWN_OUTPUTS)
        ]
    return paths


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """One name for each path's outputs: its stem, and for a second one of the same stem ``stem-2``.

    Names that differ in case only count as the same, as they are on some file systems.
    """
    taken = {path.stem.casefold() for path in paths}
    seen: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 2
        if stem.casefold() in seen:
            while f"{stem}-{number}".casefold() in taken:
                number += 1
            stem = f"{stem}-{number}"
            taken.add(stem.casefold())
        seen.add(stem.casefold())
        stems.append(stem)
    return stems

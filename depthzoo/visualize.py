"""Colored depth maps, panels with a scale in metres, and point clouds."""

import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from depthzoo.colormaps import COLORMAPS, Pixels
from depthzoo.errors import suggest

DEFAULT_COLORMAP = "turbo_r"
ERROR_COLORMAP = "magma"
INVALID = 128  # grey level of invalid pixels
PAD, TITLE, BAR, LABEL = 8, 24, 12, 20  # sizes of the panel's parts, in pixels
MIN_CELL = 280  # width that the three numbers of a scale need


def colormap_lut(colormap: str = DEFAULT_COLORMAP) -> Pixels:
    """Return the lookup table of a colormap, (256, 3) uint8 RGB.

    Raises:
        ValueError: for an unknown name; the message suggests the closest ones.
    """
    if colormap not in COLORMAPS:
        raise ValueError(f"unknown colormap {colormap!r}: {suggest(colormap, COLORMAPS)}")
    return COLORMAPS[colormap]


def valid_mask(depth: NDArray[Any]) -> NDArray[np.bool_]:
    """Where ``depth`` is finite and positive."""
    valid: NDArray[np.bool_] = np.isfinite(depth) & (depth > 0)
    return valid


def percentile_range(*depths: NDArray[Any]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of the valid pixels of all maps, in metres; large maps are subsampled."""
    samples = []
    for depth in depths:
        step = max(1, math.isqrt(depth.size // 1_000_000))
        sample = depth[::step, ::step]
        samples.append(sample[valid_mask(sample)])
    values = np.concatenate(samples)
    if values.size == 0:
        return 0.0, 1.0
    near, far = np.percentile(values, (1, 99))
    return float(near), float(far)


def colorize(
    depth: NDArray[Any], colormap: str = DEFAULT_COLORMAP, near: float | None = None, far: float | None = None
) -> Pixels:
    """Color a depth map.

    Args:
        depth: (H, W) metres.
        colormap: one of ``COLORMAPS``, whose first color is the nearest.
        near, far: metres of the first and last color; by default the 1st and 99th percentile.

    Returns:
        (H, W, 3) uint8 RGB; pixels that are not finite and positive are grey.

    Raises:
        ValueError: for an unknown colormap, or if near is not below far.
    """
    low, high = _limits(near, far, depth)
    return _paint(depth, valid_mask(depth), colormap_lut(colormap), low, high)


def _limits(near: float | None, far: float | None, *depths: NDArray[Any]) -> tuple[float, float]:
    low, high = percentile_range(*depths) if near is None or far is None else (near, far)
    low, high = low if near is None else near, high if far is None else far
    if (near is not None or far is not None) and not low < high:
        raise ValueError(f"near must be below far, got {low:.4g} and {high:.4g} m")
    return low, high


def _paint(values: NDArray[Any], valid: NDArray[np.bool_], lut: Pixels, low: float, high: float) -> Pixels:
    scaled = (np.where(valid, values, low) - low) * (255 / max(high - low, 1e-6))
    colors = lut[np.clip(np.rint(scaled), 0, 255).astype(np.uint8)]
    colors[~valid] = INVALID
    return colors


def panel(
    image: Pixels,
    depth: NDArray[Any],
    target: NDArray[Any] | None = None,
    *,
    colormap: str = DEFAULT_COLORMAP,
    near: float | None = None,
    far: float | None = None,
    tile: int = 480,
) -> Pixels:
    """Draw image | depth, and with ``target`` also | target | error, each with a scale in metres.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) metres.
        target: (H, W) metres, 0 or NaN where unknown, which is drawn grey. The AbsRel in the title is over all known
            pixels, not the crop of the evaluation.
        colormap: one of ``COLORMAPS``, of depth and target.
        near, far: metres at the ends of the scale; by default percentiles of depth and target together.
        tile: longer side of each picture in pixels.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: for an unknown colormap, shapes that differ, or if near is not below far.
    """
    for name, array in (("image", image), ("target", target)):
        if array is not None and array.shape[:2] != depth.shape:
            raise ValueError(f"panel: {name} is {array.shape[:2]}, depth is {depth.shape}")
    low, high = _limits(near, far, *([depth] if target is None else [depth, target]))
    high = max(high, low + 1e-3)  # a scale for a constant depth
    lut = colormap_lut(colormap)
    scale = tile / max(depth.shape)
    size = (max(1, round(depth.shape[1] * scale)), max(1, round(depth.shape[0] * scale)))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    cells = [_cell("image", Image.fromarray(image).resize(size, method, reducing_gap=2.0))]
    for title, values in (("depth", depth), ("target", target)):
        if values is not None:
            small = _nearest(values, size)
            colors = _paint(small, valid_mask(small), lut, low, high)
            cells.append(_cell(title, Image.fromarray(colors), lut, low, high, ("near ", "far ")))
    if target is not None:
        valid = valid_mask(target) & np.isfinite(depth)
        error = np.where(valid, np.abs(depth - target), np.nan)
        title, worst = "|error|, no target", 0.1
        if valid.any():
            title = f"|error|, AbsRel {float(np.mean(error[valid] / target[valid])):.3f}"
            worst = max(percentile_range(error)[1], 1e-3)
        small, lut = _nearest(error, size), colormap_lut(ERROR_COLORMAP)
        colors = _paint(small, np.isfinite(small), lut, 0, worst)
        cells.append(_cell(title, Image.fromarray(colors), lut, 0, worst))
    return np.concatenate(cells, axis=1)


def _nearest(values: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    small = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small)


def _cell(
    title: str,
    picture: Image.Image,
    lut: Pixels | None = None,
    low: float = 0,
    high: float = 1,
    words: tuple[str, str] = ("", ""),
) -> Pixels:
    """A title, a picture, and a color bar with the metres of its ends and middle."""
    inner = max(picture.width, MIN_CELL)
    cell = Image.new("RGB", (inner + 2 * PAD, picture.height + TITLE + BAR + LABEL + 3 * PAD), "white")
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=14)
    draw.text((PAD, PAD), title, "black", font)
    cell.paste(picture, (PAD + (inner - picture.width) // 2, PAD + TITLE))
    if lut is not None:
        top = PAD + TITLE + picture.height + PAD
        bar = Image.fromarray(lut[None]).resize((inner, BAR), Image.Resampling.NEAREST)
        cell.paste(bar, (PAD, top))
        texts = (f"{words[0]}{low:.2f} m", f"{(low + high) / 2:.2f} m", f"{words[1]}{high:.2f} m")
        for text, x, anchor in zip(texts, (0, inner // 2, inner), ("la", "ma", "ra"), strict=True):
            draw.text((PAD + x, top + BAR + 2), text, "black", font, anchor)
    return np.asarray(cell)


def write_ply(file: IO[bytes], depth: NDArray[Any], image: Pixels, focal: float) -> None:
    """Write a binary little-endian PLY point cloud, one vertex per pixel in row order.

    The camera frame is in metres: x right, y down, z forward (the depth), with the axis through the image's centre.

    Args:
        file: open for writing.
        depth: (H, W) metres.
        image: (H, W, 3) uint8 RGB.
        focal: focal length in pixels, horizontal and vertical.
    """
    height, width = depth.shape
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; camera frame: x right, y down, z forward",
        f"comment focal length {focal:.4f} px, image {width} x {height} px",
        f"element vertex {depth.size}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {color}" for color in ("red", "green", "blue")),
        "end_header\n",
    ]
    file.write("\n".join(header).encode("ascii"))
    x = ((np.arange(width) + 0.5 - width / 2) / focal).astype(np.float32)
    y = ((np.arange(height) + 0.5 - height / 2) / focal).astype(np.float32)
    rows = max(1, 1_000_000 // width)  # at a time, so that a large image needs little memory
    for top in range(0, height, rows):
        z = depth[top : top + rows]
        vertices = np.empty(z.shape, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
        vertices["xyz"] = np.stack([x * z, y[top : top + rows, None] * z, z], axis=-1)
        vertices["rgb"] = image[top : top + rows]
        file.write(vertices.tobytes())

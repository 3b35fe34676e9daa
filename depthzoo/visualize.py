"""Depth to look at: colours, a panel with legends in metres, a point cloud."""

import math
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from depthzoo.colormaps import COLORMAPS, Pixels
from depthzoo.errors import suggest

Depth = NDArray[np.float32]

DEFAULT_COLORMAP = "turbo_r"
ERROR_COLORMAP = "magma"
INVALID = 128  # the grey of pixels that have no depth
PAD, TITLE, BAR, LABEL = 8, 24, 12, 20  # pixels of the panel's parts
NARROWEST = 280  # a cell holds a legend's three numbers


def colormap_lut(colormap: str = DEFAULT_COLORMAP) -> Pixels:
    """(256, 3) uint8 RGB of one of ``COLORMAPS``.

    Raises:
        ValueError: unknown name, with the closest ones.
    """
    if colormap not in COLORMAPS:
        raise ValueError(f"unknown colour map {colormap!r}: {suggest(colormap, COLORMAPS)}")
    return COLORMAPS[colormap]


def valid_mask(depth: NDArray[Any]) -> NDArray[np.bool_]:
    """Where ``depth`` is finite and positive."""
    valid: NDArray[np.bool_] = np.isfinite(depth) & (depth > 0)
    return valid


def percentile_range(*depths: NDArray[Any]) -> tuple[float, float]:
    """The 1st and 99th percentile of all valid pixels, in metres; of a sample in large maps."""
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
    """Colours a depth map.

    Args:
        depth: (H, W) metres.
        colormap: one of ``COLORMAPS``; its first colour is the nearest.
        near, far: metres of the first and last colour, beyond which colours stay; by default the 1st and
            99th percentile.

    Returns:
        (H, W, 3) uint8 RGB; pixels that are not finite and positive are grey.

    Raises:
        ValueError: unknown colour map, or near is not below far.
    """
    lookup = colormap_lut(colormap)
    low, high = _limits(near, far, depth)
    return _paint(depth, lookup, low, high, valid_mask(depth))


def _limits(near: float | None, far: float | None, *depths: NDArray[Any]) -> tuple[float, float]:
    low, high = percentile_range(*depths) if near is None or far is None else (near, far)
    low, high = low if near is None else near, high if far is None else far
    if (near is not None or far is not None) and not low < high:
        raise ValueError(f"near must be below far, got {low:.4g} and {high:.4g} m")
    return low, high


def _paint(values: NDArray[Any], lookup: Pixels, low: float, high: float, valid: NDArray[np.bool_]) -> Pixels:
    scaled = (np.where(valid, values, low) - low) * (255 / max(high - low, 1e-6))
    colors = lookup[np.clip(np.rint(scaled), 0, 255).astype(np.uint8)]
    colors[~valid] = INVALID
    return colors


def panel(
    image: Pixels,
    depth: NDArray[Any],
    truth: NDArray[Any] | None = None,
    *,
    colormap: str = DEFAULT_COLORMAP,
    near: float | None = None,
    far: float | None = None,
    tile: int = 480,
) -> Pixels:
    """Picture | depth, and with ``truth`` also | truth | error, each with a legend in metres.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) metres.
        truth: (H, W) metres, 0 or NaN where unknown (drawn grey). The AbsRel in the title is over all pixels
            that have it, not the evaluation's crop.
        colormap: one of ``COLORMAPS``, shared by depth and truth.
        near, far: metres at the ends of the legend; by default percentiles of depth and truth together.
        tile: longer side of each picture in pixels; all are scaled to it.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: unknown colour map, shapes that differ, near not below far.
    """
    for name, array in (("image", image), ("truth", truth)):
        if array is not None and array.shape[:2] != depth.shape:
            raise ValueError(f"panel: {name} is {array.shape[:2]}, depth is {depth.shape}")
    low, high = _limits(near, far, *([depth] if truth is None else [depth, truth]))
    rows, columns = _nearest(depth.shape, tile)
    size = (len(columns), len(rows))
    method = Image.Resampling.LANCZOS if tile < max(depth.shape) else Image.Resampling.NEAREST
    small = Image.fromarray(image).resize(size, method, reducing_gap=2.0)
    lookup = colormap_lut(colormap)
    # A constant depth has one colour, and still a legend that can be drawn.
    shown = (low, high if high > low else low + 1e-3)
    cells = [_cell("picture", np.asarray(small)), _depth_cell("depth", depth, rows, columns, lookup, shown)]
    if truth is not None:
        cells.append(_depth_cell("truth", truth, rows, columns, lookup, shown))
        valid = valid_mask(truth) & np.isfinite(depth)
        error = np.where(valid, np.abs(depth - truth), 0)
        title, worst = "|error|, no truth", 0.1
        if valid.any():
            title = f"|error|, AbsRel {float(np.mean(error[valid] / truth[valid])):.3f}"
            worst = max(percentile_range(error)[1], 1e-3)
        shown = error[np.ix_(rows, columns)]
        colors = _paint(shown, colormap_lut(ERROR_COLORMAP), 0, worst, valid[np.ix_(rows, columns)])
        cells.append(_cell(title, colors, colormap_lut(ERROR_COLORMAP), 0, worst, ("", "")))
    return np.concatenate(cells, axis=1)


def _nearest(shape: tuple[int, ...], tile: int) -> tuple[NDArray[Any], NDArray[Any]]:
    scale = tile / max(shape)
    rows, columns = (
        np.minimum(((np.arange(max(1, round(n * scale))) + 0.5) / scale).astype(np.int64), n - 1)
        for n in shape
    )
    return rows, columns


def _depth_cell(
    title: str,
    depth: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
    lookup: Pixels,
    limits: tuple[float, float],
) -> Pixels:
    small = depth[np.ix_(rows, columns)]
    colors = _paint(small, lookup, *limits, valid_mask(small))
    return _cell(title, colors, lookup, *limits, ("near ", "far "))


def _cell(
    title: str,
    picture: Pixels,
    lookup: Pixels | None = None,
    low: float = 0,
    high: float = 1,
    words: tuple[str, str] = ("", ""),
) -> Pixels:
    """A title, the picture, and a bar with the metres of its ends and middle."""
    height, width = picture.shape[:2]
    inner = max(width, NARROWEST)
    cell = Image.new("RGB", (inner + 2 * PAD, height + TITLE + BAR + LABEL + 3 * PAD), "white")
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=14)
    draw.text((PAD, PAD), title, "black", font)
    cell.paste(Image.fromarray(picture), (PAD + (inner - width) // 2, PAD + TITLE))
    if lookup is not None:
        top = PAD + TITLE + height + PAD
        ramp = lookup[np.linspace(0, 255, inner).round().astype(np.int64)]
        cell.paste(Image.fromarray(np.repeat(ramp[None], BAR, axis=0)), (PAD, top))
        texts = (f"{words[0]}{low:.2f} m", f"{(low + high) / 2:.2f} m", f"{words[1]}{high:.2f} m")
        for text, x, anchor in zip(texts, (0, inner // 2, inner), ("la", "ma", "ra"), strict=True):
            draw.text((PAD + x, top + BAR + 2), text, "black", font, anchor)
    return np.asarray(cell)


def write_ply(file: IO[bytes], depth: NDArray[Any], image: Pixels, focal: float) -> None:
    """Writes a binary little-endian PLY point cloud, one vertex a pixel in row order.

    Camera frame in metres: x right, y down, z forward (the depth), the axis through the picture's centre.

    Args:
        file: open for writing.
        depth: (H, W) metres.
        image: (H, W, 3) uint8 RGB.
        focal: focal length in pixels, the same across and down.
    """
    height, width = depth.shape
    properties = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {c}" for c in ("red", "green", "blue")
    ]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; camera frame: x right, y down, z forward",
        f"comment focal length {focal:.4f} px, picture {width} x {height} px",
        f"element vertex {depth.size}",
        *properties,
        "end_header\n",
    ]
    file.write("\n".join(header).encode("ascii"))
    x = ((np.arange(width) + 0.5 - width / 2) / focal).astype(np.float32)
    y = ((np.arange(height) + 0.5 - height / 2) / focal).astype(np.float32)
    strip = max(1, 1_000_000 // width)  # rows at a time, so that a large picture needs no second copy
    for start in range(0, height, strip):
        rows = slice(start, start + strip)
        z = depth[rows]
        vertices = np.empty(z.shape, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
        vertices["xyz"] = np.stack([x * z, y[rows, None] * z, z], axis=-1)
        vertices["rgb"] = image[rows]
        file.write(vertices.tobytes())

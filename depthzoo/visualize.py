"""Colored depth maps, panels with a scale in metres, and point clouds."""

import math
from collections.abc import Sequence
from typing import IO, Any, Literal, TypeAlias, cast

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
LEGEND_WIDTH = 640  # of an image whose legend has these sizes; that of a larger one is enlarged

Up: TypeAlias = Literal["-y", "y"]
MAX_EDGE = 5.0  # metres of depth per metre sideways; a floor's is its distance over the camera's height
TEXTURE = 2048  # longest side of the image in a GLB file: more than phones draw


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
    depth: NDArray[Any],
    colormap: str = DEFAULT_COLORMAP,
    near: float | None = None,
    far: float | None = None,
    *,
    legend: bool = False,
) -> Pixels:
    """Color a depth map.

    Args:
        depth: (H, W) metres.
        colormap: one of ``COLORMAPS``, whose first color is the nearest.
        near, far: metres of the first and last color; by default the 1st and 99th percentile.
        legend: add a white border with a scale in metres.

    Returns:
        (H, W, 3) uint8 RGB, larger with a legend; pixels that are not finite and positive are grey.

    Raises:
        ValueError: for an unknown colormap, or if near is not below far.
    """
    low, high = _limits(near, far, depth)
    lut = colormap_lut(colormap)
    colors = _paint(depth, valid_mask(depth), lut, low, high)
    if not legend:
        return colors
    scale = max(1.0, depth.shape[1] / LEGEND_WIDTH)
    return _cell("", Image.fromarray(colors), lut, low, high, ("near ", "far "), scale)


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
    scale: float = 1,
) -> Pixels:
    """A title, a picture, and a color bar with the metres of its ends and middle."""
    pad, head, bar, label = (round(size * scale) for size in (PAD, TITLE if title else 0, BAR, LABEL))
    inner = max(picture.width, MIN_CELL)
    cell = Image.new("RGB", (inner + 2 * pad, picture.height + head + bar + label + 3 * pad), "white")
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=14 * scale)
    draw.text((pad, pad), title, "black", font)
    cell.paste(picture, (pad + (inner - picture.width) // 2, pad + head))
    if lut is not None:
        top = pad + head + picture.height + pad
        cell.paste(Image.fromarray(lut[None]).resize((inner, bar), Image.Resampling.NEAREST), (pad, top))
        texts = (f"{words[0]}{low:.2f} m", f"{(low + high) / 2:.2f} m", f"{words[1]}{high:.2f} m")
        for text, x, anchor in zip(texts, (0, inner // 2, inner), ("la", "ma", "ra"), strict=True):
            draw.text((pad + x, top + bar + round(2 * scale)), text, "black", font, anchor)
    return np.asarray(cell)


def point_grid(
    depth: NDArray[Any], focal: float, stride: int = 1, max_edge: float | None = MAX_EDGE, up: Up = "-y"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Project the pixels of a depth map into space.

    Args:
        depth: (H, W) metres.
        focal: focal length in pixels, horizontal and vertical. The camera's axis goes through the image's center.
        stride: take every ``stride``-th pixel of every ``stride``-th row.
        max_edge: leave out pixels next to which the depth changes by more than this many metres per metre sideways:
            they lie on the surfaces that a depth map stretches from an object to what is behind it. None keeps them.
        up: "-y" for x right, y down, z forward, as in OpenCV; "y" for x right, y up, z backward, as in glTF and most
            viewers.

    Returns:
        Points (h, w, 3) in metres, and a mask (h, w): False where the depth is not finite and positive, or at an edge.

    Raises:
        ValueError: for a stride below 1, a max_edge that is not positive, or another ``up``.
    """
    if not isinstance(stride, (int, np.integer)) or stride < 1:
        raise ValueError(f"stride must be a whole number of at least 1, got {stride!r}")
    if max_edge is not None and not max_edge > 0:
        raise ValueError(f"max_edge must be above 0, or None, got {max_edge!r}")
    if up not in ("-y", "y"):
        raise ValueError(f"up must be '-y' or 'y', got {up!r}")
    height, width = depth.shape
    z = depth[::stride, ::stride].astype(np.float32)
    keep = valid_mask(z)
    z[~keep] = np.nan  # no comparison with it is true: beside an unknown depth is no edge
    if max_edge is not None:
        for here, there in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
            a, b = z[here], z[there]
            edge = np.abs(a - b) * np.float32(focal / stride) > np.minimum(a, b) * np.float32(max_edge)
            keep[here] &= ~edge
            keep[there] &= ~edge
    x = ((np.arange(0, width, stride) + 0.5 - width / 2) / focal).astype(np.float32)
    y = ((np.arange(0, height, stride) + 0.5 - height / 2) / focal).astype(np.float32)
    sign = np.float32(-1 if up == "y" else 1)
    return np.stack([x * z, sign * y[:, None] * z, sign * z], axis=-1), keep


def write_ply(file: IO[bytes], points: NDArray[Any], colors: Pixels, comments: Sequence[str] = ()) -> None:
    """Write a binary little-endian PLY point cloud.

    Args:
        file: open for writing.
        points: (N, 3) metres.
        colors: (N, 3) uint8 RGB.
        comments: lines for the header.
    """
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {line}" for line in comments),
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {color}" for color in ("red", "green", "blue")),
        "end_header\n",
    ]
    file.write("\n".join(header).encode("ascii"))
    for start in range(0, len(points), 1_000_000):  # at a time, so that a copy needs little memory
        part = slice(start, start + 1_000_000)
        vertices = np.empty(len(points[part]), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
        vertices["xyz"], vertices["rgb"] = points[part], colors[part]
        file.write(vertices.tobytes())


def to_glb(points: NDArray[Any], keep: NDArray[np.bool_], image: Pixels, stride: int) -> bytes:
    """Return a binary glTF file of the surface through a grid of points, with the image as its texture.

    A surface, since many viewers and phones do not draw points. Its material is unlit, so that it looks as the image.

    Args:
        points: (h, w, 3) metres, y up.
        keep: (h, w). A square of four points is drawn if all are kept.
        image: (H, W, 3) uint8 RGB.
        stride: that of the points in the image.

    Raises:
        ImportError: if trimesh is not installed.
        ValueError: if there is no square to draw.
    """
    try:
        import trimesh
    except ImportError:
        raise ImportError("a GLB file needs trimesh: pip install trimesh") from None

    index = np.arange(keep.size).reshape(keep.shape)
    # Counterclockwise as the camera sees them: glTF's front.
    squares = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], axis=-1)
    squares = squares[keep.ravel()[squares].all(axis=-1)]
    if not len(squares):
        raise ValueError("no surface to draw: no four neighbouring pixels have a depth and no edge")
    used, corners = np.unique(squares, return_inverse=True)
    triangles = corners.reshape(-1, 4)[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
    row, column = np.divmod(used, keep.shape[1])
    height, width = image.shape[:2]
    uv = np.stack([(column * stride + 0.5) / width, 1 - (row * stride + 0.5) / height], axis=-1)
    texture = Image.fromarray(image)
    texture.thumbnail((TEXTURE, TEXTURE))
    texture.format = "JPEG"  # which trimesh then stores
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=texture, metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    mesh = trimesh.Trimesh(
        points.reshape(-1, 3)[used],
        triangles,
        visual=trimesh.visual.TextureVisuals(uv, material=material),
        process=False,
    )

    def unlit(tree: dict[str, Any]) -> None:
        tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]

    return cast(bytes, mesh.export(file_type="glb", tree_postprocessor=unlit))

"""Colours, panels and point clouds against known answers."""

import sys
from pathlib import Path

import numpy as np
import pytest

from depthzoo import visualize
from depthzoo.colormaps import COLORMAPS
from depthzoo.prediction import Prediction

RAMP = np.linspace(1, 3, 201, dtype=np.float32)[None].repeat(50, axis=0)
BLACK = np.zeros((*RAMP.shape, 3), np.uint8)


@pytest.mark.parametrize("name", sorted(COLORMAPS))
def test_colors_are_matplotlibs(name: str) -> None:
    colormaps = pytest.importorskip("matplotlib").colormaps
    expected = np.rint(colormaps[name](np.arange(256))[:, :3] * 255)
    np.testing.assert_array_equal(visualize.colormap_lut(name), expected)


def test_turbo_goes_from_blue_over_green_to_red() -> None:
    """The ends and the middle that are published; nearest is last in the reversed map."""
    turbo = visualize.colormap_lut("turbo")
    np.testing.assert_array_equal(turbo[[0, -1]], [[48, 18, 59], [122, 4, 3]])
    assert turbo[128].argmax() == 1 and turbo[50].argmax() == 2 and turbo[220].argmax() == 0
    np.testing.assert_array_equal(visualize.colormap_lut("turbo_r"), turbo[::-1])


def test_range_stays_and_invalid_is_grey() -> None:
    depth = np.array([[0.5, 1.0, 2.0, 9.0, 0.0, -1.0, np.nan, np.inf]], np.float32)
    colors = visualize.colorize(depth, "gray", near=1, far=2)
    np.testing.assert_array_equal(colors[0, :, 0], [0, 0, 255, 255, *[visualize.INVALID] * 4])


def test_default_range_is_the_1st_and_99th_percentile() -> None:
    near, far = visualize.percentile_range(RAMP)
    assert near == pytest.approx(1.02, abs=0.011) and far == pytest.approx(2.98, abs=0.011)
    outlier = RAMP.copy()
    outlier[0, :3] = 0, np.nan, 1000
    assert visualize.percentile_range(outlier)[1] < 3
    assert visualize.percentile_range(np.zeros((3, 3))) == (0, 1)
    assert visualize.percentile_range(RAMP * 0 + 1, RAMP * 0 + 5) == (1, 5)


def test_constant_and_empty_depth_can_be_drawn() -> None:
    for value in (2.0, 0.0, np.nan):
        depth = np.full((5, 4), value, np.float32)
        assert len(np.unique(visualize.colorize(depth).reshape(-1, 3), axis=0)) == 1
        assert visualize.panel(np.zeros((5, 4, 3), np.uint8), depth, depth).dtype == np.uint8


def test_panel_holds_the_pictures_and_its_legend() -> None:
    image = np.full((300, 400, 3), (10, 20, 30), np.uint8)
    depth = np.linspace(1, 3, 400, dtype=np.float32)[None].repeat(300, axis=0)
    two = visualize.panel(image, depth, tile=400, colormap="gray", near=1, far=3)
    four = visualize.panel(image, depth, depth * 1.25, tile=400, colormap="gray", near=1, far=3)
    width = 400 + 2 * visualize.PAD
    assert two.shape[1] == 2 * width and four.shape[1] == 4 * width and two.shape[0] == four.shape[0]
    top, left = visualize.PAD + visualize.TITLE, visualize.PAD
    np.testing.assert_array_equal(two[top : top + 300, left : left + 400], image)
    shown = two[top : top + 300, width + left : width + left + 400, 0].astype(int)
    np.testing.assert_allclose(shown[0], np.linspace(0, 255, 400), atol=1)
    bar = two[top + 300 + visualize.PAD + 2, width + left : width + left + 400, 0].astype(int)
    np.testing.assert_allclose(bar, np.linspace(0, 255, 400), atol=1)
    # Some text is drawn below the bar.
    assert (two[top + 300 + visualize.PAD + visualize.BAR + 2 :, width:] < 128).any()
    # |p - d| / d is a fifth everywhere; the picture's cells are the same with and without a target.
    np.testing.assert_array_equal(four[:, :width], two[:, :width])


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (10, 3)])
def test_panel_of_odd_shapes(shape: tuple[int, int]) -> None:
    panel = visualize.panel(np.zeros((*shape, 3), np.uint8), np.ones(shape, np.float32), tile=64)
    assert panel.shape[1] == 2 * (visualize.MIN_CELL + 2 * visualize.PAD)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown colormap 'turboo': did you mean 'turbo'"):
        visualize.colorize(RAMP, "turboo")
    with pytest.raises(ValueError, match="near must be below far, got 3 and 2 m"):
        visualize.colorize(RAMP, near=3, far=2)
    with pytest.raises(ValueError, match="near must be below far"):
        visualize.panel(BLACK, RAMP, near=9)
    with pytest.raises(ValueError, match=r"target is \(3, 3\), depth is \(50, 201\)"):
        visualize.panel(BLACK, RAMP, np.ones((3, 3)))


def test_legend_is_a_border_with_the_scale() -> None:
    for shape in ((30, 40), (90, 640), (120, 1600)):
        depth = np.linspace(1, 3, shape[1], dtype=np.float32)[None].repeat(shape[0], axis=0)
        plain = visualize.colorize(depth, "gray", 1, 3)
        drawn = visualize.colorize(depth, "gray", 1, 3, legend=True)
        scale = max(1.0, shape[1] / visualize.LEGEND_WIDTH)
        pad, bar = round(visualize.PAD * scale), round(visualize.BAR * scale)
        width = max(shape[1], visualize.MIN_CELL)
        assert drawn.shape[1] == width + 2 * pad
        left = pad + (width - shape[1]) // 2
        np.testing.assert_array_equal(drawn[pad : pad + shape[0], left : left + shape[1]], plain)
        middle = drawn[2 * pad + shape[0] + bar // 2, pad:-pad, 0]
        np.testing.assert_allclose(middle, np.linspace(0, 255, width), atol=1)
        assert (drawn[2 * pad + shape[0] + bar :] < 128).any()  # the numbers


def parse_ply(path: Path) -> tuple[list[str], np.ndarray]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    kind = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    return header.decode("ascii").splitlines(), np.frombuffer(body, kind)


def test_ply_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 5, (4, 6)).astype(np.float32)
    depth[0, 0], depth[3, 5] = 10, 0.001  # the clip limits are kept
    image = rng.integers(0, 256, (4, 6, 3), np.uint8)
    prediction = Prediction(depth, image, focal_px=3)
    prediction.save_ply(tmp_path / "a.ply", max_edge=None)
    header, points = parse_ply(tmp_path / "a.ply")
    assert header[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "element vertex 24" in header and len(points) == 24
    names = [line.split()[-1] for line in header if line.startswith("property")]
    assert names == ["x", "y", "z", "red", "green", "blue"]
    np.testing.assert_array_equal(points["z"].reshape(4, 6), depth)
    np.testing.assert_array_equal(
        np.stack([points[c] for c in ("red", "green", "blue")], -1).reshape(4, 6, 3), image
    )
    # The axis between columns 2 and 3, rows 1 and 2.
    rows, columns = np.mgrid[:4, :6]
    np.testing.assert_allclose(points["x"].reshape(4, 6), (columns - 2.5) / 3 * depth, rtol=1e-5)
    np.testing.assert_allclose(points["y"].reshape(4, 6), (rows - 1.5) / 3 * depth, rtol=1e-5)
    prediction.save_ply(tmp_path / "up.ply", max_edge=None, up="y")
    header, turned = parse_ply(tmp_path / "up.ply")
    assert "comment metres; x right, y up, z backward" in header
    np.testing.assert_array_equal(turned["x"], points["x"])
    np.testing.assert_array_equal(turned["y"], -points["y"])
    np.testing.assert_array_equal(turned["z"], -points["z"])


@pytest.mark.parametrize("shape", [(480, 640), (640, 480)])
def test_points_of_the_kinect_by_default(shape: tuple[int, int]) -> None:
    xyz, rgb = Prediction(np.ones(shape, np.float32), np.zeros((*shape, 3), np.uint8)).points()
    assert xyz.dtype == np.float32 and rgb.dtype == np.uint8 and xyz.shape == rgb.shape == (480 * 640, 3)
    # 518.86 px whichever way the camera was held.
    expected = [(shape[1] / 2 - 0.5) / 518.86, (shape[0] / 2 - 0.5) / 518.86, 1]
    np.testing.assert_allclose(xyz.max(axis=0), expected, rtol=1e-5)


def test_stride_takes_every_nth_pixel() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 2, (7, 10)).astype(np.float32)
    image = rng.integers(0, 256, (7, 10, 3), np.uint8)
    prediction = Prediction(depth, image)
    every, colors = prediction.points(max_edge=None)
    some, some_colors = prediction.points(3, max_edge=None)
    np.testing.assert_array_equal(some, every.reshape(7, 10, 3)[::3, ::3].reshape(-1, 3))
    np.testing.assert_array_equal(some_colors, colors.reshape(7, 10, 3)[::3, ::3].reshape(-1, 3))


def test_points_without_a_depth_are_left_out() -> None:
    depth = np.array([[1, 0, 1], [np.nan, 1, np.inf], [1, -1, 1]], np.float32)
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    for max_edge in (None, 5.0):
        xyz, rgb = Prediction(depth, image).points(max_edge=max_edge)
        np.testing.assert_array_equal(xyz[:, 2], 1)
        np.testing.assert_array_equal(rgb, image[depth == 1])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_edges_are_left_out_and_floors_kept_at_any_size(size: int) -> None:
    """A floor to four times the camera's height away, before a wall; in front of them a board."""
    height, width = 60 * size, 80 * size
    focal = 518.86 * width / 640
    below = (np.arange(height) + 0.5 - height / 2) / focal
    with np.errstate(divide="ignore"):
        floor = np.where(below > 0, 1 / below, np.inf)
    depth = np.minimum(floor, 4)[:, None].repeat(width, axis=1).astype(np.float32)
    board = np.s_[10 * size : 20 * size, 30 * size : 50 * size]
    depth[board] = 1.5
    index = np.arange(height * width, dtype=np.float32).reshape(height, width)
    image = np.zeros((height, width, 3), np.uint8)
    everything, _ = Prediction(depth, image, focal).points(max_edge=None)
    assert len(everything) == depth.size
    kept = Prediction(depth, image, focal).points()[0]
    left_out = depth.size - len(kept)
    # A ring on both sides of the board, and nothing else.
    ring = 2 * 2 * (10 + 20) * size
    assert ring - 8 <= left_out <= ring + 8
    assert index.size - left_out == len(kept)
    steep = Prediction(depth, image, focal).points(max_edge=2)[0]
    assert len(steep) < len(kept) - width  # the far end of the floor too


@pytest.mark.parametrize("stride", [1, 4])
def test_the_steepest_surface_does_not_depend_on_the_stride(stride: int) -> None:
    """A surface that recedes by 4 or by 6 metres per metre sideways, where 5 are allowed."""
    for slope, whole in ((4.0, True), (6.0, False)):
        depth = np.tile(np.exp(slope * np.arange(64) / 600), (48, 1)).astype(np.float32)
        image = np.zeros((48, 64, 3), np.uint8)
        kept, _ = Prediction(depth, image, 600).points(stride, max_edge=5)
        assert len(kept) == (depth[::stride, ::stride].size if whole else 0)


def test_bad_point_options() -> None:
    prediction = Prediction(RAMP, BLACK)
    for options, message in (
        ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({"stride": 1.5}, "got 1.5"),
        ({"max_edge": 0}, "max_edge must be above 0, or None, got 0"),
        ({"up": "z"}, "up must be '-y' or 'y', got 'z'"),
    ):
        with pytest.raises(ValueError, match=message):
            prediction.points(**options)  # type: ignore[arg-type]


def test_large_point_clouds_are_written_whole(tmp_path: Path) -> None:
    depth = np.linspace(1, 2, 1100 * 1000, dtype=np.float32).reshape(1100, 1000)
    Prediction(depth, np.zeros((1100, 1000, 3), np.uint8), focal_px=1000).save_ply(tmp_path / "a.ply")
    _, points = parse_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(points["z"], depth.ravel())
    rows, columns = np.mgrid[:1100, :1000]
    np.testing.assert_allclose(points["x"] / points["z"], (columns.ravel() - 499.5) / 1000, atol=1e-6)
    np.testing.assert_allclose(points["y"] / points["z"], (rows.ravel() - 549.5) / 1000, atol=1e-6)


def test_glb_read_back(tmp_path: Path) -> None:
    """The image's colors are where the points are, and the surface has no triangle across an edge."""
    trimesh = pytest.importorskip("trimesh")
    depth = np.full((40, 60), 2, np.float32)
    depth[:, 30:] = 3
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :, 0], image[:, 30:, 2] = 255, 255
    prediction = Prediction(depth, image, focal_px=60)
    prediction.save_glb(tmp_path / "a.glb", stride=2)
    content = (tmp_path / "a.glb").read_bytes()
    assert content[:4] == b"glTF" and b"KHR_materials_unlit" in content
    (mesh,) = trimesh.load(tmp_path / "a.glb").geometry.values()
    expected, colors = prediction.points(stride=2, up="y")
    by_position = {tuple(np.round(p, 4)): c for p, c in zip(expected.tolist(), colors, strict=True)}
    assert len(mesh.vertices) == len(expected)
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    for vertex, (u, v) in zip(mesh.vertices.tolist(), mesh.visual.uv, strict=True):
        # JPEG blurs colors, but not by half of their range two pixels from an edge.
        found = texture[int((1 - v) * 40), int(u * 60)].astype(int)
        np.testing.assert_allclose(found, by_position[tuple(np.round(vertex, 4))], atol=110)
    z = mesh.vertices[mesh.faces][..., 2]
    assert set(np.unique(np.ptp(z, axis=1))) == {0} and set(np.unique(z)) == {-2, -3}
    assert (mesh.face_normals[:, 2] > 0.99).all()  # the front is towards the camera
    # By default at most 512 points along the longer side.
    Prediction(np.ones((8, 2000), np.float32), np.zeros((8, 2000, 3), np.uint8)).save_glb(tmp_path / "b.glb")
    (wide,) = trimesh.load(tmp_path / "b.glb").geometry.values()
    assert len(wide.vertices) == 2 * 500


def test_glb_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "trimesh", None)
        with pytest.raises(ImportError, match="^a GLB file needs trimesh: pip install trimesh$"):
            Prediction(RAMP, BLACK).save_glb(tmp_path / "a.glb")
    pytest.importorskip("trimesh")
    with pytest.raises(ValueError, match="no surface to draw"):
        Prediction(RAMP * 0, BLACK).save_glb(tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())

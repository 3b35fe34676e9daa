"""Synthetic rooms: intersections against hand-computed depths, and what a rendered room promises."""

from dataclasses import replace
from math import cos, log, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from depthzoo.camera import CANONICAL_FOCAL, depth_scale
from train.rooms import Room, render
from train.rooms.building import Light
from train.rooms.raycast import (
    BOX,
    CONE,
    ELLIPSOID,
    Solids,
    View,
    cast,
    hit_box,
    hit_cone,
    hit_ellipsoid,
    probe,
)
from train.rooms.scene import Scene, Viewpoint, arrange, arrange_varied
from train.rooms.shading import radiance
from train.rooms.textures import TEXTURES, Patch
from train.sources.rooms import Rooms

SMALL = (120, 160)
SEEDS = range(4)


@pytest.fixture(scope="module")
def small() -> list[Room]:
    return [render(seed, SMALL) for seed in SEEDS]


def triple(x: float, y: float, z: float) -> list[torch.Tensor]:
    return [torch.tensor([float(value)]) for value in (x, y, z)]


def straight(xs: list[float], ys: list[float]) -> View:
    """A view from the origin along +y, x to the right and z up."""
    axes = torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    return View(torch.zeros(3), axes, torch.tensor(xs), torch.tensor(ys))


def solid(
    kind: int, centre: tuple[float, float, float], half: tuple[float, float, float], yaw: float = 0.0
) -> Solids:
    axes = torch.tensor([[cos(yaw), sin(yaw), 0], [-sin(yaw), cos(yaw), 0], [0, 0, 1.0]])
    frame = axes / torch.tensor(half)[:, None]
    return Solids(torch.tensor([kind]), torch.tensor([centre]), frame[None], torch.zeros(1))


def test_hit_box_known() -> None:
    assert hit_box(triple(-3, 0, 0), triple(1, 0, 0)).item() == 2
    assert (
        hit_box(triple(-3, -3, 0), triple(1, 1.5, 0)).item() == 2
    )  # enters by x, y having been reached at 4/3
    assert hit_box(triple(-3, 2, 0), triple(1, 0, 0)).item() == torch.inf
    assert hit_box(triple(3, 0, 0), triple(1, 0, 0)).item() == torch.inf  # behind
    assert hit_box(triple(0, 0, 0), triple(1, 0, 0)).item() == torch.inf  # inside


def test_hit_ellipsoid_known() -> None:
    assert hit_ellipsoid(triple(0, -3, 0), triple(0, 2, 0)).item() == 1
    at_height = hit_ellipsoid(triple(0, -3, 0.6), triple(0, 1, 0)).item()
    assert at_height == pytest.approx(3 - 0.8, abs=1e-6)
    assert hit_ellipsoid(triple(0, -3, 1.1), triple(0, 1, 0)).item() == torch.inf


def test_hit_cone_known() -> None:
    upright, taper = torch.tensor(0.0), torch.tensor(0.5)
    assert hit_cone(triple(-3, 0, 0), triple(1, 0, 0), upright).item() == 2
    assert hit_cone(triple(0, 0, 4), triple(0, 0, -1), upright).item() == 3  # its cap
    assert (
        hit_cone(triple(-3, 0, 0.9), triple(1, 0, 0.2), upright).item() == torch.inf
    )  # above the rim when there
    assert hit_cone(triple(-3, 0, 0.5), triple(1, 0, 0), taper).item() == pytest.approx(3 - 1.25)
    assert hit_cone(triple(-3, 0, -0.5), triple(1, 0, 0), taper).item() == pytest.approx(3 - 0.75)


def test_cast_gives_depth_along_the_axis() -> None:
    """A slab across the view is at one z-depth, though its points are at different distances."""
    depth, index = cast(solid(BOX, (0, 3, 0), (5, 1, 5)), straight([-0.5, 0.0, 0.5], [-0.3, 0.3]))
    torch.testing.assert_close(depth, torch.full((2, 3), 2.0))
    assert (index == 0).all()


def test_cast_turned_box() -> None:
    """A cube turned by 45 degrees shows its edge: nearest by half its diagonal."""
    depth, _ = cast(solid(BOX, (0, 4, 0), (1, 1, 1), yaw=np.pi / 4), straight([0.0], [0.0]))
    assert depth.item() == pytest.approx(4 - sqrt(2), abs=1e-5)


@pytest.mark.parametrize("kind", [BOX, ELLIPSOID, CONE])
def test_cast_culls_nothing_visible(kind: int) -> None:
    """The rectangles of `cast` lose no hit that `probe`, which tests every ray, finds."""
    grid = torch.linspace(-0.6, 0.6, 61).tolist()
    view = straight(grid, grid)
    for centre in [(0.3, 2.0, 0.2), (-1.0, 1.2, -0.6), (0.0, 1.5, -1.2), (0.4, -2.0, 0.0)]:
        one = solid(kind, centre, (0.5, 1.1, 0.3), yaw=0.7)
        found, expected = cast(one, view)[0], probe(one, view)
        hit = torch.isfinite(expected)
        # One ray may graze an edge; near the rim of a round solid rounding grows as a square root does.
        assert (torch.isfinite(found) != hit).sum() <= 1
        hit &= torch.isfinite(found)
        torch.testing.assert_close(found[hit], expected[hit], rtol=1e-4, atol=0)
    assert torch.isinf(cast(one, view)[0]).all()  # the last one is behind


def test_cast_keeps_the_nearer() -> None:
    a, b = solid(BOX, (0, 3, 0), (1, 1, 1)), solid(ELLIPSOID, (0, 1.5, 0), (0.2, 0.5, 0.2))
    both = Solids(*(torch.cat(pair) for pair in zip(vars(a).values(), vars(b).values(), strict=True)))
    depth, index = cast(both, straight([0.0, 0.4], [0.0]))
    torch.testing.assert_close(depth, torch.tensor([[1.0, 2.0]]))
    assert index.tolist() == [[1, 0]]


@pytest.mark.parametrize("texture", TEXTURES, ids=lambda texture: texture.__name__)
def test_texture_is_a_finite_colour(texture: object) -> None:
    g = torch.Generator().manual_seed(0)
    n = 500
    u, v = torch.rand(2, n, generator=g) - 0.5
    half, colour = torch.full((n,), 0.5), torch.rand(6, 1, generator=g).expand(6, n)
    patch = Patch(u, v, half, half, colour[:3], colour[3:], half / 5, half * 77, half / 250)
    out = texture(patch)  # type: ignore[operator]
    assert out.shape == (3, n) and torch.isfinite(out).all() and out.min() >= -0.5 and out.max() < 2


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_seed_shows_what_it_always_did(seed: int, varied: bool) -> None:
    """Seeds define the data that weights were trained on. Rays that graze an edge may round to either side."""
    with np.load(Path(__file__).with_name("rooms.npz")) as stored:
        image, millimetres = (stored[f"{kind}_{int(varied)}_{seed}"] for kind in ("image", "depth"))
    state, numpy_state, threads = torch.get_rng_state(), np.random.get_state()[1], torch.get_num_threads()
    room = render(seed, (48, 64), varied)
    assert (np.abs(room.depth * 1000 - millimetres) < 2).mean() > 0.99
    assert (np.abs(room.image.astype(int) - image) <= 2).mean() > 0.98
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.get_num_threads() == threads


def test_types_range(small: list[Room]) -> None:
    for room in small:
        assert room.image.shape == (*SMALL, 3) and room.image.dtype == np.uint8
        assert room.depth.shape == SMALL and room.depth.dtype == np.float32
        assert np.isfinite(room.depth).all() and room.depth.min() > 0.4 and room.depth.max() < 10
        assert room.image.std() > 10
        assert room.camera.focal_px == pytest.approx(518.86 / 4)


def test_floor_is_where_the_camera_says(small: list[Room]) -> None:
    """Nothing is seen below the floor's plane, and much of what is seen looking down lies on it."""
    seen = 0
    for room in small:
        camera, (height, width) = room.camera, SMALL
        x = (np.arange(width) + 0.5 - width / 2)[None] / camera.focal_px
        y = (np.arange(height) + 0.5 - height / 2)[:, None] / camera.focal_px
        rise = sin(camera.pitch) - cos(camera.pitch) * (x * sin(camera.roll) + y * cos(camera.roll))
        down = rise < -0.02
        floor = np.where(down, -camera.height / np.where(down, rise, -1), np.inf)
        assert (room.depth <= floor * (1 + 1e-4)).all()
        seen += (np.abs(room.depth - floor) < 1e-3).sum()
    assert seen > 0.05 * len(small) * SMALL[0] * SMALL[1]


def test_same_geometry_at_any_size(small: list[Room]) -> None:
    """Three times finer, every third pixel centre (from the second) is the coarse one's."""
    for seed in (0, 3):
        fine = render(seed, (3 * SMALL[0], 3 * SMALL[1])).depth[1::3, 1::3]
        same = np.abs(fine / small[seed].depth - 1) < 1e-4
        assert same.mean() > 0.999  # rays that graze an edge may round to either side


@pytest.mark.parametrize(
    ("seed", "size", "message"),
    [(-1, SMALL, "seed -1"), (0, (31, 64), "31x64"), (0, (64, 16), "64x16"), (0, (200, 64), "200x64")],
)
def test_refusals(seed: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(seed, size)


@pytest.mark.slow
def test_many_rooms_are_closed_and_in_range() -> None:
    medians = []
    for room in (render(seed, (48, 64)) for seed in range(1000, 1150)):
        assert np.isfinite(room.depth).all() and room.depth.min() > 0.4 and room.depth.max() < 10
        medians.append(np.median(room.depth))
    assert 2.0 < np.median(medians) < 3.2  # NYU Depth V2's frames: about 2.6


def canonical(scene: Scene, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """Canonical depth of a varied scene at a few pixels."""
    pose, (height, width) = scene.viewpoint, size
    focal = CANONICAL_FOCAL * width * pose.lens
    xs, ys = ((torch.arange(n) + 0.5 - n / 2) / focal for n in (width, height))
    view = View(torch.tensor(pose.position, dtype=torch.float32), pose.axes(), xs, ys)
    return probe(scene.solids, view).numpy() / depth_scale(focal, width)


def spread(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """ln of each scene's median canonical depth within 10 m, and of its least depth."""
    depths = [canonical(scene) for scene in scenes]
    return np.log([np.median(d[d <= 10]) for d in depths]), np.log([d.min() for d in depths])


def test_an_opening_as_wide_as_its_wall_has_a_place() -> None:
    """The corridor of this seed ends in one: the bounds of its middle are equal but for their rounding."""
    assert min(arrange_varied(1001709).size[:2]) < 2.4


@pytest.mark.slow
def test_varied_rooms_are_spread_as_real_frames_are() -> None:
    scenes = [arrange_varied(seed) for seed in range(400)]
    median, least = spread(scenes)
    assert abs(median.mean() - 0.973) < 0.08 and 0.316 < median.std() < 0.5
    assert (median < log(1.2)).mean() > 0.03 and (median > log(4.5)).mean() > 0.06
    assert log(0.2) < least.min() < log(0.45)
    pixels = np.concatenate([canonical(scene).ravel() for scene in scenes])
    real = [1.12, 1.35, 1.86, 2.53, 3.55, 4.72, 5.62]  # 5, 10, 25, 50, 75, 90, 95%
    assert np.abs(np.log(np.percentile(pixels, [5, 10, 25, 50, 75, 90, 95]) / real)).max() < 0.2
    assert (pixels > 10).mean() < 0.01
    lens = np.array([scene.viewpoint.lens for scene in scenes])
    assert 0.5 < (lens == 1).mean() < 0.7 and 0.75 <= lens.min() < 0.8 and 1.5 < lens.max() <= 1.6


def test_a_varied_camera_stands_clear_and_in_the_room() -> None:
    for seed in range(4):
        scene = arrange_varied(seed)
        x, y, z = scene.viewpoint.position
        assert 0.2 < x < scene.size[0] - 0.2 and 0.2 < y < scene.size[1] - 0.2 and 0.3 < z < 2.1
        origin = torch.tensor(scene.viewpoint.position, dtype=torch.float32)
        offset = scene.solids.frame @ (origin - scene.solids.centre)[..., None]
        assert (offset.abs() > 1).any(1).all()  # outside every solid's box


def box_room(lens: float) -> Scene:
    """A wall 3 m ahead, seen straight by a lens: an otherwise varied room."""
    scene = arrange_varied(0)
    wall = Solids(
        torch.tensor([BOX]),
        torch.tensor([[4.0, 0.0, 1.0]]),
        torch.eye(3)[None] / torch.tensor([1.0, 50.0, 50.0])[:, None],
        torch.zeros(1),
    )
    return replace(
        scene,
        solids=wall,
        half=torch.tensor([[1.0, 50.0, 50.0]]),
        texture=torch.zeros(1, dtype=torch.long),
        colours=torch.full((1, 6), 0.5),
        surface=torch.tensor([[0.3, 0.0, 0.0, 0.0]]),
        lights=[],
        viewpoint=Viewpoint((0.0, 0.0, 1.0), 0.0, 0.0, 0.0, lens),
    )


@pytest.mark.parametrize("lens", [0.29, 0.8, 1.5])
def test_labels_of_another_lens_are_canonical(lens: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall at 3 m is stored at 3 m over the lens; `render` itself says metres."""
    monkeypatch.setattr("train.rooms.arrange_varied", lambda seed: box_room(lens))
    room = render(0, (36, 48), varied=True)
    assert room.camera.focal_px == pytest.approx(518.86 / 640 * 48 * lens)
    np.testing.assert_allclose(room.depth, 3.0, rtol=1e-5)
    source = Rooms(3, size=(36, 48), varied=True)
    frame = source.load(source.items()[0])
    assert frame.focal_px == pytest.approx(518.86 / 640 * 48)
    # Beyond 10 canonical metres there is no label.
    np.testing.assert_allclose(frame.depth, 3.0 / lens if lens > 0.3 else 0, rtol=1e-5)


def test_a_further_room_keeps_its_light_behind_many_lamps() -> None:
    """Lamps of the room beyond the strongest three are off; those of a further room never are."""
    scene = next(
        scene
        for scene in map(arrange, range(30, 60))
        if any(lamp.spread == 0 for lamp in scene.lights)
        and sum(lamp.spread > 0 for lamp in scene.lights) > 3
    )
    pose = scene.viewpoint
    xs, ys = torch.linspace(-0.6, 0.6, 33), torch.linspace(-0.45, 0.45, 25)
    view = View(torch.tensor(pose.position, dtype=torch.float32), pose.axes(), xs, ys)
    outside = replace(scene, size=(0.0, 0.0, scene.size[2]))  # all that is seen counts as the further room
    brighter = [
        Light(lamp.origin, lamp.forward, (9.0,) * 3, lamp.beam, 0.0) if lamp.spread == 0 else lamp
        for lamp in scene.lights
    ]
    depth, index = cast(scene.solids, view)
    dim, lit = (
        radiance(replace(outside, lights=lights), view, depth, index).mean()
        for lights in (scene.lights, brighter)
    )
    assert lit > 1.05 * dim

"""Synthetic rooms: intersections against hand-computed depths, and what a rendered room promises."""

from math import cos, sin, sqrt

import numpy as np
import pytest
import torch

from depthzoo.data.rooms import Room, render, rooms
from depthzoo.data.rooms.raycast import (
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
from depthzoo.data.rooms.textures import TEXTURES, Patch

SMALL = (120, 160)
SEEDS = range(6)


@pytest.fixture(scope="module")
def small() -> list[Room]:
    return list(rooms(len(SEEDS), SMALL))


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


def test_deterministic_and_leaves_random_state_alone(small: list[Room]) -> None:
    state, numpy_state, threads = torch.get_rng_state(), np.random.get_state()[1], torch.get_num_threads()
    again = render(1, SMALL)
    assert np.array_equal(again.image, small[1].image) and np.array_equal(again.depth, small[1].depth)
    assert again.camera == small[1].camera
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.get_num_threads() == threads


def test_same_geometry_at_any_size(small: list[Room]) -> None:
    """Three times finer, every third pixel centre (from the second) is the coarse one's."""
    for seed in (0, 3):
        fine = render(seed, (3 * SMALL[0], 3 * SMALL[1])).depth[1::3, 1::3]
        same = np.abs(fine / small[seed].depth - 1) < 1e-4
        assert same.mean() > 0.999  # rays that graze an edge may round to either side


def test_seeds_differ(small: list[Room]) -> None:
    for k, room in enumerate(small[1:]):
        assert np.abs(room.depth - small[k].depth).mean() > 0.05
        assert np.abs(room.image.astype(int) - small[k].image).mean() > 5


def test_rooms_counts_on_from_the_seed(small: list[Room]) -> None:
    two = list(rooms(2, SMALL, seed=2))
    assert [np.array_equal(a.depth, b.depth) for a, b in zip(two, small[2:4], strict=True)] == [True, True]
    assert list(rooms(0)) == []


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (64, 32)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    room = render(5, size)
    assert room.image.shape == (*size, 3) and room.depth.shape == size


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
    for room in rooms(150, (48, 64), seed=1000):
        assert np.isfinite(room.depth).all() and room.depth.min() > 0.4 and room.depth.max() < 10
        medians.append(np.median(room.depth))
    assert 2.0 < np.median(medians) < 3.2  # NYU Depth V2's frames: about 2.6

"""A room ready to be seen: its layout as tensors, and a viewpoint in it, drawn from one seed."""

from dataclasses import dataclass
from itertools import count
from math import cos, hypot, log, sin

import numpy as np
import torch
from torch import Tensor

from train.rooms.building import Light
from train.rooms.layout import Layout
from train.rooms.pieces import Generator, Part
from train.rooms.raycast import Solids, View, probe
from train.rooms.textures import NUMBER

GUARD = 0.72  # metres kept free around the camera: depth is then above 0.4 m within 54 degrees of the axis
NEAREST, FARTHEST = 0.2, 10.0  # canonical depth in metres that a varied view keeps to, or is made for
REACH = 9.9  # metres from the camera to the farthest corner


@dataclass(frozen=True)
class Viewpoint:
    """Position in the room (m); heading, pitch (up is positive), roll (clockwise is positive) in radians.

    `lens` is the focal length, the canonical one being 1.
    """

    position: tuple[float, float, float]
    heading: float
    pitch: float
    roll: float
    lens: float = 1.0

    def axes(self) -> Tensor:
        """Rows right, down, forward in the world, (3, 3) float32."""
        ch, sh, cp, sp = cos(self.heading), sin(self.heading), cos(self.pitch), sin(self.pitch)
        forward = np.array([ch * cp, sh * cp, sp])
        level = np.array([sh, -ch, 0.0])
        plumb = np.cross(forward, level)
        right = cos(self.roll) * level + sin(self.roll) * plumb
        down = cos(self.roll) * plumb - sin(self.roll) * level
        return torch.tensor(np.stack([right, down, forward]), dtype=torch.float32)


@dataclass(frozen=True)
class Scene:
    """N solids in the world (z up, floor at 0), their surfaces, lights, the room's size, the viewpoint."""

    solids: Solids
    half: Tensor  # (N, 3) metres
    texture: Tensor  # (N,) number
    colours: Tensor  # (N, 6) linear
    surface: Tensor  # (N, 4) texture scale, gloss, glow, phase
    lights: list[Light]
    size: tuple[float, float, float]
    viewpoint: Viewpoint
    most_lights: int = 3  # of the room that are on, the strongest ones


def _numbers(parts: list[Part], g: Generator) -> tuple[Solids, Tensor, Tensor, Tensor, Tensor]:
    yaw, tilt = np.array([p.yaw for p in parts]), np.array([p.tilt for p in parts])
    c, s, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    zero = np.zeros_like(c)
    # Rows are the solid's axes in the world: a tilt about x, then a turn about z.
    axes = np.stack(
        [
            np.stack([c, s, zero], -1),
            np.stack([-s * ct, c * ct, st], -1),
            np.stack([s * st, -c * st, ct], -1),
        ],
        1,
    )
    half = np.array([p.half for p in parts])
    solids = Solids(
        torch.tensor([p.kind for p in parts]),
        torch.tensor([p.centre for p in parts], dtype=torch.float32),
        torch.tensor(axes / half[:, :, None], dtype=torch.float32),
        torch.tensor([p.taper for p in parts], dtype=torch.float32),
    )
    materials = [p.material for p in parts]
    colours = np.array([m.first + m.second for m in materials]) ** 2.2
    surface = np.array(
        [
            (m.scale, m.gloss, m.glow, ph)
            for m, ph in zip(materials, g.uniform(0, 128, len(parts)), strict=True)
        ]
    )
    return (
        solids,
        torch.tensor(half, dtype=torch.float32),
        torch.tensor([NUMBER[m.texture] for m in materials]),
        torch.tensor(colours, dtype=torch.float32),
        torch.tensor(surface, dtype=torch.float32),
    )


class _Clearance:
    """Distances in metres from a point to each part's bounding box."""

    def __init__(self, parts: list[Part]) -> None:
        yaw, tilt = np.array([p.yaw for p in parts]), np.array([p.tilt for p in parts])
        self.turn = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
        self.centre, self.half = np.array([p.centre for p in parts]), np.array([p.half for p in parts])

    def __call__(self, position: tuple[float, float, float]) -> np.ndarray:
        c, s, ct, st = self.turn
        x, y, z = (np.array(position) - self.centre).T
        along, across = c * x + s * y, c * y - s * x
        local = np.stack([along, ct * across + st * z, ct * z - st * across], -1)
        return np.linalg.norm(np.maximum(np.abs(local) - self.half, 0), axis=1)


def _viewpoints(room: Layout, clearance: _Clearance, g: Generator, wanted: int) -> list[Viewpoint]:
    found: list[tuple[float, Viewpoint]] = []
    for tried in count():
        x, y = g.uniform(0.75, room.x - 0.75), g.uniform(0.75, room.y - 0.75)
        position = (x, y, g.uniform(0.85, 1.75))
        target = (g.uniform(0.1, 0.9) * room.x, g.uniform(0.1, 0.9) * room.y)
        side = int(g.integers(4))  # look at a point of a wall
        target = [(target[0], 0.0), (room.x, target[1]), (target[0], room.y), (0.0, target[1])][side]
        if np.hypot(target[0] - x, target[1] - y) < g.uniform(0.25, 1.0) * max(room.x, room.y):
            continue  # longer views are likelier
        heading = float(np.arctan2(target[1] - y, target[0] - x))
        pitch = float(np.clip(g.normal(-0.16, 0.14), -0.6, 0.2))
        view = Viewpoint(position, heading, pitch, float(np.clip(g.normal(0, 0.025), -0.08, 0.08)))
        far = max(np.hypot(x - a, y - b) for a, b in room.corners)
        far = float(np.hypot(far, max(position[2], room.z - position[2])))
        if far > REACH:
            continue
        close = clearance(position) < GUARD
        found.append((float(close.sum()), view))
        if sum(1 for f in found if f[0] == 0) == wanted or (found and tried > 200):
            break
    found.sort(key=lambda f: f[0])
    return [view for _, view in found[:wanted]]


def _probe(solids: Solids, view: Viewpoint) -> Tensor:
    """A few depths (9, 12) of what is seen."""
    xs, ys = torch.linspace(-0.58, 0.58, 12), torch.linspace(-0.43, 0.43, 9)
    origin = torch.tensor(view.position, dtype=torch.float32)
    return probe(solids, View(origin, view.axes(), xs / view.lens, ys / view.lens))


def _scene(room: Layout, g: Generator, view: Viewpoint, close: np.ndarray, most_lights: int) -> Scene:
    """The room without the pieces that are too close to the camera."""
    gone = {number for (number, _), near in zip(room.parts, close, strict=True) if near and number}
    parts = [part for number, part in room.parts if number not in gone]
    return Scene(*_numbers(parts, g), room.lights, (room.x, room.y, room.z), view, most_lights)


def arrange(seed: int) -> Scene:
    """The scene of a seed: the same at every picture size."""
    g = np.random.default_rng([seed, 0])
    room = Layout(g)
    clearance = _Clearance([part for _, part in room.parts])
    views = _viewpoints(room, clearance, g, 16)
    wanted = log(2.45) + g.normal(0, 0.34)
    solids = _numbers([part for _, part in room.parts], np.random.default_rng(0))[0]
    best, least = views[0], float("inf")
    for view in views:
        depth = _probe(solids, view)
        middle, below = float(depth.median()), float(depth[-3:].median())
        miss = abs(log(middle) - wanted) + max(log(below / middle) + 0.35, 0)  # what is near is mostly below
        if miss < least:
            best, least = view, miss
    return _scene(room, g, best, clearance(best.position) < GUARD, 3)


def _lens(g: Generator) -> float:
    return 1.0 if g.uniform() < 0.6 else float(np.exp(g.uniform(log(0.75), log(1.6))))


def _median(g: Generator) -> float:
    """The median canonical depth to look for: as in NYU Depth V2's train frames, with heavier tails."""
    kind = g.uniform()
    if kind < 0.04:
        return float(np.exp(g.uniform(log(0.45), log(1.2))))
    if kind < 0.1:
        return float(np.exp(g.uniform(log(4.5), log(7.0))))
    return float(np.exp(g.normal(log(2.65), 0.3)))


def _glance(room: Layout, g: Generator, near: float | None, lens: float) -> Viewpoint:
    """A view of something `near` metres away, else across the room."""
    if near is not None:
        things = [part for number, part in room.parts if number]
        part = things[int(g.integers(len(things)))]
        heading, drop = g.uniform(-np.pi, np.pi), g.uniform(-0.15, 0.8)
        away = near * g.uniform(0.8, 1.15) + min(part.half)
        x, y, z = part.centre
        position = (
            x - away * cos(drop) * cos(heading),
            y - away * cos(drop) * sin(heading),
            z + away * sin(drop),
        )
        heading, pitch = heading + g.normal(0, 0.15), -drop + g.normal(0, 0.1)
    else:
        position = (g.uniform(0.25, room.x - 0.25), g.uniform(0.25, room.y - 0.25), g.uniform(0.8, 1.8))
        far = (g.uniform(0, room.x), g.uniform(0, room.y))
        heading, pitch = np.arctan2(far[1] - position[1], far[0] - position[0]), g.normal(-0.16, 0.15)
    pitch, roll = min(max(pitch, -0.9), 0.25), min(max(g.normal(0, 0.03), -0.1), 0.1)
    return Viewpoint(position, float(heading), pitch, roll, lens)


def arrange_varied(seed: int) -> Scene:
    """The scene of a seed with tails: close-ups, halls, and lenses of other cameras."""
    g = np.random.default_rng([seed, 2])
    lens, wanted = _lens(g), _median(g)
    room = Layout(g, wanted * lens)
    clearance = _Clearance([part for _, part in room.parts])
    solids = _numbers([part for _, part in room.parts], np.random.default_rng(0))[0]
    # What is near is so for the view; in a 4:3 corner as well.
    guard = 1.05 * hypot(lens, 0.78) * min(max(0.25 * wanted, NEAREST), 0.7)
    best = Viewpoint((room.x / 2, room.y / 2, 1.5), g.uniform(-np.pi, np.pi), -0.1, 0.0, lens)
    least, seen = float("inf"), 0
    for _ in range(1000):
        close = wanted < 1.3 or (wanted < 2.2 and g.uniform() < 0.35)
        view = _glance(room, g, wanted * lens if close else None, lens)
        x, y, z = view.position
        inside = 0.2 < x < room.x - 0.2 and 0.2 < y < room.y - 0.2 and 0.3 < z < min(2.1, room.z - 0.3)
        if not inside or clearance(view.position).min() < guard:
            continue
        depth = _probe(solids, view) / lens
        middle, below = float(depth.median()), float(depth[-3:].median())
        miss = abs(log(middle / wanted)) + float((depth > FARTHEST).float().mean())
        miss += 0.5 * max(log(below / middle) + 0.35, 0)  # what is near is mostly below
        miss += 2 * max(0.1 - float(depth.log().std()), 0)  # not a bare wall
        seen += 1
        if miss < least:
            best, least = view, miss
        if least < 0.05 or seen == 24:
            break
    return _scene(room, g, best, clearance(best.position) < guard, 6)

"""A room ready to be seen: its layout as tensors, and a viewpoint in it, drawn from one seed."""

from dataclasses import dataclass
from itertools import count
from math import cos, log, sin

import numpy as np
import torch
from torch import Tensor

from depthzoo.data.rooms.building import Light
from depthzoo.data.rooms.layout import Layout
from depthzoo.data.rooms.pieces import Generator, Part
from depthzoo.data.rooms.raycast import Solids, View, probe
from depthzoo.data.rooms.textures import NUMBER

GUARD = 0.72  # metres kept free around the camera: depth is then above 0.4 m within 54 degrees of the axis
REACH = 9.9  # metres from the camera to the farthest corner


@dataclass(frozen=True)
class Viewpoint:
    """Position in the room (m); heading, pitch (up is positive), roll (clockwise is positive) in radians."""

    position: tuple[float, float, float]
    heading: float
    pitch: float
    roll: float

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


def _clearance(parts: list[Part], position: np.ndarray) -> np.ndarray:
    """Distance in metres from a point to each part's bounding box."""
    yaw, tilt = np.array([p.yaw for p in parts]), np.array([p.tilt for p in parts])
    c, s, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    x, y, z = (position - np.array([p.centre for p in parts])).T
    along, across = c * x + s * y, c * y - s * x
    local = np.stack([along, ct * across + st * z, ct * z - st * across], -1)
    return np.linalg.norm(np.maximum(np.abs(local) - np.array([p.half for p in parts]), 0), axis=1)


def _viewpoints(room: Layout, g: Generator, wanted: int) -> list[Viewpoint]:
    parts = [part for _, part in room.parts]
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
        close = _clearance(parts, np.array(position)) < GUARD
        found.append((float(close.sum()), view))
        if sum(1 for f in found if f[0] == 0) == wanted or (found and tried > 200):
            break
    found.sort(key=lambda f: f[0])
    return [view for _, view in found[:wanted]]


def arrange(seed: int) -> Scene:
    """The scene of a seed: the same at every picture size."""
    g = np.random.default_rng([seed, 0])
    room = Layout(g)
    views = _viewpoints(room, g, 16)
    wanted = log(2.45) + g.normal(0, 0.34)
    solids = _numbers([part for _, part in room.parts], np.random.default_rng(0))[0]
    best, least = views[0], float("inf")
    for view in views:
        rays = View(
            torch.tensor(view.position, dtype=torch.float32),
            view.axes(),
            torch.linspace(-0.58, 0.58, 12),
            torch.linspace(-0.43, 0.43, 9),
        )
        depth = probe(solids, rays)
        middle, below = float(depth.median()), float(depth[-3:].median())
        miss = abs(log(middle) - wanted) + max(log(below / middle) + 0.35, 0)  # what is near is mostly below
        if miss < least:
            best, least = view, miss
    close = _clearance([part for _, part in room.parts], np.array(best.position)) < GUARD
    gone = {number for (number, _), near in zip(room.parts, close, strict=True) if near and number}
    parts = [part for number, part in room.parts if number not in gone]
    return Scene(*_numbers(parts, g), room.lights, (room.x, room.y, room.z), best)

"""What furniture is made of: solids composed into pieces, materials, and palettes to draw from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, inf, pi, sin
from typing import NamedTuple, TypeVar

import numpy as np

from train.rooms.raycast import BOX, CONE, ELLIPSOID

Colour = tuple[float, float, float]
Generator = np.random.Generator
T = TypeVar("T")


class Material(NamedTuple):
    """A surface: texture name, two sRGB colours, texture scale (m), gloss 0..1, glow (light emitted)."""

    texture: str
    first: Colour
    second: Colour
    scale: float = 0.3
    gloss: float = 0.0
    glow: float = 0.0


class Part(NamedTuple):
    """A solid: kind, centre, half sizes, turn about z, tilt about its own x (radians), taper, material."""

    kind: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    tilt: float
    taper: float
    material: Material


@dataclass
class Piece:
    """Parts in a frame of their own: x along the wall, y from it into the room, z up, metres."""

    parts: list[Part] = field(default_factory=list)

    def box(
        self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, material: Material,
        yaw: float = 0.0, tilt: float = 0.0,
    ) -> None:  # fmt: skip
        centre = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        half = (max(x1 - x0, 0.002) / 2, max(y1 - y0, 0.002) / 2, max(z1 - z0, 0.002) / 2)
        self.parts.append(Part(BOX, centre, half, yaw, tilt, 0.0, material))

    def wide(
        self, w: float, y0: float, y1: float, z0: float, z1: float, material: Material, tilt: float = 0.0
    ) -> None:
        """A box of width w, in the middle of the wall side."""
        self.box(-w / 2, w / 2, y0, y1, z0, z1, material, 0.0, tilt)

    def block(
        self, x: float, y: float, w: float, d: float, z0: float, z1: float, material: Material,
        yaw: float = 0.0, tilt: float = 0.0,
    ) -> None:  # fmt: skip
        """A box about x, y with half sizes w, d."""
        self.box(x - w, x + w, y - d, y + d, z0, z1, material, yaw, tilt)

    def ball(
        self, x: float, y: float, z: float, rx: float, ry: float, rz: float, material: Material,
        yaw: float = 0.0, tilt: float = 0.0,
    ) -> None:  # fmt: skip
        self.parts.append(Part(ELLIPSOID, (x, y, z), (rx, ry, rz), yaw, tilt, 0.0, material))

    def can(
        self, x: float, y: float, z0: float, z1: float, radius: float, material: Material, taper: float = 0.0,
        tilt: float = 0.0,
    ) -> None:  # fmt: skip
        half = (radius, radius, (z1 - z0) / 2)
        self.parts.append(Part(CONE, (x, y, (z0 + z1) / 2), half, 0.0, tilt, taper, material))

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, right, back, front of the piece on the floor, in its own frame."""
        left = back = inf
        right = front = -inf
        for part in self.parts:
            c, s = abs(cos(part.yaw)), abs(sin(part.yaw))
            hx, hy = part.half[0], part.half[1] + abs(sin(part.tilt)) * part.half[2]
            x, y = part.centre[:2]
            left, right = min(left, x - (c * hx + s * hy)), max(right, x + (c * hx + s * hy))
            back, front = min(back, y - (s * hx + c * hy)), max(front, y + (s * hx + c * hy))
        return left, right, back, front


def pick(g: Generator, options: Sequence[T]) -> T:
    return options[int(g.integers(len(options)))]


def jitter(g: Generator, colour: Colour, amount: float = 0.05) -> Colour:
    shift, own = g.normal(0, amount), g.normal(0, amount / 2, 3).tolist()
    r, gr, b = (min(max(c + (shift + o), 0.02), 0.97) for c, o in zip(colour, own, strict=True))
    return r, gr, b


WOODS: list[Colour] = [
    (0.76, 0.58, 0.38), (0.66, 0.46, 0.27), (0.55, 0.34, 0.18), (0.42, 0.24, 0.13), (0.30, 0.18, 0.11),
    (0.45, 0.20, 0.12), (0.20, 0.13, 0.10), (0.72, 0.50, 0.30), (0.60, 0.52, 0.44),
]  # fmt: skip
PAINTS: list[Colour] = [
    (0.92, 0.91, 0.88), (0.86, 0.84, 0.78), (0.15, 0.15, 0.16), (0.55, 0.56, 0.57), (0.78, 0.79, 0.78),
]  # fmt: skip
CLOTHS: list[Colour] = [
    (0.62, 0.12, 0.14), (0.14, 0.22, 0.42), (0.30, 0.42, 0.56), (0.45, 0.50, 0.30), (0.80, 0.72, 0.58),
    (0.90, 0.88, 0.84), (0.36, 0.24, 0.18), (0.55, 0.48, 0.42), (0.20, 0.20, 0.22), (0.70, 0.45, 0.20),
    (0.45, 0.18, 0.30), (0.62, 0.64, 0.66), (0.25, 0.38, 0.32), (0.84, 0.80, 0.45), (0.76, 0.52, 0.55),
]  # fmt: skip


def plain(colour: Colour, gloss: float = 0.0, glow: float = 0.0) -> Material:
    return Material("plain", colour, (0, 0, 0), gloss=gloss, glow=glow)


METAL, DARK, WHITE = (
    plain((0.66, 0.67, 0.68), 0.7),
    plain((0.07, 0.07, 0.08), 0.35),
    plain((0.92, 0.92, 0.90), 0.3),
)


def any_colour(g: Generator) -> Colour:
    hue, value, tint = g.uniform(0, 1), g.uniform(0.1, 0.95), 0.8 * g.uniform() ** 1.8
    r, gr, b = (value * (1 - tint * (0.5 + 0.5 * cos(2 * pi * (hue + k / 3)))) for k in range(3))
    return r, gr, b


def timber(g: Generator) -> Material:
    if g.uniform() < 0.25:
        return plain(jitter(g, pick(g, PAINTS)), 0.25)
    tone, dark = jitter(g, pick(g, WOODS)), g.uniform(0.55, 0.8)
    grain = (tone[0] * dark, tone[1] * dark, tone[2] * dark)
    return Material("wood", tone, grain, g.uniform(0.6, 2), g.uniform(0, 0.4))


def fronts(g: Generator, base: Material) -> Material:
    handle = (0.7, 0.7, 0.68) if g.uniform() < 0.6 else (0.12, 0.1, 0.08)
    return base._replace(texture="panels", second=handle, scale=g.uniform(0.38, 0.6))


def cloth(g: Generator) -> Material:
    kinds = ["plain", "plain", "carpet", "stripes", "checks", "spots", "stone", "stripes"]
    first, second = jitter(g, pick(g, CLOTHS)), jitter(g, pick(g, CLOTHS))
    return Material(pick(g, kinds), first, second, g.uniform(0.05, 0.3))


def thing(g: Generator) -> Material:
    """What small objects are made of."""
    kinds = ["plain", "plain", "plain", "paper", "spots", "stripes", "picture", "stone"]
    first = any_colour(g) if g.uniform() < 0.6 else jitter(g, pick(g, PAINTS))
    return Material(pick(g, kinds), first, any_colour(g), g.uniform(0.04, 0.15), g.choice([0.0, 0.2, 0.6]))

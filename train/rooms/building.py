"""The empty room: floor, walls, an opening to a further room, and what hangs on the walls."""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from train.rooms.fittings import FITTINGS, door_frame, window
from train.rooms.furniture import FURNITURE
from train.rooms.pieces import (
    PAINTS,
    WOODS,
    Colour,
    Generator,
    Material,
    Part,
    Piece,
    jitter,
    pick,
    plain,
    timber,
)

PALE: list[Colour] = [
    (0.90, 0.88, 0.83), (0.86, 0.82, 0.73), (0.80, 0.80, 0.80), (0.93, 0.92, 0.90), (0.78, 0.72, 0.62),
]  # fmt: skip
TINTS: list[Colour] = [
    (0.66, 0.74, 0.80), (0.70, 0.76, 0.64), (0.88, 0.80, 0.56), (0.66, 0.44, 0.36), (0.45, 0.55, 0.62),
    (0.80, 0.70, 0.66),
]  # fmt: skip
TILES: list[Colour] = [(0.72, 0.66, 0.56), (0.8, 0.78, 0.74), (0.5, 0.44, 0.38), (0.62, 0.4, 0.28)]
CARPETS: list[Colour] = [
    (0.66, 0.6, 0.5), (0.55, 0.52, 0.5), (0.4, 0.4, 0.44), (0.72, 0.66, 0.58), (0.35, 0.38, 0.36),
]  # fmt: skip


@dataclass(frozen=True)
class Light:
    """`power` is linear RGB, `beam` the exponent of the cosine falloff about `forward`.

    `spread` is the half width of its shadow view at depth 1; 0: it lights the further room, without shadows.
    """

    origin: tuple[float, float, float]
    forward: tuple[float, float, float]
    power: tuple[float, float, float]
    beam: float
    spread: float


class Building:
    """A room of x by y by z metres; its back walls lie on x = 0 and y = 0.

    With a `view`, the median depth in metres that it is to be seen at, its size is drawn for that: halls for far
    views, and now and then a corridor; what lies behind openings is deeper.
    """

    def __init__(self, kind: str, g: Generator, view: float | None = None) -> None:
        self.g = g
        self.kind = kind
        self.view = view
        if self.kind == "bathroom":
            self.x, self.y = g.uniform(2.2, 3.4), g.uniform(2.2, 3.2)
        else:
            self.x, self.y = g.uniform(3.2, 7.4), g.uniform(2.8, 5.8)
        self.z = g.uniform(2.35, 2.9)
        if view is not None:
            self._fit(view)
        self.day = bool(g.uniform() < 0.55)
        self.parts: list[tuple[int, Part]] = []  # with the number of their piece; 0 is the building
        self.pieces = 0
        self.taken: list[tuple[float, float, float, float]] = []
        self.corners = [(x, y) for x in (0.0, self.x) for y in (0.0, self.y)]
        self.lights: list[Light] = []

    def _fit(self, view: float) -> None:
        g = self.g
        if self.kind == "corridor":
            self.x, self.y = g.uniform(4.0, 11.0), g.uniform(1.8, 2.4)
        elif view > 3.2:
            self.x = min(view * g.uniform(1.6, 2.2), 14.0)
            self.y = self.x * g.uniform(0.55, 0.95)
        if g.uniform() < 0.5:
            self.x, self.y = self.y, self.x
        self.z = g.uniform(2.3, 2.9) + 0.08 * max(min(self.x, self.y) - 5, 0)

    def wall_length(self, wall: int) -> float:
        return self.x if wall % 2 == 0 else self.y

    def on_wall(self, wall: int, s: float) -> tuple[float, float, float]:
        """World x, y and yaw of a piece whose back is at distance s along a wall."""
        return [(s, 0, 0), (self.x, s, pi / 2), (self.x - s, self.y, pi), (0, self.y - s, -pi / 2)][wall]

    def put(self, piece: Piece, x: float, y: float, yaw: float, number: int | None = None) -> None:
        if number is None:
            self.pieces += 1
            number = self.pieces
        c, s = cos(yaw), sin(yaw)
        for part in piece.parts:
            px, py, pz = part.centre
            centre = (x + c * px - s * py, y + s * px + c * py, pz)
            self.parts.append((number, part._replace(centre=centre, yaw=part.yaw + yaw)))

    def try_put(self, piece: Piece, x: float, y: float, yaw: float, margin: float = 0.0) -> bool:
        """Put the piece if its footprint is free and inside the room."""
        left, right, back, front = piece.bounds()
        c, s = cos(yaw), sin(yaw)
        px = [x + c * a - s * b for a in (left, right) for b in (back, front)]
        py = [y + s * a + c * b for a in (left, right) for b in (back, front)]
        spot = (min(px) - margin, max(px) + margin, min(py) - margin, max(py) + margin)
        if spot[0] < -0.04 or spot[1] > self.x + 0.04 or spot[2] < -0.04 or spot[3] > self.y + 0.04:
            return False
        if any(spot[0] < t[1] and t[0] < spot[1] and spot[2] < t[3] and t[2] < spot[3] for t in self.taken):
            return False
        self.taken.append(spot)
        self.put(piece, x, y, yaw)
        return True

    def build(self) -> None:
        g = self.g
        paint = jitter(g, pick(g, PALE * 4 + TINTS), 0.03)
        kind, second = g.choice(["plain"] * 6 + ["stripes", "spots"]), jitter(g, paint, 0.04)
        wall = Material(kind, paint, second, g.uniform(0.1, 0.4))
        if self.kind == "bathroom" or (self.kind == "kitchen" and g.uniform() < 0.2):
            scale = g.uniform(0.1, 0.25)
            wall = wall._replace(texture="tiles", scale=scale, second=(0.6, 0.6, 0.58), gloss=0.4)
        other = wall
        if g.uniform() < 0.2:
            kind, first = g.choice(["plain", "brick", "wood"]), jitter(g, pick(g, TINTS + WOODS))
            other = Material(kind, first, (0.6, 0.57, 0.52), g.uniform(0.06, 0.1))
        trim = plain(jitter(g, pick(g, PAINTS[:2])), 0.2) if g.uniform() < 0.7 else timber(g)
        self._slab(-0.2, 0, self._floor())
        self._slab(self.z, self.z + 0.2, plain(jitter(g, (0.9, 0.89, 0.87), 0.03)))
        opened = int(g.integers(4)) if g.uniform() < (0.45 if self.view is None else 0.6) else -1
        for k in range(4):
            self._wall(k, wall if k else other, trim, k == opened)

    def _slab(self, z0: float, z1: float, m: Material) -> None:
        """Floor or ceiling, which reach under the further rooms too."""
        piece, margin = Piece(), 4 if self.view is None else 8
        piece.box(-margin, self.x + margin, -margin, self.y + margin, z0, z1, m)
        self.put(piece, 0, 0, 0, 0)

    def _floor(self) -> Material:
        g = self.g
        kind = g.uniform()
        if (self.kind in ("kitchen", "bathroom") and kind < 0.6) or kind > 0.88:
            tone, grout = jitter(g, pick(g, TILES)), jitter(g, (0.5, 0.47, 0.42))
            return Material("tiles", tone, grout, g.uniform(0.2, 0.5), g.uniform(0.1, 0.6))
        if kind < 0.5:
            tone = jitter(g, pick(g, WOODS))
            dark = (tone[0] * 0.7, tone[1] * 0.66, tone[2] * 0.62)
            return Material("planks", tone, dark, g.uniform(0.06, 0.16), g.uniform(0.1, 0.6))
        tone = jitter(g, pick(g, CARPETS))
        return Material("carpet", tone, jitter(g, tone, 0.06))

    def _wall(self, k: int, m: Material, trim: Material, opened: bool) -> None:
        g, length, thick = self.g, self.wall_length(k), 0.12
        pieces, hole = Piece(), (0.0, 0.0)
        if opened:
            half = g.uniform(0.4, 0.5) if g.uniform() < 0.7 else g.uniform(0.6, 0.95)
            half = min(half, length / 2 - 0.15)
            # As wide as the wall allows: the ends are equal but for their rounding, which may swap them.
            middle = g.uniform(half + 0.15, max(half + 0.15, length - half - 0.15))
            hole, top = (middle - half, middle + half), g.uniform(2.0, 2.2)
            pieces.box(-thick, hole[0], -thick, 0, 0, self.z, m)
            pieces.box(hole[1], length + thick, -thick, 0, 0, self.z, m)
            pieces.box(hole[0], hole[1], -thick, 0, top, self.z, m)
            frame = Piece()
            door_frame(frame, g, half, top, trim)
            for part in frame.parts:
                pieces.parts.append(part._replace(centre=(part.centre[0] + middle, *part.centre[1:])))
            self._beyond(k, pieces, hole, thick)
        else:
            pieces.box(-thick, length + thick, -thick, 0, 0, self.z, m)
        skirt, rail = g.uniform(0.06, 0.14), g.uniform() < 0.12
        for x0, x1 in ((0, hole[0] - 0.08), (hole[1] + 0.08, length)) if opened else ((0, length),):
            if x1 - x0 > 0.1:
                pieces.box(x0, x1, 0, 0.015, 0, skirt, trim)
                if rail:
                    panels = trim._replace(texture="panels", second=trim.first, scale=0.7)
                    pieces.box(x0, x1, 0, 0.01, skirt, 0.9, panels)
                    pieces.box(x0, x1, 0, 0.03, 0.9, 0.95, trim)
        x, y, yaw = self.on_wall(k, 0)
        self.put(pieces, x, y, yaw, 0)
        if opened:  # keep its threshold free
            x, y, _ = self.on_wall(k, (hole[0] + hole[1]) / 2)
            self.taken.append((x - 0.6, x + 0.6, y - 0.6, y + 0.6))
        self._hang(k, hole if opened else None)

    def _beyond(self, k: int, p: Piece, hole: tuple[float, float], thick: float) -> None:
        """A further room behind an opening, with a light and a piece of furniture of its own."""
        g = self.g
        x0, x1, deep = hole[0] - g.uniform(0.2, 1.6), hole[1] + g.uniform(0.2, 1.6), g.uniform(1.0, 3.0)
        if self.view is not None and g.uniform() < 0.6:
            deep = g.uniform(3.0, 7.0)
        m = plain(jitter(g, (0.82, 0.79, 0.72), 0.08))
        p.box(x0 - 0.1, x1 + 0.1, -deep - 0.1 - thick, -deep - thick, 0, self.z, m)
        p.box(x0 - 0.1, x0, -deep - thick, -thick, 0, self.z, m)
        p.box(x1, x1 + 0.1, -deep - thick, -thick, 0, self.z, m)
        piece, name = Piece(), g.choice(["cabinet", "bookshelf", "door", "pictures", "chair"])
        (FURNITURE | FITTINGS)[str(name)](piece, g)
        if deep > 1.4:
            for part in piece.parts:
                x, y, z = part.centre
                moved = (x + (hole[0] + hole[1]) / 2, y - deep - thick, z)
                p.parts.append(part._replace(centre=moved))
        ox, oy, yaw = self.on_wall(k, 0)
        c, s = cos(yaw), sin(yaw)
        for a in (x0, x1):
            self.corners.append((ox + c * a + s * (deep + thick), oy + s * a - c * (deep + thick)))
        a, b = (hole[0] + hole[1]) / 2, -thick - deep / 2
        power = float(np.exp(g.normal(0.4, 0.7)))
        place = (ox + c * a - s * b, oy + s * a + c * b, self.z - 0.2)
        self.lights.append(Light(place, (0, 0, -1), (power, power * 0.9, power * 0.75), 0.5, 0.0))

    def _hang(self, k: int, hole: tuple[float, float] | None) -> None:
        """Windows, doors, pictures and the like, side by side along a wall."""
        g, length = self.g, self.wall_length(k)
        s = g.uniform(0.2, 0.8)
        while s < length - 0.5:
            piece, kind = Piece(), g.uniform()
            if kind < 0.3:
                window(piece, g, self.day)
            else:
                names = ["door", "pictures", "pictures", "pictures", "board", "wall_shelf", "radiator"]
                FITTINGS[names[int(g.integers(len(names)))]](piece, g)
            left, right, _, _ = piece.bounds()
            span = (s, s + right - left)
            in_hole = hole is not None and span[0] < hole[1] + 0.15 and hole[0] - 0.15 < span[1]
            if span[1] < length - 0.1 and not in_hole:
                x, y, yaw = self.on_wall(k, s - left)
                self.put(piece, x, y, yaw)
                if kind < 0.3 and self.day:
                    c, sn = cos(yaw), sin(yaw)
                    power = g.uniform(1.5, 5.0)
                    colour = (power, power * 1.03, power * 1.1)
                    place, forward = (x - sn * 0.3, y + c * 0.3, 1.6), (-sn * 0.97, c * 0.97, -0.24)
                    self.lights.append(Light(place, forward, colour, 1.0, 2.2))
            s = span[1] + g.uniform(0.15, 1.2)

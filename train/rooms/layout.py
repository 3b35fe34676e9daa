"""Where things stand: furniture along the walls and in the middle of a room, and the lights above."""

from math import cos, pi, sin

import numpy as np

from train.rooms.appliances import APPLIANCES
from train.rooms.building import Building, Light
from train.rooms.furniture import FURNITURE
from train.rooms.pieces import Generator, Piece, cloth, pick, plain

STOCK = FURNITURE | APPLIANCES
# What stands along the walls, by kind of room.
ALONG: dict[str, list[str]] = {
    kind: names.split()
    for kind, names in {
        "bedroom": "nightstand cabinet wardrobe bookshelf desk chair armchair bin pile pile plant",
        "living": "sofa armchair television bookshelf cabinet plant floor_lamp table pile",
        "kitchen": "counter counter fridge cabinet bin table pile",
        "office": "desk desk bookshelf cabinet bin pile plant office_chair table",
        "dining": "cabinet bookshelf armchair plant chair floor_lamp counter",
        "bathroom": "basin toilet tub bin cabinet",
        "store": "bookshelf wardrobe cabinet table pile pile sofa desk bed bin",
    }.items()
}
CORRIDOR = ["bookshelf", "chair", "bin", "pile", "plant"]
FIRST = {"bedroom": "bed", "living": "sofa", "kitchen": "counter", "office": "desk", "bathroom": "basin"}
MIDDLE: dict[str, list[str]] = {
    "bedroom": ["pile", "office_chair", "coffee_table"],
    "living": ["coffee_table", "coffee_table", "armchair", "table"],
    "kitchen": ["table", "table", "chair"],
    "office": ["office_chair", "table", "chair", "pile"],
    "dining": ["table"],
    "bathroom": ["pile"],
    "store": ["table", "pile", "chair", "office_chair"],
}


class Layout(Building):
    """A furnished building of a kind drawn at random; see `Building` for `view`."""

    def __init__(self, g: Generator, view: float | None = None) -> None:
        kind = pick(g, list(ALONG)[:5] * 2 + list(ALONG))
        if view is not None:
            if view > 3.2:
                kind = kind if kind != "bathroom" else "living"
            elif 1.4 < view < 2.6 and g.uniform() < 0.12:
                kind = "corridor"
        super().__init__(kind, g, view)
        self.build()
        self.furnish()

    def furnish(self) -> None:
        g = self.g
        first = FIRST.get(self.kind)
        for wall in g.permutation(4):
            s = g.uniform(0.0, 0.5)
            for _ in range(9 if self.view is None else max(9, round(1.2 * self.wall_length(int(wall))))):
                names = ALONG.get(self.kind, CORRIDOR)
                piece, name = Piece(), first or names[int(g.integers(len(names)))]
                STOCK[name](piece, g)
                left, right, _, _ = piece.bounds()
                x, y, yaw = self.on_wall(int(wall), s - left)
                turn = g.normal(0, 0.25) if name in ("chair", "armchair", "office_chair", "pile") else 0.0
                inset = abs(turn) * 0.5 + (g.uniform(0, 0.1) if g.uniform() < 0.5 else 0.0)
                if self.try_put(piece, x - sin(yaw) * inset, y + cos(yaw) * inset, yaw + turn):
                    first = None
                    s += right - left
                    if name == "desk" and g.uniform() < 0.7:
                        seat = Piece()
                        FURNITURE["office_chair"](seat, g)
                        off, turn = g.uniform(1.0, 1.25), yaw + pi + g.normal(0, 0.6)
                        self.try_put(seat, x - sin(yaw) * off, y + cos(yaw) * off, turn)
                else:
                    s += 0.25
                s += g.exponential(0.15)
        crowd = 1.0 if self.view is None else max(1.0, self.x * self.y / 25)
        for _ in range(round(int(g.integers(2, 8)) * crowd) if self.kind in MIDDLE else 0):
            self._middle(MIDDLE[self.kind])
        if g.uniform() < 0.4:
            rug, w, d = Piece(), g.uniform(0.6, 1.4), g.uniform(0.5, 1.0)
            m = cloth(g)._replace(texture=g.choice(["rug", "carpet", "stripes", "spots"]))
            rug.box(-w, w, -d, d, 0, 0.012, m)
            self.put(rug, self.x * g.uniform(0.35, 0.65), self.y * g.uniform(0.35, 0.65), g.normal(0, 0.15))
        self._ceiling_lights()

    def _middle(self, names: list[str]) -> None:
        g, piece = self.g, Piece()
        name = names[int(g.integers(len(names)))]
        STOCK[name](piece, g)
        yaw = g.choice([0, pi / 2, pi, -pi / 2]) + g.normal(0, 0.12)
        x, y = g.uniform(0.8, self.x - 0.8), g.uniform(0.8, self.y - 0.8)
        if not self.try_put(piece, x, y, yaw, 0.1) or name != "table":
            return
        left, right, back, front = piece.bounds()
        sides = [
            (0.0, back - 0.25, 0.0),
            (0.0, front + 0.25, pi),
            (left - 0.25, (back + front) / 2, -pi / 2),
            (right + 0.25, (back + front) / 2, pi / 2),
        ]
        for side, (a, b, turn) in enumerate(sides):
            for shift in (-0.35, 0.35) if side < 2 and right - left > 1.3 else (0.0,):
                if g.uniform() < 0.65:
                    seat = Piece()
                    # The chairs of a table are alike.
                    FURNITURE["chair"](seat, np.random.default_rng(int(1000 * (x + y))))
                    a2 = a + shift + g.normal(0, 0.05)
                    at = x + cos(yaw) * a2 - sin(yaw) * b, y + sin(yaw) * a2 + cos(yaw) * b
                    self.put(seat, *at, yaw + turn + g.normal(0, 0.15))

    def _ceiling_lights(self) -> None:
        g = self.g
        lit = g.uniform() < (0.6 if self.day else 1.0)
        warm = g.uniform(0, 1)
        colour = np.array([1.0, 0.93 - 0.1 * warm, 0.86 - 0.3 * warm])
        tubes = self.kind in ("office", "store", "kitchen") and g.uniform() < 0.6
        many = 0 if self.view is None else round(self.x * self.y / 25)
        for _ in range(int(g.integers(1, 3)) + many):
            edge = 0.3 if not many else 0.12
            x, y = self.x * g.uniform(edge, 1 - edge), self.y * g.uniform(edge, 1 - edge)
            piece = Piece()
            glow = plain((1, 0.97, 0.9), glow=8.0 if lit else 0.0)
            drop = 0.08 if tubes else g.choice([0.1, 0.25, 0.6])
            if tubes:
                piece.box(-0.6, 0.6, -0.15, 0.15, self.z - 0.05, self.z, glow)
            else:
                piece.can(0, 0, self.z - drop, self.z, 0.01, plain((0.2, 0.2, 0.2)))
                radius, taper = g.uniform(0.12, 0.22), -g.uniform(0, 0.5)
                piece.can(0, 0, self.z - drop - 0.08, self.z - drop, radius, glow, taper)
            self.put(piece, x, y, g.choice([0, pi / 2]))
            if lit:
                power = tuple((g.uniform(2.0, 5.0) * colour).tolist())
                self.lights.append(Light((x, y, self.z - drop - 0.12), (0, 0, -1), power, 0.4, 3.5))

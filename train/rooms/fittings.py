"""What hangs on walls or is set into them: windows, doors, pictures, boards, shelves."""

from collections.abc import Callable

from train.rooms.furniture import clutter
from train.rooms.pieces import (
    CLOTHS,
    DARK,
    METAL,
    WHITE,
    Generator,
    Material,
    Piece,
    any_colour,
    jitter,
    pick,
    timber,
)


def window(p: Piece, g: Generator, day: bool = True) -> None:
    w, z0, z1 = g.uniform(0.7, 2.2), g.uniform(0.75, 1.1), g.uniform(1.9, 2.25)
    frame = WHITE if g.uniform() < 0.7 else timber(g)
    sky, scale, glow = jitter(g, (0.9, 0.95, 1.0), 0.03), g.uniform(0.35, 1.2), g.uniform(2, 6)
    view = Material("outside", sky, (0.9, 0.9, 0.88), scale, glow=glow)
    if not day:
        view = view._replace(first=(0.07, 0.07, 0.1), glow=0.05)
    p.wide(w, 0, 0.012, z0, z1, view)
    for x in (-w / 2 - 0.07, w / 2):
        p.box(x, x + 0.07, 0, 0.035, z0 - 0.07, z1 + 0.07, frame)
    p.wide(w, 0, 0.035, z1, z1 + 0.07, frame)
    p.box(-w / 2 - 0.1, w / 2 + 0.1, 0, 0.09, z0 - 0.07, z0, frame)
    dress, shut = g.uniform(), g.uniform(0.2, 1)
    if dress < 0.4:
        pale, scale = jitter(g, (0.93, 0.91, 0.86)), g.uniform(0.025, 0.05)
        slats = Material("blinds", pale, (0, 0, 0), scale, glow=g.uniform(0.5, 1.6) if day else 0.0)
        p.wide(w, 0.02, 0.05, z1 - shut * (z1 - z0), z1, slats)
    if dress > 0.3:
        drape = Material("folds", jitter(g, pick(g, CLOTHS)), (0, 0, 0), g.uniform(0.08, 0.16))
        hang, low, part = g.uniform(0.15, 0.6), g.choice([0.05, z0 - 0.2]), g.uniform(0.1, 0.25)
        p.box(-w / 2 - part, -w / 2 + hang * w / 2, 0.07, 0.13, low, z1 + 0.15, drape)
        p.box(w / 2 - hang * w / 2, w / 2 + part, 0.07, 0.13, low, z1 + 0.15, drape)
        p.box(-w / 2 - 0.3, w / 2 + 0.3, 0.09, 0.11, z1 + 0.15, z1 + 0.17, DARK)


def door(p: Piece, g: Generator) -> None:
    """A shut door in its frame."""
    leaf = WHITE if g.uniform() < 0.6 else timber(g)
    p.box(-0.41, 0.41, 0, 0.025, 0, 2.03, leaf._replace(texture="panels", scale=0.42, second=leaf.first))
    door_frame(p, g, 0.41, 2.03, leaf)
    p.ball(0.34, 0.06, 1.0, 0.03, 0.03, 0.03, METAL)


def door_frame(p: Piece, g: Generator, half: float, top: float, m: Material) -> None:
    for x in (-half - 0.08, half):
        p.box(x, x + 0.08, -0.1, 0.03, 0, top + 0.08, m)
    p.box(-half, half, -0.1, 0.03, top, top + 0.08, m)


def pictures(p: Piece, g: Generator) -> None:
    count = int(g.choice([1, 1, 1, 2, 3]))
    z, x = g.uniform(1.35, 1.7), 0.0
    for _ in range(count):
        w, h = g.uniform(0.12, 0.45), g.uniform(0.15, 0.4)
        frame = pick(g, [(0.08, 0.07, 0.06), (0.4, 0.26, 0.14), (0.9, 0.9, 0.88), (0.6, 0.5, 0.25)])
        kind = "picture" if g.uniform() < 0.8 else "paper"
        p.box(x, x + 2 * w, 0, 0.02, z - h, z + h, Material(kind, any_colour(g), frame, gloss=0.2))
        x += 2 * w + g.uniform(0.05, 0.25)


def board(p: Piece, g: Generator) -> None:
    w, white = g.uniform(0.4, 1.0), g.uniform() < 0.6
    m = WHITE if white else Material("carpet", (0.7, 0.52, 0.34), (0.6, 0.42, 0.28))
    p.box(-w, w, 0, 0.02, 0.95, g.uniform(1.6, 2.0), m)
    for _ in range(int(g.integers(0, 7))):
        x, z = g.uniform(-w, w) * 0.85, g.uniform(1.1, 1.55)
        note = Material("paper", (0.9, 0.9, 0.86), any_colour(g))
        p.box(x - 0.09, x + 0.09, 0.02, 0.024, z - 0.12, z + 0.12, note)


def wall_shelf(p: Piece, g: Generator) -> None:
    w, z, m = g.uniform(0.5, 1.3), g.uniform(1.2, 1.7), timber(g)
    for k in range(int(g.integers(1, 3))):
        low = z + 0.35 * k
        p.wide(w, 0, 0.22, low, low + 0.025, m)
        books = Material("books", any_colour(g), any_colour(g))
        p.box(-w / 2 + 0.03, 0, 0.02, 0.17, low + 0.025, low + 0.24, books)
        clutter(p, g, 0, w / 2, 0.02, 0.2, low + 0.025, 3)


def radiator(p: Piece, g: Generator) -> None:
    p.wide(g.uniform(0.5, 1.2), 0.03, 0.11, 0.12, 0.7, WHITE._replace(texture="folds", scale=0.06))


_ALL = (door, pictures, board, wall_shelf, radiator)
FITTINGS: dict[str, Callable[[Piece, Generator], None]] = {make.__name__: make for make in _ALL}

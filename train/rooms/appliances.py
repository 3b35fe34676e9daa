"""What kinds of room have of their own: kitchen runs, desks with screens, baths, and what fills floors."""

from collections.abc import Callable

import numpy as np

from train.rooms.furniture import clutter, crumpled, lamp, legs
from train.rooms.pieces import (
    CLOTHS,
    DARK,
    METAL,
    WHITE,
    Generator,
    Material,
    Piece,
    any_colour,
    cloth,
    fronts,
    jitter,
    pick,
    plain,
    thing,
    timber,
)


def screen(g: Generator, gloss: float) -> Material:
    return Material("screen", any_colour(g), (0, 0, 0), gloss=gloss)


def desk(p: Piece, g: Generator) -> None:
    w, d, h, m = g.uniform(1.0, 1.8), g.uniform(0.55, 0.8), g.uniform(0.7, 0.77), timber(g)
    p.wide(w, 0, d, h - 0.03, h, m)
    legs(p, w - 0.04, 0.02, d - 0.02, h - 0.03, 0.05, m if g.uniform() < 0.5 else METAL)
    if g.uniform() < 0.6:
        p.box(w / 2 - 0.45, w / 2 - 0.03, 0.05, d - 0.03, 0.02, h - 0.03, fronts(g, m))
    for k in range(int(g.integers(0, 3))):
        x, half = g.uniform(-w / 2, w / 2) * 0.6 + 0.1 * k, g.uniform(0.2, 0.3)
        tall, yaw = g.uniform(0.26, 0.38), g.normal(0, 0.2)
        p.box(x - half, x + half, 0.2, 0.24, h + 0.09, h + 0.09 + tall, screen(g, 0.5), yaw)
        p.box(x - 0.03, x + 0.03, 0.16, 0.19, h, h + 0.2, DARK)
        p.box(x - 0.12, x + 0.12, 0.12, 0.28, h, h + 0.015, DARK)
        p.box(x - 0.2, x + 0.2, 0.4, 0.53, h, h + 0.02, DARK if g.uniform() < 0.6 else WHITE, yaw)
    if g.uniform() < 0.4:
        lamp(p, g, g.choice([-1, 1]) * w * 0.4, 0.2, h)
    clutter(p, g, -w / 2, w / 2, 0.03, d, h, g.uniform(3, 12))


def counter(p: Piece, g: Generator) -> None:
    """A kitchen run: fronts, worktop, splashback, wall cupboards, sink, cooker."""
    w, d, h = g.uniform(1.6, 3.4), g.uniform(0.58, 0.66), g.uniform(0.86, 0.94)
    front = fronts(g, timber(g))._replace(scale=g.uniform(0.4, 0.55))
    first, second = jitter(g, pick(g, CLOTHS)), jitter(g, (0.4, 0.38, 0.35), 0.2)
    top = Material("stone", first, second, g.uniform(0.02, 0.3), 0.5)
    p.wide(w, 0, d - 0.03, 0.09, h - 0.035, front)
    p.wide(w, 0, d - 0.1, 0, 0.09, DARK)
    p.box(-w / 2 - 0.01, w / 2 + 0.01, 0, d, h - 0.035, h, top)
    end, kind = h + g.uniform(0.1, 0.55), "tiles" if g.uniform() < 0.6 else "brick"
    first = any_colour(g) if g.uniform() < 0.3 else (0.85, 0.83, 0.78)
    p.wide(w, 0, 0.012, h, end, Material(kind, first, (0.6, 0.58, 0.55), g.uniform(0.06, 0.15), 0.5))
    if g.uniform() < 0.75:
        low, tall = h + g.uniform(0.45, 0.6), g.uniform(0.55, 0.85)
        end = w / 2 if g.uniform() < 0.5 else g.uniform(0, w / 2)
        p.box(-w / 2, end, 0, 0.34, low, low + tall, front._replace(scale=0.5))
        if end < w / 2 - 0.6:
            p.box(end + 0.05, w / 2, 0, 0.32, low + 0.1, low + 0.45, DARK if g.uniform() < 0.5 else METAL)
    sink, basin = g.uniform(-w / 2 + 0.4, 0), plain((0.3, 0.3, 0.31), gloss=DARK.gloss)
    p.box(sink - 0.25, sink + 0.25, 0.12, d - 0.1, h - 0.03, h + 0.006, METAL)
    p.box(sink - 0.22, sink + 0.22, 0.15, d - 0.13, h - 0.03, h + 0.008, basin)
    p.can(sink, 0.08, h, h + 0.25, 0.015, METAL)
    p.box(sink - 0.012, sink + 0.012, 0.08, 0.25, h + 0.23, h + 0.255, METAL)
    if g.uniform() < 0.6:
        x, m = g.uniform(0.3, w / 2 - 0.3) if w > 1.3 else 0.3, pick(g, [METAL, DARK, WHITE])
        p.box(x - 0.3, x + 0.3, 0, d + 0.015, 0.02, h + 0.01, m)
        p.box(x - 0.22, x + 0.22, d, d + 0.02, 0.25, 0.65, DARK)
        p.box(x - 0.25, x + 0.25, d + 0.02, d + 0.05, 0.7, 0.72, METAL)
        for dx in (-0.14, 0.14):
            for y in (0.18, 0.45):
                p.can(x + dx, y, h + 0.01, h + 0.025, 0.09, DARK)
        if g.uniform() < 0.5:
            p.can(x + 0.14, 0.45, h + 0.025, h + g.uniform(0.1, 0.2), 0.11, METAL)
    if g.uniform() < 0.5:
        x = g.uniform(-w / 2 + 0.3, w / 2 - 0.3)
        p.box(x - 0.25, x + 0.25, 0.05, 0.42, h + 0.01, h + 0.3, pick(g, [METAL, DARK, WHITE]))
        p.box(x - 0.22, x + 0.12, 0.42, 0.425, h + 0.05, h + 0.26, DARK)
    clutter(p, g, -w / 2, w / 2, 0.05, d, h, g.uniform(4, 15))


def fridge(p: Piece, g: Generator) -> None:
    w, d, h = g.uniform(0.6, 0.9), g.uniform(0.6, 0.75), g.uniform(1.5, 1.85)
    m = pick(g, [WHITE, METAL, WHITE, DARK])
    split = h * g.choice([0.3, 0.65])
    p.wide(w, 0, d - 0.05, 0, h, m)
    p.wide(w, d - 0.045, d, 0.05, split - 0.008, m)
    p.wide(w, d - 0.045, d, split + 0.008, h, m)
    for z in (split - 0.35, split + 0.08):
        p.box(-w / 2 + 0.04, -w / 2 + 0.06, d, d + 0.04, z, z + 0.28, METAL)
    for _ in range(int(g.choice([0, 0, 3, 6]))):
        x, z = g.uniform(-w / 2 + 0.1, w / 2 - 0.1), g.uniform(0.8, h - 0.15)
        p.box(x - 0.07, x + 0.07, d, d + 0.004, z - 0.08, z + 0.08, thing(g))
    clutter(p, g, -w / 2, w / 2, 0.1, d, h, 2)


def television(p: Piece, g: Generator) -> None:
    w, d, h, m = g.uniform(1.0, 1.8), g.uniform(0.38, 0.5), g.uniform(0.4, 0.6), timber(g)
    p.wide(w, 0, d, 0, h, fronts(g, m))
    half, tall = g.uniform(0.35, 0.6), g.uniform(0.45, 0.7)
    p.box(-half, half, 0.15, 0.2, h + 0.06, h + 0.06 + tall, screen(g, 0.6))
    p.wide(0.3, 0.1, 0.28, h, h + 0.06, DARK)
    clutter(p, g, -w / 2, w / 2, 0.05, d, h, 3)


def basin(p: Piece, g: Generator) -> None:
    """A washstand with its mirror."""
    w, d, h = g.uniform(0.7, 1.6), g.uniform(0.48, 0.56), g.uniform(0.8, 0.88)
    p.wide(w, 0, d - 0.02, 0.08, h - 0.03, fronts(g, timber(g)))
    top = Material("stone", (0.85, 0.82, 0.76), jitter(g, (0.5, 0.45, 0.4), 0.1), 0.1, 0.6)
    p.wide(w, 0, d, h - 0.03, h, top)
    p.ball(0, d / 2 + 0.02, h, 0.24, 0.18, 0.03, WHITE)
    p.ball(0, d / 2 + 0.02, h + 0.012, 0.19, 0.14, 0.025, WHITE._replace(first=(0.7, 0.7, 0.7)))
    p.can(0, 0.07, h, h + 0.14, 0.02, METAL)
    p.wide(0.024, 0.07, 0.2, h + 0.12, h + 0.14, METAL)
    first, second = jitter(g, (0.5, 0.5, 0.48), 0.1), jitter(g, (0.7, 0.68, 0.62), 0.1)
    mirror = Material("stone", first, second, 0.9, 0.8)
    p.box(-w / 2 + 0.05, w / 2 - 0.05, 0, 0.02, h + 0.2, h + 1.0, mirror)
    clutter(p, g, -w / 2, w / 2, 0.05, d, h, 5)


def toilet(p: Piece, g: Generator) -> None:
    p.can(0, 0.45, 0, 0.4, 0.2, WHITE, 0.25)
    p.ball(0, 0.46, 0.41, 0.2, 0.25, 0.03, WHITE)
    p.wide(0.4, 0.02, 0.2, 0.38, 0.78, WHITE)


def tub(p: Piece, g: Generator) -> None:
    w = g.uniform(1.4, 1.7)
    p.wide(w, 0, 0.08, 0, 0.55, WHITE)
    p.wide(w, 0.67, 0.75, 0, 0.55, WHITE)
    p.wide(w, 0.08, 0.67, 0, 0.15, WHITE)
    for x in (-w / 2, w / 2 - 0.08):
        p.box(x, x + 0.08, 0, 0.75, 0, 0.55, WHITE)
    if g.uniform() < 0.6:
        end, curtain = -w / 2 + g.uniform(0.3, 1.2), cloth(g)._replace(texture="folds", scale=0.12)
        p.box(-w / 2, end, 0.72, 0.76, 0.1, 1.95, curtain)


def bin_(p: Piece, g: Generator) -> None:
    r, h = g.uniform(0.12, 0.2), g.uniform(0.25, 0.6)
    p.can(0, r, 0, h, r, thing(g), g.uniform(0, 0.25))
    p.can(0, r, h, h + 0.01, r * 0.95, DARK)


def plant(p: Piece, g: Generator) -> None:
    r, h = g.uniform(0.12, 0.22), g.uniform(0.2, 0.4)
    p.can(0, 0.3, 0, h, r, thing(g), 0.15)
    top = g.uniform(0.5, 1.5)
    p.can(0, 0.3, h, h + 0.6 * top, 0.015, plain((0.35, 0.28, 0.2)))
    green = jitter(g, (0.24, 0.38, 0.16), 0.06)
    for _ in range(int(g.integers(14, 34))):
        a, z = g.uniform(0, 6.28), h + top * g.uniform(0.1, 1)
        reach = g.uniform(0.02, 0.26)
        x, y, long = reach * np.cos(a), 0.3 + reach * np.sin(a), g.uniform(0.08, 0.17)
        leaf = plain(jitter(g, green, 0.05), gloss=0.2)
        p.ball(x, y, z, 0.03, long, 0.012, leaf, a - np.pi / 2, g.uniform(-0.9, 0.9))


def pile(p: Piece, g: Generator) -> None:
    """Things left on the floor: cartons, bags, clothes."""
    for _ in range(int(g.integers(1, 5))):
        x, y, m, yaw = g.normal(0, 0.25), 0.3 + g.uniform(-0.05, 0.3), thing(g), g.uniform(0, 3.1)
        kind = g.uniform()
        if kind < 0.45:
            w, d, h = g.uniform(0.1, 0.28), g.uniform(0.1, 0.22), g.uniform(0.1, 0.5)
            if g.uniform() < 0.5:
                m = plain(jitter(g, (0.66, 0.5, 0.34)))
            p.block(x, y, w, d, 0, h, m, yaw)
            clutter(p, g, x - w, x + w, y - d, y + d, h, 1)
        elif kind < 0.7:
            rx, ry, rz = g.uniform(0.12, 0.25), g.uniform(0.1, 0.18), g.uniform(0.14, 0.24)
            p.ball(x, y, 0.16, rx, ry, rz, cloth(g), yaw, 0.3)
        else:
            crumpled(p, g, x, y, 0.03, 4, (0.12, 0.1), (0.1, 0.08, 0.04), (0.25, 0.2, 0.1), yaw, 0.3)


_ALL = (desk, counter, fridge, television, basin, toilet, tub, bin_, plant, pile)
APPLIANCES: dict[str, Callable[[Piece, Generator], None]] = {make.__name__.rstrip("_"): make for make in _ALL}

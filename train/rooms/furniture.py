"""Pieces of furniture and the small objects on them."""

from collections.abc import Callable

import numpy as np

from train.rooms.pieces import (
    DARK,
    METAL,
    Generator,
    Material,
    Piece,
    any_colour,
    cloth,
    fronts,
    jitter,
    plain,
    thing,
    timber,
)


def clutter(
    p: Piece, g: Generator, x0: float, x1: float, y0: float, y1: float, z: float, count: float
) -> None:
    """About `count` small objects standing on a surface at height z, often in groups."""
    if x1 - x0 < 0.1 or y1 - y0 < 0.1:
        return
    for _ in range(int(g.poisson(count))):
        x, y = g.uniform(x0 + 0.04, x1 - 0.04), g.uniform(y0 + 0.04, y1 - 0.04)
        m, yaw, kind = thing(g), g.uniform(0, 3.2), g.uniform()
        if kind < 0.24:  # a bottle, jar, can or cup
            r, h = g.uniform(0.025, 0.055), g.uniform(0.08, 0.26)
            p.can(x, y, z, z + h, r, m, g.uniform(-0.15, 0.2))
            if g.uniform() < 0.5:
                p.can(x, y, z + h, z + h * g.uniform(1.15, 1.45), r * g.uniform(0.3, 0.8), thing(g))
        elif kind < 0.48:  # a carton or a device
            w, d, h = g.uniform(0.03, 0.16), g.uniform(0.03, 0.1), g.uniform(0.05, 0.26)
            p.block(x, y, w, d, z, z + h, m, yaw)
        elif kind < 0.68:  # sheets, books lying, a stack of them
            top = z
            for _ in range(int(g.integers(1, 5))):
                w, d, h = g.uniform(0.07, 0.14), g.uniform(0.09, 0.13), g.uniform(0.006, 0.04)
                p.block(x, y, w, d, top, top + h, thing(g), yaw + g.normal(0, 0.2))
                top += h
        elif kind < 0.78:
            r = g.uniform(0.03, 0.11)
            p.ball(x, y, z + r * 0.85, r, r, r * g.uniform(0.7, 1), m._replace(texture="plain"))
        elif kind < 0.86:  # a bowl or a vase with something in it
            r = g.uniform(0.06, 0.14)
            p.can(x, y, z, z + r * g.uniform(0.6, 2), r * 0.8, m, 0.3)
            for _ in range(int(g.integers(2, 6))):
                q = r * g.uniform(0.25, 0.5)
                dx, dy = g.normal(0, r / 2.5), g.normal(0, r / 2.5)
                p.ball(x + dx, y + dy, z + r * 1.2, q, q, q * g.uniform(0.8, 1.6), thing(g))
        elif kind < 0.93:
            crumpled(p, g, x, y, z + 0.02, 3, (0.08, 0.06), (0.08, 0.06, 0.03), (0.2, 0.14, 0.08), yaw, 0.2)
        else:  # a framed picture that leans back
            w, h = g.uniform(0.06, 0.14), g.uniform(0.08, 0.16)
            p.block(x, y, w, 0.01, z, z + 2 * h, m._replace(texture="picture"), g.normal(0, 0.3), 0.2)


def crumpled(
    p: Piece, g: Generator, x: float, y: float, z: float, count: int, spread: tuple[float, float],
    least: tuple[float, ...], most: tuple[float, ...], yaw: float, tilt: float,
) -> None:  # fmt: skip
    """Crumpled cloth: a few flat balls, with radii from `least` to `most`."""
    for _ in range(count):
        dx, dy = g.normal(0, spread[0]), g.normal(0, spread[1])
        rx, ry, rz = g.uniform(least, most)
        p.ball(x + dx, y + dy, z, rx, ry, rz, cloth(g), yaw, g.normal(0, tilt))


def legs(p: Piece, w: float, y0: float, y1: float, z: float, thick: float, m: Material) -> None:
    for x in (-w / 2, w / 2 - thick):
        for y in (y0, y1 - thick):
            p.box(x, x + thick, y, y + thick, 0, z, m)


def table(p: Piece, g: Generator, low: bool = False) -> None:
    w, d = (g.uniform(0.7, 1.3), g.uniform(0.45, 0.75)) if low else (g.uniform(0.9, 2.0), g.uniform(0.6, 1.0))
    h, m = (g.uniform(0.35, 0.5) if low else g.uniform(0.7, 0.78)), timber(g)
    if not low and g.uniform() < 0.3:
        r = g.uniform(0.45, 0.7)
        p.can(0, r, h - 0.035, h, r, m._replace(gloss=0.5))
        p.can(0, r, 0.04, h - 0.035, 0.05, m, -0.2)
        p.can(0, r, 0, 0.04, 0.28, m)
        clutter(p, g, -r * 0.6, r * 0.6, r * 0.4, r * 1.6, h, 6)
        return
    p.wide(w, 0, d, h - 0.035, h, m if g.uniform() < 0.8 else cloth(g))
    if g.uniform() < 0.6:
        p.box(-w / 2 + 0.05, w / 2 - 0.05, 0.04, d - 0.04, h - 0.11, h - 0.035, m)
    legs(p, w - 0.06, 0.03, d - 0.03, h - 0.035, g.uniform(0.04, 0.08), m if g.uniform() < 0.7 else METAL)
    if low and g.uniform() < 0.4:
        p.box(-w / 2 + 0.05, w / 2 - 0.05, 0.05, d - 0.05, 0.12, 0.14, m)
    clutter(p, g, -w / 2, w / 2, 0, d, h, g.uniform(2, 9))


def coffee_table(p: Piece, g: Generator) -> None:
    table(p, g, low=True)


def chair(p: Piece, g: Generator) -> None:
    w, d, h, m = g.uniform(0.4, 0.5), g.uniform(0.4, 0.48), g.uniform(0.43, 0.48), timber(g)
    top = g.uniform(0.82, 1.05)
    legs(p, w, 0.02, d, h, g.uniform(0.025, 0.045), m)
    p.wide(w, 0, d, h, h + 0.03, m if g.uniform() < 0.5 else cloth(g))
    if g.uniform() < 0.5:
        slats = int(g.integers(2, 6))
        for x in np.linspace(-w / 2, w / 2 - 0.03, slats):
            p.box(x, x + 0.03, 0, 0.025, h, top, m, 0.0, 0.1)
        p.wide(w, -0.03, 0, top - 0.08, top, m)
    else:
        p.wide(w, -0.02, 0.02, h + 0.05, top, m if g.uniform() < 0.5 else cloth(g), 0.12)


def office_chair(p: Piece, g: Generator) -> None:
    m = cloth(g) if g.uniform() < 0.5 else DARK
    for k in range(5):
        p.box(-0.28, 0.28, 0.23, 0.27, 0.04, 0.08, DARK, k * 0.628)
    p.can(0, 0.25, 0.08, 0.42, 0.03, DARK)
    p.wide(0.5, 0.0, 0.5, 0.42, 0.5, m)
    top = g.uniform(0.9, 1.2)
    p.wide(0.46, -0.03, 0.04, 0.55, top, m, 0.12)
    for x in (-0.29, 0.25):
        p.box(x, x + 0.04, 0.1, 0.42, 0.64, 0.67, DARK)
        p.box(x, x + 0.04, 0.22, 0.26, 0.45, 0.64, DARK)


def bed(p: Piece, g: Generator) -> None:
    """Its head stands at the wall."""
    w, length, h = g.choice([0.95, 1.0, 1.4, 1.6, 1.85]), g.uniform(1.9, 2.1), g.uniform(0.4, 0.62)
    frame, sheet, cover = timber(g), cloth(g), cloth(g)
    side = w / 2 + 0.03
    p.box(-side, side, 0, length + 0.03, 0.1, h - 0.2, frame if g.uniform() < 0.6 else cloth(g))
    p.wide(w, 0.04, length, h - 0.2, h, sheet)
    if g.uniform() < 0.85:
        p.box(-w / 2 - 0.05, w / 2 + 0.05, 0, 0.05, 0.1, h + g.uniform(0.2, 0.7), frame)
    if g.uniform() < 0.4:
        p.box(-w / 2 - 0.05, w / 2 + 0.05, length, length + 0.05, 0.1, h + g.uniform(0.0, 0.3), frame)
    start = g.uniform(0.5, 0.9)
    p.box(-side, side, start, length + 0.02, h - g.uniform(0.1, 0.4), h + 0.04, cover)
    for _ in range(int(g.integers(0, 9))):  # the cover is seldom flat
        x, y = g.uniform(-0.4, 0.4) * w, g.uniform(start + 0.2, length - 0.2)
        rx, ry, rz = g.uniform((0.15, 0.1, 0.05), (0.45, 0.3, 0.14))
        p.ball(x, y, h + 0.02, rx, ry, rz, cover, g.uniform(0, 3.1))
    pillow = cloth(g)
    for x in [0.0] if w < 1.2 else [-w / 4, w / 4]:
        for k in range(int(g.integers(1, 3))):
            shift, slip = g.normal(0, 0.05), pillow if k == 0 else cloth(g)
            y, z = 0.25 + 0.12 * k, h + 0.09 + 0.06 * k
            p.ball(x + shift, y, z, 0.33, 0.22, 0.1, slip, g.normal(0, 0.1), g.uniform(0.1, 0.6))
    clutter(p, g, -w / 2, w / 2, start, length, h + 0.04, g.choice([0, 0, 2, 5]))


def sofa(p: Piece, g: Generator, seats: int = 0) -> None:
    seats = seats or int(g.integers(2, 4))
    w, d = seats * g.uniform(0.6, 0.75), g.uniform(0.8, 1.0)
    h, arm = g.uniform(0.38, 0.46), g.uniform(0.1, 0.22)
    m, back = cloth(g), g.uniform(0.72, 0.95)
    p.wide(w, 0.05, d - 0.05, 0.06, h - 0.13, m)
    p.wide(w, 0.0, 0.2, 0.06, back - 0.06, m)
    for x in (-w / 2 - arm, w / 2):
        p.box(x, x + arm, 0, d - 0.03, 0.04, h + g.uniform(0.12, 0.2), m)
    for k in range(seats):
        x0 = -w / 2 + k * w / seats
        p.box(x0 + 0.01, x0 + w / seats - 0.01, 0.2, d, h - 0.13, h + 0.02, m)
        p.box(x0 + 0.02, x0 + w / seats - 0.02, 0.17, 0.35, h, back, m, 0.0, 0.2)
    for _ in range(int(g.integers(0, 4))):
        x, half, yaw = g.uniform(-w / 2, w / 2), g.uniform(0.17, 0.25), g.normal(0, 0.4)
        p.box(x - half, x + half, 0.38, 0.5, h, h + 2 * half, cloth(g), yaw, 0.35)
    if g.uniform() < 0.3:
        p.ball(g.uniform(-w / 2, w / 2), 0.55, h + 0.03, 0.35, 0.3, 0.09, cloth(g), g.normal(0, 0.5))


def armchair(p: Piece, g: Generator) -> None:
    sofa(p, g, 1)


def cabinet(p: Piece, g: Generator) -> None:
    w, d, h, m = g.uniform(0.5, 1.6), g.uniform(0.35, 0.55), g.uniform(0.6, 1.15), timber(g)
    p.wide(w, 0, d, 0.06, h - 0.03, fronts(g, m))
    p.box(-w / 2 + 0.03, w / 2 - 0.03, 0.03, d - 0.05, 0, 0.06, DARK)
    p.box(-w / 2 - 0.015, w / 2 + 0.015, 0, d + 0.02, h - 0.03, h, m)
    clutter(p, g, -w / 2, w / 2, 0.03, d, h, g.uniform(2, 9))


def wardrobe(p: Piece, g: Generator) -> None:
    w, d, h = g.uniform(0.8, 1.8), g.uniform(0.5, 0.65), g.uniform(1.75, 2.2)
    p.wide(w, 0, d, 0.0, h, fronts(g, timber(g)))
    clutter(p, g, -w / 2, w / 2, 0.05, d, h, 2)


def bookshelf(p: Piece, g: Generator) -> None:
    w, d, h, m = g.uniform(0.6, 1.6), g.uniform(0.24, 0.38), g.uniform(0.9, 2.2), timber(g)
    p.wide(w, 0, 0.015, 0, h, m)
    for x in (-w / 2 - 0.025, w / 2):
        p.box(x, x + 0.025, 0, d, 0, h, m)
    levels = max(2, round(h / g.uniform(0.3, 0.42)))
    for k in range(levels + 1):
        z = 0.04 + (h - 0.065) * k / levels
        p.wide(w, 0, d, z, z + 0.022, m)
        if k == levels:
            clutter(p, g, -w / 2, w / 2, 0.03, d, h, 2)
            continue
        room, x = (h - 0.065) / levels - 0.022, -w / 2 + 0.01
        z += 0.022
        while x < w / 2 - 0.1:
            run = min(g.uniform(0.1, 0.6), w / 2 - x - 0.01)
            if g.uniform() < 0.62:
                row = Material("books", any_colour(g), any_colour(g))
                p.box(x, x + run, 0.02, d - g.uniform(0.03, 0.12), z, z + room * g.uniform(0.6, 0.95), row)
            else:
                clutter(p, g, x, x + run, 0.05, d, z, 1.2)
            x += run + 0.01


def nightstand(p: Piece, g: Generator) -> None:
    w, d, h, m = g.uniform(0.4, 0.6), g.uniform(0.35, 0.45), g.uniform(0.45, 0.65), timber(g)
    p.wide(w, 0, d, 0.0, h, fronts(g, m))
    lamp(p, g, 0, d / 2, h)
    clutter(p, g, -w / 2, w / 2, 0.0, d, h, 2)


def lamp(p: Piece, g: Generator, x: float, y: float, z: float) -> None:
    h, r, lit = g.uniform(0.25, 0.4), g.uniform(0.1, 0.2), g.uniform() < 0.5
    base = thing(g)
    p.can(x, y, z, z + 0.025, 0.07, base)
    p.can(x, y, z + 0.025, z + h, 0.02 if g.uniform() < 0.5 else 0.05, base, -0.3)
    shade = plain(jitter(g, (0.93, 0.86, 0.7)), glow=g.uniform(1.5, 4) if lit else 0.0)
    p.can(x, y, z + h, z + h + g.uniform(0.16, 0.3), r, shade, -g.uniform(0.05, 0.35))


def floor_lamp(p: Piece, g: Generator) -> None:
    h = g.uniform(1.2, 1.5)
    p.can(0, 0.2, 0, 0.03, 0.14, DARK)
    p.can(0, 0.2, 0.03, h, 0.015, DARK if g.uniform() < 0.6 else METAL)
    shade = plain(jitter(g, (0.95, 0.88, 0.74)), glow=g.choice([0.0, 2.5]))
    p.can(0, 0.2, h, h + g.uniform(0.2, 0.35), g.uniform(0.13, 0.2), shade, -0.2)


_ALL = (
    table, coffee_table, chair, office_chair, bed, sofa, armchair, cabinet, wardrobe, bookshelf, nightstand,
    floor_lamp,
)  # fmt: skip
FURNITURE: dict[str, Callable[[Piece, Generator], None]] = {make.__name__: make for make in _ALL}

"""Procedural textures of indoor surfaces, evaluated at points of a surface given in metres."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

LATTICE = 128


@dataclass(frozen=True)
class Patch:
    """n surface points of one texture.

    `u`, `v` (n,) metres from the face's middle (v upwards on upright faces); `wide`, `high` (n,) half sizes;
    `first`, `second` (3, n) linear colours; `scale` (n,) metres; `phase` (n,) the object's number, 0..128;
    `pixel` (n,) metres that one sample covers.
    """

    u: Tensor
    v: Tensor
    wide: Tensor
    high: Tensor
    first: Tensor
    second: Tensor
    scale: Tensor
    phase: Tensor
    pixel: Tensor


@lru_cache(maxsize=1)
def _lattice() -> Tensor:
    generator = torch.Generator().manual_seed(20120607)
    return torch.rand(1, 1, LATTICE, LATTICE, generator=generator)


@lru_cache(maxsize=1)
def _wrapped() -> Tensor:
    return pad(_lattice(), (0, 1, 0, 1), mode="circular")


def noise(u: Tensor, v: Tensor) -> Tensor:
    """Smooth value noise in 0..1 over a unit lattice."""
    grid = torch.stack([u, v], -1).remainder_(LATTICE)
    cell = grid.floor()
    part = grid - cell
    grid = cell + part * part * (3 - 2 * part)
    grid = grid.mul_(2 / LATTICE).sub_(1)[None, None]
    return grid_sample(_wrapped(), grid, align_corners=True, padding_mode="border")[0, 0, 0]


def fractal(u: Tensor, v: Tensor, octaves: int = 3) -> Tensor:
    """Sum of noise at doubling frequencies, in 0..1."""
    total, weight = torch.zeros_like(u), 0.0
    for octave in range(octaves):
        share = 0.5**octave
        total += share * noise(u * 2**octave + 17.3 * octave, v * 2**octave + 5.1 * octave)
        weight += share
    return total / weight


def scatter(i: Tensor, j: Tensor) -> Tensor:
    """A random number in 0..1 for each pair of whole numbers."""
    k = (i * 5.0 + j * 131.0).remainder(LATTICE * LATTICE).long()
    return _lattice().flatten()[k * 7919 % (LATTICE * LATTICE)]


def _mix(p: Patch, share: Tensor) -> Tensor:
    return p.first + (p.second - p.first) * share


def _line(distance: Tensor, half: float | Tensor, pixel: Tensor) -> Tensor:
    """1 within `half` of a line, 0 beyond, softened over a sample and faded where thinner than one."""
    soft = pixel.clamp(min=1e-3)
    return ((half - distance) / soft + 0.5).clamp(0, 1) * (2 * half / soft).clamp(max=1)


def _wave(x: Tensor, period: Tensor, pixel: Tensor) -> Tensor:
    """A soft square wave in 0..1 that fades to its mean where a sample covers more than half a period."""
    sharp = (period / pixel / 6).clamp(0.3, 8)
    wave = ((x * (2 * pi) / period).sin() * sharp).clamp(-1, 1)
    return 0.5 + 0.5 * wave * (1 - 2 * pixel / period).clamp(0, 1)


def _fade(pixel: Tensor, frequency: Tensor | float) -> Tensor:
    return (1.5 - 2 * pixel * frequency).clamp(0, 1)


def _cells(x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The whole-number cell of x and its distance in metres to the nearer border of that cell."""
    scaled = x / size
    cell = scaled.floor()
    return cell, (0.5 - (scaled - cell - 0.5).abs()) * size


def plain(p: Patch) -> Tensor:
    return p.first * (0.94 + 0.12 * fractal(p.u * 0.9 + p.phase, p.v * 0.9 + p.phase, 3))


def wood(p: Patch) -> Tensor:
    along = p.wide > p.high
    x, y = torch.where(along, p.u, p.v), torch.where(along, p.v, p.u)
    bend = noise(x * 1.5 + p.phase, y * 4)
    grain = noise(x * 2.5 + p.phase, (y + 0.03 * bend) * 55 / p.scale + p.phase)
    fine = noise(x * 9 + p.phase, y * 300)
    share = 0.65 * grain + 0.15 * bend + 0.2 * (0.5 + (fine - 0.5) * _fade(p.pixel, 150))
    return _mix(p, share)


def planks(p: Patch) -> Tensor:
    row, dv = _cells(p.v + p.phase, p.scale)
    column, du = _cells(p.u + scatter(row, row * 0 + 3) * 5, 8 * p.scale)
    tone = scatter(row, column)
    grain = noise(p.u * 3 + tone * 60, p.v * 45 + tone * 60)
    seam = torch.maximum(_line(dv, 0.0018, p.pixel), _line(du, 0.0015, p.pixel))
    share = 0.55 * tone + 0.45 * (0.5 + (grain - 0.5) * _fade(p.pixel, 22))
    return _mix(p, share) * (1 - 0.55 * seam)


def _masonry(p: Patch, stretch: float, shift: float, grout: float) -> Tensor:
    row, dv = _cells(p.v + p.phase, p.scale)
    column, du = _cells(p.u + p.phase + row.remainder(2) * (shift * stretch) * p.scale, stretch * p.scale)
    tone = 0.82 + 0.2 * scatter(row, column) + 0.16 * fractal(p.u * 7 + 9 * row, p.v * 7 + 5 * column, 2)
    joint = torch.maximum(_line(dv, grout, p.pixel), _line(du, grout, p.pixel))
    return (p.first * tone) * (1 - joint) + p.second * joint


def tiles(p: Patch) -> Tensor:
    return _masonry(p, 1.0, 0.0, 0.003)


def brick(p: Patch) -> Tensor:
    return _masonry(p, 3.0, 0.5, 0.005)


def carpet(p: Patch) -> Tensor:
    tuft = noise(p.u * 160 + p.phase, p.v * 160) - 0.5
    speck = noise(p.u * 45, p.v * 45 + p.phase) - 0.5
    worn = fractal(p.u * 1.3 + p.phase, p.v * 1.3, 2)
    shade = 0.9 + 0.2 * worn + 0.55 * tuft * _fade(p.pixel, 80) + 0.25 * speck * _fade(p.pixel, 22)
    return _mix(p, (0.5 * worn + speck * _fade(p.pixel, 22)).clamp(0, 1)) * shade


def stripes(p: Patch) -> Tensor:
    weave = 0.9 + 0.2 * noise(p.u * 90 + p.phase, p.v * 90)
    wide = _wave(p.u + p.phase, p.scale, p.pixel)
    thin = _wave(p.u + p.phase, p.scale * 0.31, p.pixel)
    return _mix(p, 0.7 * wide + 0.3 * thin) * weave


def checks(p: Patch) -> Tensor:
    share = 0.5 * _wave(p.u + p.phase, p.scale, p.pixel) + 0.5 * _wave(p.v + p.phase, p.scale, p.pixel)
    return _mix(p, share) * (0.9 + 0.2 * noise(p.u * 70, p.v * 70 + p.phase))


def stone(p: Patch) -> Tensor:
    cloud = fractal(p.u / p.scale + p.phase, p.v / p.scale + p.phase, 4)
    speck = noise(p.u * 150 + p.phase, p.v * 150) - 0.5
    return _mix(p, ((cloud - 0.5) * 2.2 + 0.5 + speck * _fade(p.pixel, 75)).clamp(0, 1))


def spots(p: Patch) -> Tensor:
    field = fractal(p.u / p.scale + p.phase, p.v / p.scale, 2)
    share = ((field - 0.52) * 9).clamp(0, 1)
    ring = ((field - 0.66) * 12).clamp(0, 1)
    return _mix(p, share * (1 - 0.6 * ring)) * (0.92 + 0.16 * noise(p.u * 60, p.v * 60))


def books(p: Patch) -> Tensor:
    warped = p.u + 0.03 * noise(p.u * 9 + p.phase, p.phase)
    spine, edge = _cells(warped + p.phase, torch.full_like(p.u, 0.033))
    hue = torch.stack([scatter(spine, spine * 0 + k) for k in (11, 29, 53)])
    light = scatter(spine, spine * 0 + 71)
    colour = (0.03 + 0.55 * light * light) * (0.35 + hue) * (1 + 0.5 * (p.first - 0.5))
    height = p.v / p.high
    title = ((height - 0.5 + scatter(spine, spine * 0 + 83)).abs() < 0.12) & (light > 0.3)
    colour = torch.where(title, 0.35 + 0.4 * colour, colour)
    short = height > 0.72 + 0.5 * scatter(spine, spine * 0 + 97)
    return torch.where(short, 0.02, colour) * (1 - 0.7 * _line(edge, 0.0025, p.pixel))


def panels(p: Patch) -> Tensor:
    """Cabinet fronts: doors about `scale` wide or, by the phase, drawers; handles in the second colour."""
    drawers = p.phase.remainder(1) < 0.45
    across = torch.where(drawers, 2 * p.scale, p.scale)
    down = torch.where(drawers, 0.5 * p.scale, 4 * p.scale)
    width = 2 * p.wide / (2 * p.wide / across).round().clamp(min=1)
    height = 2 * p.high / (2 * p.high / down).round().clamp(min=1)
    _, du = _cells(p.u + p.wide, width)
    row, dv = _cells(p.v + p.high, height)
    edge = torch.minimum(du, dv)
    gap = _line(edge, 0.004, p.pixel)
    groove = _line((edge - 0.055).abs(), 0.004, p.pixel) * (p.phase.remainder(3) < 1.6)
    upright = (du - 0.04).abs().maximum(((p.v + p.high) / height - row - 0.7).abs() * height * 0.15)
    level = (dv - 0.5 * height).abs().maximum((du - 0.5 * width).abs() * 0.15)
    handle = _line(torch.where(drawers, level, upright), 0.009, p.pixel)
    grain = 0.9 + 0.2 * noise(p.u * 30 + p.phase, p.v * 3 + p.phase)
    return p.first * grain * (1 - 0.75 * gap) * (1 - 0.3 * groove) * (1 - handle) + p.second * handle


def picture(p: Patch) -> Tensor:
    edge = torch.minimum(p.wide - p.u.abs(), p.high - p.v.abs())
    size = torch.minimum(p.wide, p.high)
    x, y = p.u / size, p.v / size
    shapes = ((fractal(x * 1.1 + p.phase, y * 1.7 + 0.7 * p.phase, 4) - 0.5) * 5 + 0.5).clamp(0, 1)
    tone = fractal(x * 2.3 - p.phase, y * 2.9 + p.phase, 4)
    ground = torch.stack([0.55 * tone, 0.5 * tone, 0.42 * tone]) + 0.12 * (
        y > 0.2 * (p.phase.remainder(7) - 3)
    )
    art = (ground + (p.first - ground) * shapes) * (0.3 + 1.2 * tone)
    mat = (p.phase.remainder(1) < 0.5) & (edge < 0.28 * size)
    art = torch.where(mat, torch.tensor(0.75), art)
    return torch.where(edge < 0.1 * size, p.second, art)


def outside(p: Patch) -> Tensor:
    """What a window shows: sky over greenery or walls, behind glazing bars in the second colour."""
    height = p.v / p.high + 0.6 * (fractal(p.u * 2 + p.phase, p.v * 2, 3) - 0.5)
    sky = ((height + p.phase.remainder(1) - 0.3) * 3).clamp(0, 1)
    leaf = 0.15 + 0.85 * fractal(p.u * 9 + p.phase, p.v * 9, 3)
    ground = torch.stack([0.28 * leaf, 0.34 * leaf, 0.2 * leaf])
    _, du = _cells(p.u + p.wide, p.scale)
    _, dv = _cells(p.v + p.high, 1.4 * p.scale)
    bar = _line(torch.minimum(du, dv), 0.012, p.pixel)
    return (ground + (p.first - ground) * sky) * (1 - bar) + 0.12 * p.second * bar


def blinds(p: Patch) -> Tensor:
    slat = (p.v / p.scale).remainder(1)
    shade = 0.55 + 0.45 * slat * _fade(p.pixel, 1 / p.scale)
    return p.first * shade * (0.8 + 0.3 * noise(p.u + p.phase, p.v * 2))


def folds(p: Patch) -> Tensor:
    sway = noise(p.u * 5 + p.phase, p.v * 0.4) + 0.3 * noise(p.u * 14, p.v * 0.8 + p.phase)
    return p.first * (0.42 + 0.58 * (0.5 + 0.5 * (p.u * (2 * pi) / p.scale + 4 * sway).sin()))


def screen(p: Patch) -> Tensor:
    frame = torch.minimum(p.wide - p.u.abs(), p.high - p.v.abs()) < 0.02
    row, _ = _cells(p.v, torch.full_like(p.v, 0.09))
    column, _ = _cells(p.u + 0.3 * scatter(row, row), torch.full_like(p.u, 0.2))
    lit = torch.stack([scatter(row + k, column) for k in (1, 2, 3)])
    shown = torch.where(p.phase.remainder(1) < 0.5, 0.015 + 0 * lit, p.first * (0.3 + 0.7 * lit))
    return torch.where(frame, torch.tensor(0.02), shown)


def paper(p: Patch) -> Tensor:
    line = _wave(p.v, torch.full_like(p.v, 0.022), p.pixel) > 0.55
    ink = line & (noise(p.u * 60 + p.phase, (p.v / 0.022).floor() * 7) > 0.42) & (p.u.abs() < 0.82 * p.wide)
    head = (p.v > 0.6 * p.high) & (p.v < 0.82 * p.high) & (p.u.abs() < 0.7 * p.wide)
    return torch.where(head, p.second, torch.where(ink, 0.35 * p.first, p.first))


def rug(p: Patch) -> Tensor:
    edge = torch.minimum(p.wide - p.u.abs(), p.high - p.v.abs())
    band = _wave(edge + 0.02, p.scale, p.pixel) * (edge < 2.2 * p.scale)
    field = fractal(p.u.abs() / p.scale + p.phase, p.v.abs() / p.scale, 3)
    share = torch.maximum(band, ((field - 0.5) * 6).clamp(0, 1))
    return _mix(p, share) * (0.8 + 0.4 * noise(p.u * 130, p.v * 130))


TEXTURES: tuple[Callable[[Patch], Tensor], ...] = (
    plain, wood, planks, tiles, brick, carpet, stripes, checks, stone, spots,
    books, panels, picture, outside, blinds, folds, screen, paper, rug,
)  # fmt: skip
NUMBER: dict[str, int] = {texture.__name__: number for number, texture in enumerate(TEXTURES)}

"""Light: the linear radiance of the visible points."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, pad

from train.rooms.building import Light
from train.rooms.raycast import BOX, CONE, ELLIPSOID, Solids, View, cast
from train.rooms.scene import Scene
from train.rooms.textures import TEXTURES, Patch

SHADOW_MAP = 256
SHADOWED = 2  # lights that cast shadows, the strongest ones
BAND = 96  # rows of samples shaded at a time


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@dataclass(frozen=True)
class _Seen:
    """What n rays see: the solid's number, the point and the ray that meets it, its place and normal."""

    owner: Tensor  # (n,)
    point: Tensor  # (3, n) world
    rays: Tensor  # (3, n) world, forward component 1
    local: Tensor  # (3, n) in the solid's unit frame
    normal: Tensor  # (3, n) world
    face: Tensor  # (n,) axis that a flat face is square to, 3 for a round one


def radiance(scene: Scene, view: View, depth: Tensor, index: Tensor) -> Tensor:
    """Linear RGB (3, H, W) at the samples of a view, given what `cast` found there."""
    coarse = View(view.origin, view.axes, view.xs[::2], view.ys[::2])
    seen = _seen(scene.solids, coarse, depth[::2, ::2], index[::2, ::2])
    shape = (3, len(coarse.ys), len(coarse.xs))
    ambient = _occlusion(seen.point.reshape(shape), seen.normal.reshape(shape), depth.shape)
    ranked = sorted(scene.lights, key=lambda x: -x.power[0] * (x.spread > 0))
    lamps: list[tuple[Light, _Shadow | None]] = []
    for rank, lamp in enumerate(ranked):
        if lamp.spread > 0 and rank >= scene.most_lights:
            continue
        casts = lamp.spread > 0 and rank < SHADOWED
        lamps.append((lamp, _shadow(scene.solids, scene.surface[:, 2], lamp) if casts else None))
    bands = []
    for top in range(0, len(view.ys), BAND):  # a band's tensors stay in the cache
        rows = slice(top, top + BAND)
        band = View(view.origin, view.axes, view.xs, view.ys[rows])
        seen = _seen(scene.solids, band, depth[rows], index[rows])
        colour = _shade(scene, lamps, seen, depth[rows].flatten() * (view.xs[1] - view.xs[0]), ambient[rows])
        bands.append(colour.reshape(3, -1, len(view.xs)))
    return torch.cat(bands, 1)


def _seen(solids: Solids, view: View, depth: Tensor, index: Tensor) -> _Seen:
    owner = index.flatten().long()
    rays = view.axes[0, :, None, None] * view.xs + (
        view.axes[1, :, None, None] * view.ys[:, None] + view.axes[2, :, None, None]
    )
    rays = rays.reshape(3, -1)
    point = view.origin[:, None] + rays * depth.flatten()
    frame = solids.frame.reshape(-1, 9).T.contiguous().index_select(1, owner)  # (9, n)
    offset = point - solids.centre.T.contiguous().index_select(1, owner)
    local = torch.stack([_dot(frame[3 * k : 3 * k + 3], offset) for k in range(3)])
    gradient, face = _gradient(solids, owner, local)
    normal = torch.stack([_dot(frame[k::3], gradient) for k in range(3)])
    normal = normal * _dot(normal, normal).sqrt_().clamp_(min=1e-9).reciprocal_()
    return _Seen(owner, point, rays, local, normal, face)


def _shade(
    scene: Scene, lamps: Sequence[tuple[Light, "_Shadow | None"]], seen: _Seen, step: Tensor, ambient: Tensor
) -> Tensor:
    """Colour (3, n) of the points; `step` (n,) metres between samples there, across the ray."""
    point, normal, rays = seen.point, seen.normal, seen.rays
    pixel = step / _dot(normal, rays).abs_().clamp_(min=0.15)
    albedo = _albedo(scene, seen.owner, seen.local, seen.face, pixel)
    gloss, glow = (scene.surface[:, k].contiguous().index_select(0, seen.owner) for k in (1, 2))
    shade = ambient.flatten() * _corners(scene, point, normal)
    bounce = torch.tensor([0.21, 0.19, 0.17])[:, None] * (0.75 - 0.25 * normal[2])
    sky = torch.tensor([0.24, 0.23, 0.22])[:, None] * (0.75 + 0.25 * normal[2])
    light = (bounce + sky) * shade
    indoors = (
        (point[0] > -0.06)
        & (point[0] < scene.size[0] + 0.06)
        & (point[1] > -0.06)
        & (point[1] < scene.size[1] + 0.06)
    )
    shiny = gloss.nonzero()[:, 0]
    reflection = torch.zeros(3, len(shiny))
    eye = rays.index_select(1, shiny)
    eye = -eye * _dot(eye, eye).rsqrt_()
    facing = normal.index_select(1, shiny)
    partly = 0.4 + 0.6 * shade
    for lamp, shadow in lamps:
        towards, flux = _towards(lamp, point)
        lit = flux * _dot(towards, normal).clamp_(min=0)
        if shadow is not None:
            visible = _visible(shadow, lamp, point, normal)
        else:
            visible = (indoors if lamp.spread > 0 else ~indoors).float()
        power = torch.tensor(lamp.power, dtype=torch.float32)[:, None]
        light += power * (lit * visible * partly)
        middle = towards.index_select(1, shiny) + eye
        mirrored = (_dot(middle, facing) * _dot(middle, middle).rsqrt_()).clamp_(min=0) ** 40
        reflection += power * (3 * (flux * visible).index_select(0, shiny) * mirrored)
    colour = albedo * light
    colour.index_add_(1, shiny, 0.25 * reflection * gloss.index_select(0, shiny))
    return torch.where(glow > 0, albedo * glow, colour)


def _gradient(solids: Solids, owner: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Outward gradient in the unit frame (3, n); the axis a flat face is square to, 3 for a round one."""
    kind = solids.kind.index_select(0, owner)
    x, y, z = local.abs()
    axis = torch.where(z > torch.maximum(x, y), 2, (y > x).long())
    cone = kind == CONE
    axis = torch.where(kind == BOX, axis, torch.where(cone & (z > 0.9995), 2, 3))
    flat = torch.zeros_like(local).scatter_(0, axis.clamp(max=2)[None], 1.0) * local.sign()
    taper = solids.taper.index_select(0, owner)
    slope = torch.where(cone, -taper * (1 + taper * local[2]), local[2])
    curved = torch.stack([local[0], local[1], slope])
    return torch.where(axis < 3, flat, curved), axis


def _albedo(scene: Scene, owner: Tensor, local: Tensor, face: Tensor, pixel: Tensor) -> Tensor:
    half = scene.half.T.contiguous().index_select(1, owner)
    metric = local * half
    wrapped, ball = face == 3, scene.solids.kind[owner] == ELLIPSOID
    around = torch.where(ball, metric[0], torch.atan2(local[1], local[0]) * half[0])
    sides = face == 0
    u = torch.where(sides, metric[1], torch.where(wrapped, around, metric[0]))
    v = torch.where(face == 2, metric[1], torch.where(ball, metric[1] + metric[2], metric[2]))
    wide = torch.where(sides, half[1], torch.where(wrapped, pi * half[0], half[0]))
    high = torch.where(face == 2, half[1], half[2])
    out = torch.empty_like(local)
    kinds = scene.texture[owner]
    colours, surface = scene.colours.T.contiguous(), scene.surface.T.contiguous()
    for number, texture in enumerate(TEXTURES):
        where = (kinds == number).nonzero()[:, 0]
        if len(where):
            who = owner.index_select(0, where)
            colour, own = colours.index_select(1, who), surface.index_select(1, who)
            x, y, w, h, fine = (each.index_select(0, where) for each in (u, v, wide, high, pixel))
            patch = Patch(x, y, w, h, colour[:3], colour[3:], own[0], own[3], fine)
            out.index_copy_(1, where, texture(patch))
    return out.clamp_(0, 1.2)


def _corners(scene: Scene, point: Tensor, normal: Tensor) -> Tensor:
    """Ambient light lost to the edges of the room's own box, 0..1."""
    shade = torch.ones_like(point[0])
    for axis, end in enumerate(scene.size):
        facing = 0.32 * (1 - normal[axis].abs())
        for distance in (point[axis], end - point[axis]):
            shade *= 1 - facing * (-distance.abs() / 0.35).exp()
    return shade


def _occlusion(p: Tensor, n: Tensor, size: Sequence[int]) -> Tensor:
    """Ambient light left by what rises near the points (3, H, W) on the screen, 0..1, at another size."""
    height, width = p.shape[1:]
    blocked = torch.zeros(height, width)
    rings = [(0.012, 0.6), (0.035, 1.0)]
    count = 0
    for radius, start in rings:
        for k in range(6):
            dx = round(float(np.cos(start + k * pi / 3)) * radius * width)
            dy = round(float(np.sin(start + k * pi / 3)) * radius * width)
            ys, xs = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
            y0, x0 = slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0))
            away = p[:, ys, xs] - p[:, y0, x0]
            square = away.square().sum(0)
            rise = _dot(n[:, y0, x0], away) * (square + 1e-8).rsqrt() - 0.12
            blocked[y0, x0] += rise.clamp_(min=0) * (0.5 / (0.5 + 4 * square))
            count += 1
    shade = (1 - 2.2 * blocked / count).clamp(0.15, 1)
    shade = avg_pool2d(pad(shade[None, None], (1, 1, 1, 1), mode="replicate"), 3, 1)
    return interpolate(shade, size=list(size), mode="bilinear", align_corners=True)[0, 0]


def _towards(lamp: Light, point: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (3, n) from the points to a lamp, and its light (n,) there if nothing is in the way."""
    towards = torch.tensor(lamp.origin, dtype=torch.float32)[:, None] - point
    square = _dot(towards, towards)
    towards = towards * (square + 1e-6).rsqrt_()
    beam = (-_dot(torch.tensor(lamp.forward, dtype=torch.float32)[:, None], towards)).clamp_(min=0)
    return towards, (0.15 + 0.85 * beam**lamp.beam) / (0.35 + square)


@dataclass(frozen=True)
class _Shadow:
    """A variance shadow map: the axes of the lamp's view; mean and mean square of depth, (1, 2, S, S)."""

    axes: Tensor
    moments: Tensor


def _shadow(solids: Solids, glow: Tensor, lamp: Light) -> _Shadow:
    forward = np.array(lamp.forward)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    axes = torch.tensor(np.stack([right, np.cross(forward, right), forward]), dtype=torch.float32)
    grid = (torch.arange(SHADOW_MAP) + 0.5) * (2 * lamp.spread / SHADOW_MAP) - lamp.spread
    casting = glow == 0
    chosen = Solids(
        solids.kind[casting], solids.centre[casting], solids.frame[casting], solids.taper[casting]
    )
    depth, _ = cast(chosen, View(torch.tensor(lamp.origin, dtype=torch.float32), axes, grid, grid))
    moments = torch.stack([depth.clamp_(max=20), depth * depth])[None]
    return _Shadow(axes, avg_pool2d(moments, 5, 1, 2, count_include_pad=False))


def _visible(shadow: _Shadow, lamp: Light, point: Tensor, normal: Tensor) -> Tensor:
    """Share of a lamp seen from the points, 0..1."""
    away = shadow.axes @ (point + 0.02 * normal - torch.tensor(lamp.origin, dtype=torch.float32)[:, None])
    place = (away[:2] / (away[2].clamp(min=1e-3) * lamp.spread)).T
    mean, square = grid_sample(shadow.moments, place[None, None], align_corners=False, padding_mode="border")[
        0, :, 0
    ]
    # Chebyshev's bound; its low end is cut because there it lights what is well hidden.
    short = (away[2] - mean - 0.02).clamp_(min=0)
    variance = (square - mean * mean).clamp_(min=1e-4)
    seen = (variance / (variance + short * short) - 0.25).clamp_(min=0) / 0.75
    inside = (place.abs().amax(1) < 0.98) & (away[2] > 0)
    return torch.where(inside, seen, 0.8)

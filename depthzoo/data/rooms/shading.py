"""Light and camera: linear radiance of the visible points, then what a cheap colour sensor makes of it."""

from math import pi

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, grid_sample, interpolate, pad

from depthzoo.data.rooms.building import Light
from depthzoo.data.rooms.raycast import BOX, CONE, ELLIPSOID, Solids, View, cast
from depthzoo.data.rooms.scene import Scene
from depthzoo.data.rooms.textures import TEXTURES, Patch

SHADOW_MAP = 256
SHADOWED = 2  # lights that cast shadows, the strongest ones


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def radiance(scene: Scene, view: View, depth: Tensor, index: Tensor) -> Tensor:
    """Linear RGB (3, H, W) at the samples of a view, given what `cast` found there."""
    height, width = depth.shape
    owner, t = index.flatten().long(), depth.flatten()
    rays = view.axes[0, :, None, None] * view.xs + (
        view.axes[1, :, None, None] * view.ys[:, None] + view.axes[2, :, None, None]
    )
    rays = rays.reshape(3, -1)
    point = view.origin[:, None] + rays * t
    frame = scene.solids.frame.reshape(-1, 9).T.contiguous().index_select(1, owner)  # (9, n)
    offset = point - scene.solids.centre.T.contiguous().index_select(1, owner)
    local = torch.stack([_dot(frame[3 * k : 3 * k + 3], offset) for k in range(3)])
    gradient, face = _gradient(scene.solids, owner, local)
    normal = torch.stack([_dot(frame[k::3], gradient) for k in range(3)])
    normal = normal / normal.square().sum(0).sqrt().clamp(min=1e-9)
    pixel = t * (view.xs[1] - view.xs[0]) / (normal * rays).sum(0).abs().clamp(min=0.15)
    albedo = _albedo(scene, owner, local, face, pixel)
    surface = scene.surface.T.contiguous()
    gloss, glow = surface[1][owner], surface[2][owner]
    shape = (height, width)
    shade = _occlusion(point.reshape(3, *shape), normal.reshape(3, *shape)).flatten() * _corners(
        scene, point, normal
    )
    bounce = torch.tensor([0.21, 0.19, 0.17])[:, None] * (0.75 - 0.25 * normal[2])
    sky = torch.tensor([0.24, 0.23, 0.22])[:, None] * (0.75 + 0.25 * normal[2])
    light = (bounce + sky) * shade
    indoors = (
        (point[0] > -0.06)
        & (point[0] < scene.size[0] + 0.06)
        & (point[1] > -0.06)
        & (point[1] < scene.size[1] + 0.06)
    )
    ranked = sorted(scene.lights, key=lambda x: -x.power[0] * (x.spread > 0))
    shine = torch.zeros_like(light)
    for rank, lamp in enumerate(ranked):
        if lamp.spread > 0 and rank >= SHADOWED + 1:
            break
        lit, mirrored = _direct(lamp, point, normal, rays)
        if lamp.spread > 0 and rank < SHADOWED:
            visible = _visible(scene.solids, surface[2], lamp, point, normal)
        else:
            visible = (indoors if lamp.spread > 0 else ~indoors).float()
        power = torch.tensor(lamp.power, dtype=torch.float32)[:, None]
        light += power * (lit * visible * (0.4 + 0.6 * shade))
        shine += power * (mirrored * visible * gloss)
    colour = torch.where(glow > 0, albedo * glow, albedo * light + 0.25 * shine)
    return colour.reshape(3, *shape)


def _gradient(solids: Solids, owner: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Outward gradient in the unit frame (3, n); the axis a flat face is square to, 3 for a round one."""
    kind = solids.kind[owner]
    axis = local.abs().argmax(0)
    cap = (kind == CONE) & (local[2].abs() > 0.9995)
    axis = torch.where(kind == BOX, axis, torch.where(cap, 2, 3))
    flat = torch.zeros_like(local).scatter_(0, axis.clamp(max=2)[None], 1.0) * local.sign()
    taper = solids.taper[owner]
    slope = torch.where(kind == CONE, -taper * (1 + taper * local[2]), local[2])
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


def _occlusion(point: Tensor, normal: Tensor) -> Tensor:
    """Ambient light left by what rises near a point on the screen, 0..1, found at half resolution."""
    p, n = point[:, ::2, ::2], normal[:, ::2, ::2]
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
    return interpolate(shade, size=point.shape[1:], mode="bilinear", align_corners=True)[0, 0]


def _direct(lamp: Light, point: Tensor, normal: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Diffuse and mirrored light that a lamp sends to the points if nothing is in the way."""
    towards = torch.tensor(lamp.origin, dtype=torch.float32)[:, None] - point
    square = towards.square().sum(0)
    towards = towards * (square + 1e-6).rsqrt()
    beam = (-_dot(torch.tensor(lamp.forward, dtype=torch.float32)[:, None], towards)).clamp(min=0)
    flux = (0.15 + 0.85 * beam**lamp.beam) / (0.35 + square)
    eye = -rays * rays.square().sum(0).rsqrt()
    middle = towards + eye
    mirrored = (_dot(middle, normal) * middle.square().sum(0).rsqrt()).clamp(min=0) ** 40
    return flux * _dot(towards, normal).clamp(min=0), 3 * flux * mirrored


def _visible(solids: Solids, glow: Tensor, lamp: Light, point: Tensor, normal: Tensor) -> Tensor:
    """Share of a lamp seen from the points, 0..1, by a variance shadow map."""
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
    moments = avg_pool2d(moments, 5, 1, 2, count_include_pad=False)
    away = axes @ (point + 0.02 * normal - torch.tensor(lamp.origin, dtype=torch.float32)[:, None])
    place = (away[:2] / (away[2].clamp(min=1e-3) * lamp.spread)).T
    mean, square = grid_sample(moments, place[None, None], align_corners=False, padding_mode="border")[
        0, :, 0
    ]
    # Chebyshev's bound; its low end is cut because there it lights what is well hidden.
    short = (away[2] - mean - 0.02).clamp_(min=0)
    variance = (square - mean * mean).clamp_(min=1e-4)
    seen = (variance / (variance + short * short) - 0.25).clamp_(min=0) / 0.75
    inside = (place.abs().amax(1) < 0.98) & (away[2] > 0)
    return torch.where(inside, seen, 0.8)


def develop(linear: Tensor, seed: int) -> Tensor:
    """Picture (H, W, 3) uint8 of linear RGB (3, 2H+1, 2W+1): exposure, white balance, vignette, noise, gamma.

    Output pixel (i, j) is centred on sample (2i + 1, 2j + 1).
    """
    g = np.random.default_rng([seed, 1])
    tent = torch.tensor([1.0, 2.0, 1.0]) / 4
    image = linear.clamp(max=4)[:, None]
    picture = conv2d(image, (tent[:, None] * tent)[None, None], stride=2)[:, 0]  # (3, H, W)
    height, width = picture.shape[1:]
    bright = picture.mean(0).flatten()[::7].clamp(max=2)
    key = np.exp(g.normal(-1.45, 0.32)) / float(bright.mean())
    balance = torch.tensor(np.exp(g.normal(0, 0.07, 3)), dtype=torch.float32)
    grey = picture.flatten(1).mean(1)
    balance = balance * (grey.mean() / grey) ** g.uniform(0.2, 0.8)  # an imperfect automatic white balance
    x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height) * height / width
    fall = 1 - g.uniform(0, 0.35) * (x.square() + y.square()[:, None]) / (1 + (height / width) ** 2)
    picture = picture * balance[:, None, None] * (key * fall)
    generator = torch.Generator().manual_seed(seed)
    shot, read = g.uniform(0.004, 0.025), g.uniform(0.001, 0.006)
    noise = torch.randn(3, height, width, generator=generator)
    picture = picture + noise * (picture.clamp(min=0) * shot**2 + read**2).sqrt()
    picture = picture.clamp(0, 1) ** (1 / g.uniform(2.0, 2.4))
    blur = g.uniform(-0.35, 0.45)  # negative sharpens, as the Kinect's sensor does
    soft = avg_pool2d(pad(picture[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
    picture = picture + blur * (soft - picture)
    contrast = g.uniform(0.4, 1.6)
    clipped = picture.clamp(0, 1)
    picture = clipped + contrast * (clipped * clipped * (3 - 2 * clipped) - clipped)
    grey = picture.mean(0)
    picture = grey + g.uniform(0.8, 1.25) * (picture - grey)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
